"""The server that forks a sweep's processes has imported what they need, and leaves CUDA to them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from courses import ROOT

from runners import local, warm

# A torch that looks as one of a machine with a GPU does, until CUDA is asked for something: that is written down.
SERVER = """
import importlib, json, sys
import torch

warm, late = map(str.split, sys.argv[1:])
touched = []
def touch(what, answer):
    def asked(*_, **__):
        touched.append(what)
        return answer
    return asked

torch.version.cuda = "12.8"
torch.cuda._is_compiled = lambda: True
torch.cuda._device_count_nvml = lambda: 1
torch._C._cuda_getDeviceCount = touch("cudaGetDeviceCount", 1)
torch._C._cuda_getCurrentRawStream = touch("stream", 0)
torch.cuda._lazy_init = touch("cuInit", None)
for name in warm:
    importlib.import_module(name)
said = {"modules": list(sys.modules), "imported": [*touched], "there": torch.cuda.is_available(), "asked": [*touched]}
touched.clear()
for name in late:
    importlib.import_module(name)
print(json.dumps({**said, "late": touched}))
"""


@pytest.fixture(scope="module")
def said() -> dict[str, Any]:
    """By such a server with what it imports and then, where it is installed, bitsandbytes."""
    late = ["bitsandbytes"] if importlib.util.find_spec("bitsandbytes") else []
    given = " ".join([*local.WARM, *local.WARM_WITH_GPU]), " ".join(late)
    ran = subprocess.run([sys.executable, "-c", SERVER, *given], cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def test_the_server_leaves_cuda_alone(said: dict[str, Any]) -> None:
    """Otherwise no process that it forks could use a GPU."""
    assert {"torch", "transformers.modeling_utils", "zobench.engine.cuda", "runners.execute"} <= set(said["modules"])
    assert said["imported"] == []
    assert said["there"]
    assert said["asked"] == ["cudaGetDeviceCount"]  # a run asks CUDA itself


def test_what_looks_at_gpus_on_import_is_seen(said: dict[str, Any]) -> None:
    """So that the test above can fail: bitsandbytes is why a server with GPUs does not import peft."""
    pytest.importorskip("bitsandbytes")
    assert {"cudaGetDeviceCount", "cuInit"} <= set(said["late"])


def test_a_library_that_asks_for_a_gpu_on_import_is_answered_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(warm.NVML, raising=False)
    with warm.cuda_asleep():
        assert torch.cuda._nvml_based_avail()
    assert warm.NVML not in os.environ
    monkeypatch.setenv(warm.NVML, "0")
    with warm.cuda_asleep():
        assert torch.cuda._nvml_based_avail()
    assert os.environ[warm.NVML] == "0"


def test_a_forked_run_has_the_gpu_that_it_was_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody touches CUDA here; the folder of a record is named by what the process of its run sees."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    launcher = local.LocalLauncher(None)
    out = f"out={tmp_path}/${{oc.env:CUDA_VISIBLE_DEVICES}}"
    jobs = [[*TINY, "optimizer=zo_sgd", "budget.amount=1", f"seed={seed}", out] for seed in (1, 2)]
    ended = [returned.return_value for returned in launcher.launch(jobs, 0)]
    assert [each.how for each in ended] == ["over", "over"], ended
    assert sorted(path.parent.name for path in tmp_path.glob("*/*.jsonl")) == ["2", "5"]
