#!/usr/bin/env bash
# A Slurm cluster of three nodes on the loopback of this machine, for tests: needs root, and Debian's slurm-wlm and munge.
#   cluster.sh start DIR    configures it in DIR and starts it; prints what to export
#   cluster.sh stop DIR     ends what start began
set -euo pipefail
verb=$1 dir=$(realpath -m "$2")
nodes=(n1 n2 n3)

start() {
  for tool in munged slurmctld slurmd sbatch; do
    command -v "$tool" > /dev/null || { echo "no $tool: apt-get install slurm-wlm munge" >&2; exit 3; }
  done
  [ "$(id -u)" = 0 ] || { echo "slurmd needs root" >&2; exit 3; }
  mkdir -p "$dir"/{munge,state,spool,log}
  chmod 755 "$dir" "$dir/munge"
  # munged will have no folder on the way to its socket that others may write.
  dd if=/dev/urandom of="$dir/munge/key" bs=1024 count=1 status=none
  chmod 600 "$dir/munge/key"
  munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" --pid-file="$dir/munge/pid" \
    --log-file="$dir/log/munged.log" --seed-file="$dir/munge/seed" 2>> "$dir/log/munged.err"
  local port=${SLURM_TEST_PORT:-26817}
  {
    cat << CONF
ClusterName=zobench-test
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmctldPort=$port
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/state/slurmctld.pid
SlurmdPidFile=$dir/state/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
JobRequeue=1
KillWait=10
MinJobAge=60
SlurmdTimeout=30
SchedulerParameters=batch_sched_delay=0,sched_interval=2
RequeueExit=
CONF
    local i=0
    for node in "${nodes[@]}"; do
      i=$((i + 1))
      echo "NodeName=$node NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=$((port + i)) CPUs=1 RealMemory=1000 State=UNKNOWN"
    done
    echo "PartitionName=test Nodes=$(IFS=,; echo "${nodes[*]}") Default=YES MaxTime=INFINITE OverSubscribe=NO State=UP"
  } | grep -v '^RequeueExit=$' > "$dir/slurm.conf"
  export SLURM_CONF=$dir/slurm.conf
  slurmctld -c
  for node in "${nodes[@]}"; do slurmd -N "$node"; done
  for _ in $(seq 60); do
    [ "$(sinfo --noheader --Node --format '%T' 2> /dev/null | grep -c idle)" = "${#nodes[@]}" ] && break
    sleep 0.5
  done
  sinfo --Node >&2
  [ "$(sinfo --noheader --Node --format '%T' | grep -c idle)" = "${#nodes[@]}" ] || { tail "$dir"/log/* >&2; exit 1; }
  echo "SLURM_CONF=$SLURM_CONF"
}

stop() {
  for file in "$dir"/state/slurmd-*.pid "$dir/state/slurmctld.pid" "$dir/munge/pid"; do
    [ -f "$file" ] && kill "$(cat "$file")" 2> /dev/null || true
  done
}

"$verb"
