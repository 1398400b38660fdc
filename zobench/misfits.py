"""Settings of task, loss, scoring and baselines that are right one by one and cannot work together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zobench.losses import Loss

if TYPE_CHECKING:
    from zobench.run import RunSpec

OF_GENERATION: tuple[Loss, ...] = ("teacher_forcing", "f1")


def misfits(spec: RunSpec) -> list[str]:
    """One line each."""
    return [*_of_loss(spec), *_of_calibration(spec), *_of_no_training(spec)]


def _of_loss(spec: RunSpec) -> list[str]:
    task = spec.task
    if not spec.trains:
        return []  # a loss that nothing minimises
    if task.kind == "generation" and spec.loss not in OF_GENERATION:
        fit = " or ".join(OF_GENERATION)
        return [f"loss={spec.loss}: compares options, and task={task.name} generates text; use loss={fit}"]
    if task.kind == "generation" and spec.start == "linear_probe":
        return [f"start=linear_probe: is of option words, and task={task.name} generates text; set start=null"]
    if task.masked and spec.loss == "teacher_forcing":
        return [
            f"loss=teacher_forcing: predicts each token from those before it, and task={task.name} is for masked "
            "models, which see both sides; use loss=cross_entropy"
        ]
    return []


def _of_calibration(spec: RunSpec) -> list[str]:
    task, calibration = spec.task, spec.calibration
    if calibration == "none":
        return []
    found = []
    if task.kind == "generation":
        found.append(f"calibration={calibration}: task={task.name} generates text and has no options to calibrate")
    if task.masked:
        found.append(f"calibration={calibration}: is for causal models, and task={task.name} is for masked ones")
    if spec.scheme.fits:
        found.append(f"calibration={calibration}: scheme={spec.scheme.name} sees no null prompt; use calibration=none")
    if calibration == "icl_sfc" and not spec.n_demonstration:
        found.append(
            "calibration=icl_sfc: keeps the demonstrations before the null prompt, and only optimizer=in_context has "
            "any; use calibration=sfc"
        )
    return found


def _of_no_training(spec: RunSpec) -> list[str]:
    if spec.trains:
        return []
    found, name, n = [], spec.config["optimizer"]["name"], spec.n_demonstration
    if spec.scheme.name != "full" and (n or not spec.scheme.fits):
        found.append(f"scheme={spec.scheme.name}: optimizer={name} trains nothing; use scheme=full")
    if n and spec.task.masked:
        found.append(f"optimizer={name}: shows examples to causal models, and task={spec.task.name} is for masked ones")
    n_train = spec.task.sizes["train"]
    if n_train is not None and n > n_train:
        found.append(f"optimizer.demonstrations={n}: task.n_train={n_train} has fewer examples")
    return found
