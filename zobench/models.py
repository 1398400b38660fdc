"""Language models: from the Hugging Face hub, a local folder, or random at the true shape."""

from __future__ import annotations

import functools
import hashlib
import json
import textwrap
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from zobench.engine.stream import INIT, derive_key

PACKAGED = "package:"  # a path that starts so lies in zobench/assets
TINY_TOKENIZER = "package:tiny"
# What transformers' causal models may do to logits after the head.
LOGIT_CHANGES = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")
_SAMPLES = 64  # values of each tensor that go into a fingerprint


class ModelError(Exception):
    """A model that cannot be loaded; the message says which and what to do."""


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode, its fast tokenizer, and what the record says of where they came from."""

    model: nn.Module
    tokenizer: Any
    max_length: int
    source: dict[str, Any]


class CausalLM:
    """A transformers causal language model.

    Args:
        name: as in conf/model.
        hub: repository on the Hugging Face hub, or None.
        path: local folder to load from instead, or None; ``package:tiny`` is the model that zobench ships.
        weights: pretrained, or random at the shape of ``architecture`` (for memory and speed; nothing is downloaded).
        revision: of the hub repository, or None for its newest; what was resolved is recorded.
        architecture: transformers config values, with ``model_type``; needed for random weights.
        gradient_checkpointing: recompute activations in the backward pass (first-order methods only).
        attention: attention implementation of transformers.
    """

    def __init__(
        self,
        *,
        name: str,
        hub: str | None,
        path: str | None,
        weights: Literal["pretrained", "random"],
        revision: str | None,
        architecture: Mapping[str, Any] | None,
        gradient_checkpointing: bool,
        attention: Literal["sdpa", "eager", "flash_attention_2"],
    ) -> None:
        self.name, self.weights = name, weights
        self._hub, self._path, self._revision = hub, path, revision
        self._architecture = dict(architecture) if architecture else None
        self.gradient_checkpointing = gradient_checkpointing
        self.attention = attention

    def problems(self) -> list[str]:
        """What is wrong with the settings beyond their types."""
        if self.weights == "random":
            return [] if self._architecture else ["model.weights=random: needs model.architecture"]
        if self._path is None:
            return [] if self._hub else ["model.path: needs a folder, since model.hub names no repository"]
        folder = _folder(self._path)
        if not folder.is_dir():
            return [f"model.path={self._path}: no such folder"]
        if not (folder / "config.json").is_file():
            return [f"model.path={self._path}: holds no config.json, so it is no transformers model folder"]
        return []

    def load(self, device: torch.device, dtype: torch.dtype, seed: int) -> Loaded:
        """Build or load the model on ``device`` in ``dtype``, dropout off.

        Raises:
            ModelError: it cannot be had.
        """
        from transformers import AutoModelForCausalLM

        tokenizer, _ = self.load_tokenizer()
        try:
            config = _with_plain_logits(self._config())
            if self.weights == "random":
                with keyed_rng(seed, device), device:
                    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=self.attention)
                source: dict[str, Any] = {"random": self._architecture}
            else:
                where, revision = self._where
                model, report = AutoModelForCausalLM.from_pretrained(
                    where, revision=revision, config=config, dtype=dtype, attn_implementation=self.attention,
                    output_loading_info=True, ignore_mismatched_sizes=True,
                )  # fmt: skip
                _complete(report)
                source = {"path": self._path} if self._path else {"hub": self._hub, "revision": revision}
        except (torch.OutOfMemoryError, MemoryError):
            raise  # a result, not a broken model
        except Exception as error:  # transformers, the hub and safetensors raise a dozen kinds
            raise self._error(error) from error
        model.to(device)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            without_input_gradients(model)
            model.train()  # transformers checkpoints in train mode only; with dropout off that changes nothing else
        else:
            model.eval()
        source["fingerprint"] = fingerprint(model)
        return Loaded(model, tokenizer, int(config.max_position_embeddings), source)

    def load_tokenizer(self) -> tuple[Any, int]:
        """The fast tokenizer, and the longest row the model takes. With random weights and no path, the tokenizer
        of the model that zobench ships stands in: its ids exist in every vocabulary, its lengths are its own.

        Raises:
            ModelError: they cannot be had.
        """
        from transformers import AutoTokenizer

        try:
            stand_in = self.weights == "random" and self._path is None
            where, revision = (str(_folder(TINY_TOKENIZER)), None) if stand_in else self._where
            tokenizer = AutoTokenizer.from_pretrained(where, revision=revision)
            max_length = int(self._config().max_position_embeddings)
        except Exception as error:  # as in load
            raise self._error(error) from error
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(f"model {self.name}: {where} has no fast tokenizer, which finding option boundaries needs")
        return tokenizer, max_length

    @functools.cached_property
    def _where(self) -> tuple[str, str | None]:
        """Folder, or repository and the commit that its revision stands for now: found once, so that config, weights
        and tokenizer are of one commit."""
        if self._path is not None:
            return str(_folder(self._path)), None
        from transformers.utils import cached_file

        config = cached_file(str(self._hub), "config.json", revision=self._revision or "main")
        return str(self._hub), Path(str(config)).parent.name  # <cache>/models--.../snapshots/<commit>/config.json

    def _config(self) -> Any:
        from transformers import AutoConfig

        if self.weights == "random":
            assert self._architecture is not None
            settings = dict(self._architecture)
            return _without_dropout(AutoConfig.for_model(settings.pop("model_type"), **settings))
        where, revision = self._where
        return _without_dropout(AutoConfig.from_pretrained(where, revision=revision))

    def _error(self, error: Exception) -> ModelError:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = textwrap.shorten(lines[0], 300)  # transformers may list every architecture it knows
        if self.weights == "random":
            return ModelError(f"model {self.name}: cannot be built ({reason}); check model.architecture")
        hint = "check model.path" if self._path else "go online, log in, or point model.path at a local folder"
        return ModelError(
            f"model {self.name}: {_folder(self._path) if self._path else self._hub} cannot be loaded ({reason}); {hint}"
        )


def _complete(report: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that leaves tensors to chance: transformers would draw them at random and only log it.

    Raises:
        ValueError: tensors are missing or of another shape.
    """
    absent = sorted([*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])])
    if absent:
        raise ValueError(f"its weights lack {len(absent)} of the model's tensors or shapes, such as {absent[0]}")


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over name, shape and up to 64 evenly spaced values (float32) of every parameter: tells one set of
    weights from another without reading all of a large model."""
    digest = hashlib.sha256()
    for name, p in sorted(model.named_parameters()):
        flat = p.detach().reshape(-1)
        picked = flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES]
        digest.update(json.dumps([name, list(p.shape)]).encode())
        if not p.is_meta:  # which has shapes alone
            digest.update(picked.float().cpu().numpy().tobytes())
    return digest.hexdigest()


class keyed_rng(AbstractContextManager[None]):
    """Inside, torch's global RNG is seeded from (seed, INIT); afterwards it is as it was. For the initialisers of
    transformers and peft, which can draw from nothing else."""

    def __init__(self, seed: int, device: torch.device) -> None:
        devices = [device] if device.type == "cuda" else []
        self._fork = torch.random.fork_rng(devices=devices)
        self._seed = derive_key(seed, 0, 0, INIT)[0]

    def __enter__(self) -> None:
        self._fork.__enter__()
        torch.manual_seed(self._seed)

    def __exit__(self, *error: Any) -> None:
        self._fork.__exit__(*error)


def without_input_gradients(model: Any) -> None:
    """Undo what transformers and peft do for checkpointing: they make the embedding's output require grad, so that the
    graph reaches down to there even when only the last layers train. The kind without reentry does not need that."""
    if getattr(model, "_require_grads_hook", None) is not None:
        model.disable_input_require_grads()


def _folder(path: str) -> Path:
    if path.startswith(PACKAGED):
        return Path(__file__).parent / "assets" / path.removeprefix(PACKAGED)
    return Path(path)


def _with_plain_logits(config: Any) -> Any:
    """Raises ValueError where logits are more than the head's product with the hidden state, which is what we score."""
    for name in LOGIT_CHANGES:
        value = getattr(config, name, None)
        if value is not None and value != 1.0:
            raise ValueError(f"its config sets {name}={value}, which option scores do not know yet")
    return config


def _without_dropout(config: Any) -> Any:
    """Dropout off for good: the objective must be a function of weights and batch alone."""
    for key, value in config.to_dict().items():
        if "drop" in key and isinstance(value, float):
            setattr(config, key, 0.0)
    return config
