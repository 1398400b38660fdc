"""Streams the rows of a record to Weights & Biases, the runs of a sweep as one group. The record stays the source of
truth: what goes wrong here after the start costs the run nothing."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zobench.record import RecordError


class WandbSink:
    """An `Observer`. ``mode``: offline (sync later with ``wandb sync``) or online."""

    def __init__(self, config: Mapping[str, Any], run_id: str) -> None:
        import wandb

        mode = config["wandb"]["mode"]
        try:
            self._run = self._start(wandb, config, run_id)
        except Exception as error:  # no key, no network, no rights
            reason = str(error).strip().splitlines()[0]
            raise RecordError(f"wandb.mode={mode}: {reason}; log in, or use wandb.mode=offline") from error

    @staticmethod
    def _start(wandb: Any, config: Mapping[str, Any], run_id: str) -> Any:
        return wandb.init(
            project=config["wandb"]["project"], mode=config["wandb"]["mode"], id=run_id, name=run_id,
            group=Path(config["out"]).name, config=dict(config), resume="allow", dir=config["out"],
            settings=wandb.Settings(quiet=True),
        )  # fmt: skip

    def row(self, row: Mapping[str, Any]) -> None:
        if self._run is None:
            return
        try:
            self._log(row)
        except Exception as error:  # no network any more, a full disk, its server process gone
            self._give_up(error)

    def _log(self, row: Mapping[str, Any]) -> None:
        kind = row["kind"]
        if kind == "step":
            self._run.log({f"train/{k}": v for k, v in row.items() if k not in ("kind", "step")}, step=row["step"])
        elif kind == "eval":
            shown = {f"{row['split']}/{k}": v for k, v in row["metrics"].items()}
            # The test row of the end carries the chosen step, which lies behind the last one logged.
            self._run.log({**shown, f"{row['split']}/at_step": row["step"], "eval_s": row["eval_s"]})
        elif kind == "end":
            self._run.summary.update({k: v for k, v in row.items() if k not in ("kind", "traceback")})

    def step(self, progress: float, n_step: int, loss: float) -> None:
        del progress, n_step, loss  # rows only: the same as the record

    def evaluating(self, split: str, n_done: int, n: int) -> None:
        del split, n_done, n  # rows only

    def close(self) -> None:
        if self._run is None:
            return
        try:
            self._run.finish()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        print(f"note: wandb: {reason}; the run goes on without it", file=sys.stderr, flush=True)
