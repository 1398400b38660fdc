"""Pretrain a small language model from scratch on a folder of text files: how lab models are made.

    python -m runners.pretrain --text DIR --model opt-lab --out DIR --seconds 420

``--model`` names a yaml of conf/model: its ``architecture`` is the shape, and its class says whether the next token is
predicted (OPT, LLaMA, ...) or masked ones (RoBERTa). ``--text``: every ``*.txt`` below the folder is a document, UTF-8.
A byte-level BPE is trained on it, unless ``--tokenizer`` names the folder of a model whose tokenizer is taken; models
that are to be compared should share one. --out becomes a transformers folder in bfloat16, with pretraining.json: how
long, how far, and the loss on text held out. It is used with ``model=opt-lab model.path=DIR``. See docs/lab-models.md.

On a GPU the forward is in bfloat16 and the weights in float32; a CPU will do for a few steps of a small shape. The
logits bound --batch-size: its rows times --length times the vocabulary, several times over in float32.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from transformers import AutoTokenizer

from runners import corpus, pretraining
from runners.composition import CONF
from runners.device import device_of
from runners.pretraining import BOS, EOS, MASK, PAD, Course, Examples, MaskedTokens, next_token
from zobench.config import ConfigError, locate, unknown
from zobench.models import LanguageModel, ModelError

SPECIAL = {"unk_token": "<unk>", "mask_token": MASK, "cls_token": BOS, "sep_token": EOS}


def parse_args(arguments: list[str]) -> argparse.Namespace:
    """The command line; the defaults are those of a lab model but for the length of its training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="folder with *.txt, at any depth")
    parser.add_argument("--model", required=True, help="of conf/model: whose architecture")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model; existing files are replaced")
    parser.add_argument("--tokenizer", type=Path, help="folder of a model whose tokenizer is taken; default: train one")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--seconds", type=float, help="of training")
    length.add_argument("--steps", type=int, help="of AdamW")
    parser.add_argument("--batch-size", type=int, default=192, help="rows a step; default: %(default)s")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row; default: %(default)s")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak; 5 %% warmup, then cosine to zero; %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser.parse_args(arguments)


def problems(args: argparse.Namespace) -> list[str]:
    """What is wrong with the command line, before anything is read."""
    found = [] if args.text.is_dir() else [f"--text {args.text}: no such folder"]
    names = [path.stem for path in CONF.glob("model/*.yaml") if OmegaConf.load(path).architecture is not None]
    if args.model not in names:
        found.append(unknown("--model", args.model, names))
    for name in ("seconds", "steps", "batch_size", "lr"):
        value = getattr(args, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            found.append(f"--{name.replace('_', '-')} {value}: must be positive")
    if args.length < 4:
        found.append(f"--length {args.length}: must be at least 4")
    if not 0 <= args.seed < 2**32:
        found.append(f"--seed {args.seed}: must be in [0, {2**32 - 1}]")
    if args.tokenizer is not None and not (args.tokenizer / "tokenizer.json").is_file():
        found.append(f"--tokenizer {args.tokenizer}: holds no tokenizer.json")
    _, why = device_of(args.device)
    if why is not None:
        found.append(f"--{why}")
    above = next((folder for folder in (args.out, *args.out.parents) if folder.exists()), Path())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        found.append(f"--out {args.out}: cannot be written")
    return found


def model_of(name: str, **architecture: Any) -> LanguageModel:
    """The model of conf/model, with random weights at its shape but for the values given."""
    settings: Any = OmegaConf.to_container(OmegaConf.load(CONF / "model" / f"{name}.yaml"))
    settings |= {"weights": "random", "architecture": {**settings["architecture"], **architecture}}
    model: LanguageModel = locate(settings.pop("_target_"))(**settings)
    return model


def tokenizer_of(args: argparse.Namespace, files: list[Path], vocab_size: int) -> Any:
    """The tokenizer asked for, or one trained on the text.

    Raises:
        ConfigError: its special tokens are not where those of the lab models are.
    """
    if args.tokenizer is None:
        texts = chain.from_iterable(map(corpus.pieces, files))
        return pretraining.train_tokenizer(texts, vocab_size, args.length, SPECIAL)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    there = [tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id]
    if there != [0, 1, 2] or tokenizer("")["input_ids"] != [0]:
        raise ConfigError([f"--tokenizer {args.tokenizer}: {BOS}, {PAD}, {EOS} must be 0, 1, 2 and {BOS} come first"])
    if tokenizer.mask_token_id is None:
        raise ConfigError([f"--tokenizer {args.tokenizer}: has no mask token"])
    return tokenizer


def run(arguments: list[str]) -> dict[str, Any]:
    """Tokenizer, rows, training, folder; returns what pretraining.json holds.

    Raises:
        ConfigError: with all that is wrong with the command line, or what is with the text. ModelError: the shape
            cannot be built. FloatingPointError: the loss is no number any more.
    """
    args = parse_args(arguments)
    if found := problems(args):
        raise ConfigError(found)
    files = corpus.text_files(args.text, args.seed)
    device, _ = device_of(args.device)
    asked = model_of(args.model)
    _, longest = asked.load_tokenizer()
    if args.length > longest:
        raise ConfigError([f"--length {args.length}: {args.model} takes rows of at most {longest} tokens"])
    skeleton: Any = asked.skeleton()
    tokenizer = tokenizer_of(args, files, skeleton.config.vocab_size)
    training, held_out = corpus.pack(files, tokenizer, args.length, closed=asked.masked)
    if len(training) < args.batch_size:
        raise ConfigError([f"--batch-size {args.batch_size}: the text makes {len(training)} rows of {args.length}"])
    print(f"{len(files):,} files, {training.numel():,} tokens to train on, vocabulary {len(tokenizer):,}", flush=True)

    shape = model_of(args.model, vocab_size=len(tokenizer), bos_token_id=0, pad_token_id=1, eos_token_id=2)
    model: Any = shape.load(device, torch.float32, args.seed).model
    course = Course(lr=args.lr, steps=args.steps, seconds=args.seconds)
    rows = pretraining.batches(training, args.batch_size, args.seed)
    made = pretraining.train(model.train(), rows, _examples(asked.masked, tokenizer, args.seed), course, device)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.bfloat16())  # as it will be loaded
    examples = _examples(asked.masked, tokenizer, args.seed)
    loss = pretraining.held_out_loss(model.eval(), held_out, args.batch_size, examples, device)

    args.out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    record = {
        "arch": model.config.model_type, "params": model.num_parameters(), "tokens_seen": made.n_token,
        "steps": made.steps, "held_out_loss": loss, "seconds": round(made.seconds, 1), "log": made.log,
        "text_tokens": training.numel(), "command": shlex.join(["python", "-m", "runners.pretrain", *arguments]),
        "torch": torch.__version__, "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }  # fmt: skip
    (args.out / "pretraining.json").write_text(json.dumps(record), encoding="utf-8")
    return record


def _examples(masked: bool, tokenizer: Any, seed: int) -> Examples:
    if not masked:
        return next_token
    return MaskedTokens(tokenizer.mask_token_id, max(tokenizer.all_special_ids) + 1, len(tokenizer), seed)


def main() -> None:
    """Exit codes: 0, 1 when the training failed, 2 for a command that cannot be run."""
    try:
        made = run(sys.argv[1:])
    except ConfigError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    except (ModelError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    print(json.dumps({key: made[key] for key in ("held_out_loss", "params", "steps", "tokens_seen", "seconds")}))


if __name__ == "__main__":
    main()
