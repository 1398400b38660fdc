"""The loop: train, evaluate on dev, choose a checkpoint on dev, test it once, write everything down."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import torch

from zobench import placement, provenance
from zobench.clock import Clocks
from zobench.observer import Observer
from zobench.optim.base import ZOOptimizer
from zobench.optim.hybrid import Hybrid
from zobench.record import FINISHED, Record, RecordError
from zobench.resume import check_same, trail_of
from zobench.rows import Made, Window, run_row
from zobench.run import Bench
from zobench.state import Chosen
from zobench.tasks.base import Split
from zobench.trajectory import Mark


class Loop:
    """One run. ``run`` returns its end row.

    Args:
        bench: everything loaded.
        record: open; empty, or of the same run broken off.
        command: what the user typed, for the record.
        observers: told of rows and steps.
    """

    def __init__(self, bench: Bench, record: Record, command: str, observers: list[Observer]) -> None:
        self.bench, self.record, self.observers = bench, record, observers
        self.spec, self.optimizer, self.meter = bench.spec, bench.optimizer, bench.meter
        self.clocks = Clocks(*placement.devices(bench.model))
        self.n_step = 0
        self.window = Window()
        self._made: deque[Made] = deque()  # steps that are not written down yet
        self.first_step_s = 0.0
        self.dev: list[dict[str, Any]] = []  # evaluation rows of dev that hold for this course of the run
        self.best: dict[str, Any] | None = None  # the dev row of the chosen checkpoint
        self.chosen: Chosen | None = None  # its weights, on the host
        self._base_lrs = [float(g["lr"]) for g in self.optimizer.param_groups]
        self._command = command
        self.trail = trail_of(bench, record.path)

    # ---- the run -----------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train to the end of the budget, or on from where the record breaks off.

        Raises:
            RecordError: nothing can be written any more, or the record is of other weights or data.
            KeyboardInterrupt: the run was stopped; its record says so and the same command resumes it.
        """
        try:
            self._begin()
            self._evaluate_if_due()
            while self._progress() < 1.0:
                self._step()
                self._evaluate_if_due()
            return self._finish("completed", None)
        except FloatingPointError as error:
            return self._finish("diverged", str(error))
        except (torch.OutOfMemoryError, MemoryError) as error:
            return self._finish("oom", (str(error) or "no memory").splitlines()[0])
        except KeyboardInterrupt:
            if self.record.rows:  # one without a run row would be none, and nothing has been done yet
                self._finish("preempted", "interrupted")
            raise
        except RecordError:
            raise
        except Exception as error:
            if self.record.rows:
                self._finish("failed", f"{type(error).__name__}: {error}", provenance.trace())
            raise
        finally:
            self.trail.close(self.record.status in FINISHED)

    def _begin(self) -> None:
        if self.record.rows:
            self._resume()
        else:
            self.trail.begin()
            self._write(run_row(self.spec, self.bench, self._command), sync=True)

    def _step(self) -> None:
        for group, lr in zip(self.optimizer.param_groups, self._base_lrs, strict=True):
            group["lr"] = lr * self.spec.schedule(self._progress())
        if isinstance(self.optimizer, ZOOptimizer | Hybrid):
            self.optimizer.progress = self._progress()
        with self.trail.stepping():
            info = self.optimizer.step(self.bench.objective(self.n_step))
            self.n_step += 1
            if self.n_step == 1:
                self.clocks.switch("train")
                self.first_step_s = self.clocks.seconds["train"]
            self._made.append(
                Made(self.n_step, info, self.optimizer.lr, replace(self.meter), dict(self.optimizer.memory),
                     self._progress(), self.trail.ops())
            )  # fmt: skip
            self._log()

    def _log(self) -> None:
        """Write down the steps whose numbers are known by now, and that have not failed."""
        while self._made and self._made[0].info.known and self._made[0].step <= self._n_sound:
            made = self._made.popleft()
            loss, slope, m = float(made.info.loss), made.info.projected_grad, made.meter
            self.window.add(loss, None if slope is None else float(slope))
            if made.step % self.spec.log_every == 0 or made.progress >= 1.0:  # what is left over has a row, too
                self._write(self.window.row(made.step, made.lr, m, self.clocks.elapsed("train")))
                self.window = Window()
            mark = Mark(
                made.step, (m.n_forward, m.n_backward, m.n_example, m.n_token, m.n_jvp), self.clocks.elapsed("train"),
                self.first_step_s, list(self.window.losses), self.window.projected_grad, made.memory,
            )  # fmt: skip
            self.trail.stepped(mark, made.ops)
            for observer in self.observers:
                observer.step(made.progress, made.step, loss)

    def _settle(self) -> None:
        """Wait for the numbers of all steps made.

        Raises:
            FloatingPointError: one of the steps has failed.
        """
        if isinstance(self.optimizer, ZOOptimizer):
            self.optimizer.settle()
        self._log()

    @property
    def _n_sound(self) -> int:
        """Steps made, but for those from a failed one on."""
        return self.optimizer.n_step if isinstance(self.optimizer, ZOOptimizer) else self.n_step

    def _take_back(self) -> None:
        """Forget the steps that were made after one that failed; that it failed became known late."""
        lost = [made for made in self._made if made.step > self._n_sound]
        if lost:
            self.n_step = lost[0].step - 1
            vars(self.meter).update(vars(lost[0].meter))  # it was made, and paid for
            self._made = deque(made for made in self._made if made.step <= self.n_step)
        self._log()

    # ---- evaluation --------------------------------------------------------------------------------------------

    def _evaluate_if_due(self) -> None:
        dev_due = not self.dev or (
            len(self.dev) <= self.spec.budget.n_due(self._progress()) and self.dev[-1]["step"] < self.n_step
        )
        # What the run starts from; nothing is chosen by it. The run may have broken off right before it.
        test_due = self.n_step == 0 and not self.record.evals("test", 0)
        if not dev_due and not test_due:
            return
        self._settle()
        self.clocks.switch("eval")
        if dev_due:
            self.bench.home()
            self.trail.at_home(self._evaluated, self.chosen)
            self.dev.append(self._evaluate("dev"))
        if test_due:
            self._evaluate("test")
        if dev_due:
            self._choose(self.dev[-1])
        self.clocks.switch("train")

    def _evaluate(self, split: Split, step: int | None = None) -> dict[str, Any]:
        def told(n_done: int, n: int) -> None:
            for observer in self.observers:
                observer.evaluating(split, n_done, n)

        metrics = self.bench.evaluate(split, told)
        self.clocks.switch("eval")
        row = {
            "kind": "eval", "step": self.n_step if step is None else step, "split": split, "metrics": metrics,
            "n_example": len(self.bench.data[split]), **self.meter.cost_counts(), **self._seconds(),
            "peak_train_bytes": self.clocks.peaks["train"], "peak_eval_bytes": self.clocks.peaks["eval"],
        }  # fmt: skip
        self._write(row, sync=True)
        return row

    def _choose(self, row: dict[str, Any]) -> None:
        """Keep the checkpoint if it is the best on dev: by metric, then by loss; the earlier one in a tie.

        Raises:
            FloatingPointError: its loss is not finite, so its metric is a count of accidents.
        """
        loss = row["metrics"]["loss"]
        if loss is None or not math.isfinite(loss):
            raise FloatingPointError(f"dev loss {loss} after step {row['step']}")
        if self.best is None or _merit(row, self.bench.spec.task.metric) > _merit(self.best, self.spec.task.metric):
            self.best = row
            self.chosen = Chosen(row["step"], [p.to("cpu", copy=True) for p in self.bench.trainable])

    # ---- the end -----------------------------------------------------------------------------------------------

    def _finish(self, status: str, reason: str | None, trace: str | None = None) -> dict[str, Any]:
        try:
            self._settle()
        except FloatingPointError as error:
            status, reason = "diverged", str(error)
        self._take_back()
        metrics: dict[str, Any] = {"dev": self.best["metrics"]} if self.best else {}
        chosen = self.best["step"] if self.best else None
        if status == "completed":
            assert self.chosen is not None
            self.clocks.switch("eval")
            for p, kept in zip(self.bench.trainable, self.chosen.weights, strict=True):
                p.copy_(kept)
            known = [] if self.spec.trains else self.record.evals("test", 0)  # else the weights are those of the start
            metrics["test"] = (known[0] if known else self._evaluate("test", chosen))["metrics"]
        self.clocks.switch("rest")
        self.trail.stop(self._evaluated, self.chosen)
        starts = {split: self.record.evals(split, 0) for split in ("dev", "test")}
        peaks, reserved = self.clocks.peaks, self.clocks.reserved
        row = {
            "kind": "end", "status": status, "reason": reason, "chosen_step": chosen, "metrics": metrics,
            "start": {split: rows[0]["metrics"] for split, rows in starts.items() if rows},
            "n_step": self.n_step, **self.meter.counts(), **self._seconds(),
            "rest_s": round(self.clocks.seconds["rest"], 3),
            "first_step_s": round(self.first_step_s, 4), "peak_train_bytes": peaks["train"],
            "peak_eval_bytes": peaks["eval"], "peak_reserved_bytes": reserved["train"],
            "memory_kind": self.clocks.memory_kind, "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        if trace is not None:
            row["traceback"] = trace
        self._write(row, sync=True)
        return row

    # ---- resuming ----------------------------------------------------------------------------------------------

    def _resume(self) -> None:
        """Bring the run back to where it can go on, so that it ends as if it had not broken off."""
        check_same(self.record, self.bench)
        self.dev = self.trail.find(self.record)
        if any(row["metrics"]["loss"] is None for row in self.dev):  # broken off right before the end row it leads to
            raise FloatingPointError("dev loss not finite")
        best = max(self.dev, key=lambda row: _merit(row, self.spec.task.metric), default=None)

        def choose() -> None:
            assert best is not None
            self._choose(best)

        self.trail.travel(None if best is None else best["step"], choose)
        self._go_on_from(self.trail.mark)
        self.clocks.seconds["eval"] = self.dev[-1]["eval_s"] if self.dev else 0.0
        self._write(
            {
                "kind": "resume",
                "step": self.n_step,
                "git": provenance.git(),
                "versions": provenance.versions(),
                "hardware": provenance.hardware(self.spec.device),
                **self._seconds(),
            },
            sync=True,
        )
        self.clocks.switch("train")

    def _go_on_from(self, mark: Mark) -> None:
        m = self.meter
        self.n_step, self.first_step_s = mark.step, mark.first_step_s
        if mark.step > 0:  # else all that was spent is what building cost, and that is known
            m.n_forward, m.n_backward, m.n_example, m.n_token, m.n_jvp = mark.spent
        self.clocks.seconds["train"] = mark.train_s
        self.window = Window(list(mark.losses), mark.projected_grad)

    # ---- rows --------------------------------------------------------------------------------------------------

    @property
    def _evaluated(self) -> list[int]:
        return [row["step"] for row in self.dev]

    def _progress(self) -> float:
        if not self.spec.trains:
            return 1.0
        seconds = self.clocks.elapsed("train")
        return self.spec.budget.progress(forwards=self.meter.cost, steps=self.n_step, seconds=seconds)

    def _seconds(self) -> dict[str, float]:
        return {f"{phase}_s": round(self.clocks.elapsed(phase), 3) for phase in ("train", "eval")}

    def _write(self, row: dict[str, Any], sync: bool = False) -> None:
        self.record.append(row, sync)
        for observer in self.observers:
            observer.row(row)


def _merit(row: Mapping[str, Any], metric: str) -> tuple[float, float, int]:
    return row["metrics"][metric], -row["metrics"]["loss"], -row["step"]
