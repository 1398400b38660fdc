"""Language models: from the Hugging Face hub, a local folder, or random at the true shape."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from zobench import placement
from zobench.body import positions_of
from zobench.chat import Chat, ChatError
from zobench.checkpoint import complete, fingerprint, without_dropout
from zobench.determinism import recomputing
from zobench.head import check_logits
from zobench.keyed import keyed_rng
from zobench.tasks import encoding, masked
from zobench.tasks.base import Example
from zobench.tasks.encoding import Encoded
from zobench.tokenizer import TokenizerError, fast_tokenizer

PACKAGED = "package:"  # a path that starts so lies in zobench/assets
TINY_TOKENIZER = "package:tiny"


class ModelError(Exception):
    """A model that cannot be loaded; the message says which and what to do."""


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode, and what the record says of where it came from."""

    model: nn.Module
    source: dict[str, Any]


class LanguageModel:
    """A transformers language model; see `CausalLM` and `MaskedLM`.

    Args:
        name: as in conf/model.
        hub: repository on the Hugging Face hub, or None.
        path: local folder to load from instead, or None; ``package:tiny`` is the model that zobench ships.
        weights: pretrained, or random at the shape of ``architecture`` (for memory and speed; nothing is downloaded).
        revision: of the hub repository, or None for its newest; what was resolved is recorded.
        architecture: transformers config values, with ``model_type``; needed for random weights.
        gradient_checkpointing: recompute activations in the backward pass (first-order methods only).
        attention: attention implementation of transformers.
        attention_projections: names of the modules that make queries and values, which schemes adapt.
        chat_template: prompts become a user's turn in it, see `Chat`; None leaves them as they are.
        device_map: how accelerate lays a model over several GPUs, see `placement`; None is the run's device alone.
    """

    masked: bool  # whether it predicts a mask token from both sides, or the next token
    _auto: str  # the class of transformers that makes it

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
        attention_projections: Sequence[str] = (),
        chat_template: str | None = None,
        device_map: Literal["auto", "balanced"] | Mapping[str, Any] | None = None,
    ) -> None:
        self.name, self.weights = name, weights
        self._hub, self._path, self._revision = hub, path, revision
        self._architecture = dict(architecture) if architecture else None
        self.gradient_checkpointing = gradient_checkpointing
        self.attention = attention
        self.attention_projections = tuple(attention_projections)
        self._chat = None if chat_template is None else Chat(chat_template)
        self.device_map = device_map

    def problems(self) -> list[str]:
        """What is wrong with the settings beyond their types."""
        found = [] if self._chat is None else self._chat.problems()
        found += [] if self.device_map is None else placement.problems(self.device_map)
        if self.weights == "random":
            return found if self._architecture else [*found, "model.weights=random: needs model.architecture"]
        if self._path is None:
            return found if self._hub else [*found, "model.path: needs a folder, since model.hub names no repository"]
        folder = _folder(self._path)
        if not folder.is_dir():
            return [*found, f"model.path={self._path}: no such folder"]
        if not (folder / "config.json").is_file():
            return [*found, f"model.path={self._path}: holds no config.json, so it is no transformers model folder"]
        return found

    def shown(self, tokenizer: Any, examples: Sequence[Example]) -> list[Example]:
        """Examples with their prompts as this model is to see them.

        Raises:
            ModelError: the chat template fails.
        """
        if self._chat is None:
            return list(examples)
        try:
            return self._chat.applied(tokenizer, examples)
        except ChatError as error:
            raise ModelError(f"model {self.name}: {error}") from error

    def encode(self, tokenizer: Any, examples: Sequence[Example], max_length: int, **how: Any) -> list[Encoded]:
        """Examples that are `shown` as token ids; ``how``: see `encoding.encode`, for causal models.

        Raises:
            DataError: see `encoding.encode` and `masked.encode`. ModelError: see `shown`.
        """
        return self._encode(tokenizer, self.shown(tokenizer, examples), max_length, **how)

    def _encode(self, tokenizer: Any, examples: Sequence[Example], max_length: int, **how: Any) -> list[Encoded]:
        return encoding.encode(tokenizer, examples, max_length, **how)

    def load(self, device: torch.device, dtype: torch.dtype, seed: int) -> Loaded:
        """Build or load the model in ``dtype``, straight on ``device`` or where ``device_map`` says; dropout off.

        Raises:
            ModelError: it cannot be had, or its logits are no function of each token's own.
        """
        import transformers

        auto = getattr(transformers, self._auto)
        on = placement.of(self.device_map, device)
        model: Any
        try:
            config = self._config()
            settings = {"config": config, "dtype": dtype, "attn_implementation": self.attention}
            if self.weights == "random":
                with keyed_rng(seed, device):
                    model = placement.random(auto, on, device, **settings)
                source: dict[str, Any] = {"random": self._architecture}
            else:
                where, revision = self._where
                model, report = auto.from_pretrained(
                    where, revision=revision, device_map=on, output_loading_info=True, ignore_mismatched_sizes=True,
                    **settings,
                )  # fmt: skip
                complete(report)
                source = {"path": self._path} if self._path else {"hub": self._hub, "revision": revision}
            placement.check_room(model, device)
            check_logits(model.eval())
        except (torch.OutOfMemoryError, MemoryError):
            raise  # a result, not a broken model
        except Exception as error:  # transformers, the hub and safetensors raise a dozen kinds
            raise self._error(error) from error
        self.prepare(model)
        source["fingerprint"] = fingerprint(model)
        return Loaded(model, source)

    def prepare(self, model: Any) -> None:
        """Gradient checkpointing on if it was asked for, else evaluation mode."""
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": recomputing})
            without_input_gradients(model)
            model.train()  # transformers checkpoints in train mode only; with dropout off that changes nothing else
        else:
            model.eval()

    def skeleton(self) -> nn.Module:
        """The model without its weights, on torch's meta device: to look at names and shapes.

        Raises:
            ModelError: its config cannot be had.
        """
        import transformers

        try:
            with torch.device("meta"):
                model: nn.Module = getattr(transformers, self._auto).from_config(self._config())
        except Exception as error:  # as in load
            raise self._error(error) from error
        return model

    def load_tokenizer(self) -> tuple[Any, int]:
        """The fast tokenizer, and the longest row the model takes. With random weights and no path, the tokenizer
        of the model that zobench ships stands in: its ids must exist in the vocabulary, its lengths are its own.

        Raises:
            ModelError: they cannot be had, or the tokenizer lacks what this kind of model needs.
        """
        try:
            stand_in = self.weights == "random" and self._path is None
            where, revision = (str(_folder(TINY_TOKENIZER)), None) if stand_in else self._where
            max_length = self._max_length()  # of the config, whose faults would pass for the tokenizer's
            tokenizer = fast_tokenizer(where, revision)
        except TokenizerError as error:
            raise ModelError(f"model {self.name}: {error}") from error
        except Exception as error:  # as in load
            raise self._error(error) from error
        if self.masked and tokenizer.mask_token is None:
            if not stand_in:
                raise ModelError(f"model {self.name}: {where} has a tokenizer without a mask token")
            tokenizer.add_special_tokens({"mask_token": "<mask>"})
        if stand_in and (n := self._config().vocab_size) < len(tokenizer):
            raise ModelError(f"model {self.name}: vocab_size={n}, but the stand-in tokenizer has {len(tokenizer)} ids")
        return tokenizer, max_length

    def _max_length(self) -> int:
        return int(self._config().max_position_embeddings)

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
            return without_dropout(AutoConfig.for_model(settings.pop("model_type"), **settings))
        where, revision = self._where
        return without_dropout(AutoConfig.from_pretrained(where, revision=revision))

    def _error(self, error: Exception) -> ModelError:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = textwrap.shorten(lines[0], 300)  # transformers may list every architecture it knows
        if self.weights == "random":
            return ModelError(f"model {self.name}: cannot be built ({reason}); check model.architecture")
        hint = "check model.path" if self._path else "go online, log in, or point model.path at a local folder"
        return ModelError(
            f"model {self.name}: {_folder(self._path) if self._path else self._hub} cannot be loaded ({reason}); {hint}"
        )


class CausalLM(LanguageModel):
    """A model that predicts the next token. Arguments: see `LanguageModel`."""

    masked = False
    _auto = "AutoModelForCausalLM"


class MaskedLM(LanguageModel):
    """A model that predicts a mask token from both sides.

    Args:
        append_eos: whether rows end with the end-of-sequence token although the tokenizer does not add it.
        settings: see `LanguageModel`.
    """

    masked = True
    _auto = "AutoModelForMaskedLM"

    def __init__(self, *, append_eos: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        self._append_eos = append_eos

    def problems(self) -> list[str]:
        """See `LanguageModel`."""
        found = super().problems()
        if self._chat is not None:
            found.append(f"model.chat_template={self._chat.template}: is for causal models, and {self.name} is masked")
        return found

    def _encode(self, tokenizer: Any, examples: Sequence[Example], max_length: int, **_: Any) -> list[Encoded]:
        return masked.encode(tokenizer, examples, max_length, append_eos=self._append_eos)

    def _max_length(self) -> int:
        """Some tables of positions begin with rows for padding."""
        found = super()._max_length()
        skeleton: Any = self.skeleton()
        table = positions_of(getattr(skeleton, skeleton.base_model_prefix))
        return found if table is None else min(found, table.num_embeddings - int(table.padding_idx or 0) - 1)


def without_input_gradients(model: Any) -> None:
    """Undo what transformers and peft do for checkpointing: they make the embedding's output require grad, so that the
    graph reaches down to there even when only the last layers train. The kind without reentry does not need that."""
    if getattr(model, "_require_grads_hook", None) is not None:
        model.disable_input_require_grads()


def _folder(path: str) -> Path:
    if path.startswith(PACKAGED):
        return Path(__file__).parent / "assets" / path.removeprefix(PACKAGED)
    return Path(path)
