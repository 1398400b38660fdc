"""Settings of task, loss, scoring, baselines and forwards that are right one by one and cannot work together."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from zobench.losses import Loss
from zobench.optim.forward_grad import ForwardGrad

if TYPE_CHECKING:
    from zobench.spec import RunSpec

OF_GENERATION: tuple[Loss, ...] = ("teacher_forcing", "f1")


def misfits(spec: RunSpec) -> list[str]:
    """One line each."""
    return [
        *_of_loss(spec), *_of_start(spec), *_of_calibration(spec), *_of_no_training(spec), *_of_attention(spec),
        *_of_compile(spec), *_of_packing(spec),
    ]  # fmt: skip


def _of_loss(spec: RunSpec) -> list[str]:
    task = spec.task
    if not spec.trains:
        return []  # a loss that nothing minimises
    if task.kind == "generation" and spec.loss not in OF_GENERATION:
        fit = " or ".join(OF_GENERATION)
        return [f"loss={spec.loss}: compares options, and task={task.name} generates text; use loss={fit}"]
    if task.masked and spec.loss == "teacher_forcing":
        return [
            f"loss=teacher_forcing: predicts each token from those before it, and task={task.name} is for masked "
            "models, which see both sides; use loss=cross_entropy"
        ]
    return []


def _of_start(spec: RunSpec) -> list[str]:
    if spec.start is None:
        return []
    found, start, scheme = [], spec.start, spec.scheme
    if why := spec.task.without_classes:
        found.append(f"start={start}: fits a row for each class, and task={why}; set start=null")
    if not scheme.trains_head:
        found.append(f"start={start}: changes the head, which scheme={scheme.name} keeps; use scheme=full or head")
    return found


def _of_calibration(spec: RunSpec) -> list[str]:
    task, calibration = spec.task, spec.calibration
    if calibration == "none":
        return []
    found = []
    if task.kind == "generation":
        found.append(f"calibration={calibration}: task={task.name} generates text and has no options to calibrate")
    if task.masked:
        found.append(f"calibration={calibration}: is for causal models, and task={task.name} is for masked ones")
    if not (found or task.has_null_prompt):
        found.append(f"calibration={calibration}: task={task.name} has no null prompt; use calibration=none")
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
    n_train, k = spec.task.sizes["train"], spec.task.k_shot
    if n_train is not None and n > n_train:
        found.append(f"optimizer.demonstrations={n}: task.n_train={n_train} has fewer examples")
    if k is not None and n > (most := k * len(spec.task.classes)) > 0:
        found.append(f"optimizer.demonstrations={n}: task.k_shot={k} has fewer examples ({most})")
    return found


def _of_attention(spec: RunSpec) -> list[str]:
    if spec.steps_by(ForwardGrad) and spec.model.attention == "flash_attention_2":
        return ["model.attention=flash_attention_2: has no forward-mode derivative; use sdpa or eager"]
    return []


def _of_compile(spec: RunSpec) -> list[str]:
    if not spec.compile:
        return []
    found = []
    if not spec.is_zo or spec.steps_by(ForwardGrad):  # hybrid's slopes compare a forward with that of its backward
        name = spec.config["optimizer"]["name"]
        found.append(
            f"compile=true: is for methods that compare losses of plain forwards, and optimizer={name} does not"
        )
    if spec.model.device_map is not None:
        found.append(f"compile=true: is for a model on one device, and model.device_map={spec.model.device_map}")
    variable, usual = ("CXX", ("g++", "clang++")) if spec.device.type == "cpu" else ("CC", ("gcc", "clang"))
    names = [os.environ[variable]] if os.environ.get(variable) else list(usual)
    if not any(map(shutil.which, names)):
        found.append(f"compile=true: needs a compiler, and there is no {' or '.join(names)}; {variable} may name one")
    return found


def _of_packing(spec: RunSpec) -> list[str]:
    if not spec.packed:
        return []
    found, model = [], spec.model
    if model.attention != "sdpa":
        found.append(f"packed=true: spreads rows for model.attention=sdpa, not {model.attention}")
    if model.gradient_checkpointing:
        found.append("packed=true: the backward pass of model.gradient_checkpointing=true would not know the rows")
    if model.device_map is not None:
        found.append(f"packed=true: is for a model on one device, and model.device_map={model.device_map}")
    if spec.compile:
        found.append("packed=true: is not for compile=true, which would make kernels for every minibatch anew")
    return found
