"""Fine-tune: one run, or several with -m.

    python -m runners.train model=opt-125m task=sst2 scheme=lora optimizer=zo_sgd seed=1
    python -m runners.train -m model=tiny task=toy optimizer=zo_sgd,adamw seed=1,2,3

Exit codes: 0 done (also diverged or out of memory: those are results), 1 a run could not go on, 2 the config cannot be
run, 130 stopped by hand (the same command goes on where it stopped).
"""

from __future__ import annotations

import signal
import sys
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from runners.compose import spec_from, spec_of
from runners.composition import CONF
from runners.multirun import command_of, jobs_of
from runners.piped import piped
from zobench.config import ConfigError

_exit_code = 0  # of the worst job; Hydra's launcher has no channel for it


@hydra.main(config_path=str(CONF), config_name="run", version_base=None)
def _job(cfg: DictConfig) -> None:
    global _exit_code
    from runners.execute import execute, summary
    from zobench.models import ModelError
    from zobench.record import RecordError
    from zobench.tasks.base import DataError

    resolved = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(resolved, dict)
    config: dict[str, Any] = {str(key): value for key, value in resolved.items()}
    try:
        spec = spec_from(config)
        outcome = execute(spec, command_of(sys.argv[1:]))
        print(summary(outcome, spec.task.metric), flush=True)
    except ConfigError as error:
        _fail(2, *error.problems)
    except (DataError, ModelError, RecordError) as error:
        _fail(1, str(error))
    except KeyboardInterrupt:
        _fail(130, "stopped; the same command goes on where it stopped")
        sys.exit(130)


def _fail(code: int, *lines: str) -> None:
    global _exit_code
    _exit_code = max(_exit_code, code)
    for line in lines:
        print(f"error: {line}", file=sys.stderr, flush=True)


def main() -> None:
    """Check every job of the command line, then hand over to Hydra."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is a stop by hand
    try:
        specs = [spec_of(overrides) for overrides in jobs_of(sys.argv[1:])]
        if len(specs) > 1 and any(spec.config["save"] is not None for spec in specs):
            raise ConfigError([f"save={specs[0].config['save']}: {len(specs)} runs would overwrite each other there"])
    except KeyboardInterrupt:
        sys.exit(130)
    except ConfigError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    _job()
    sys.exit(_exit_code)


if __name__ == "__main__":
    with piped():
        main()
