"""Make the tiny model that the tests, the demo and the continuous integration fine-tune.

    python -m runners.pretrain_tiny --out zobench/assets/tiny

Writes the unlabelled text of ``zobench.tasks.toy.corpus``, trains a byte-level BPE tokenizer on it and pretrains a
small OPT-architecture model from scratch on the CPU, in float32; about 3 minutes on one core. Deterministic: the text
and the batch order are keyed by ``--seed``, the initial weights by a forked RNG. The same torch version, CPU type and
number of threads give the same weights bit for bit; elsewhere the order of float additions differs.

Why pretrain at all: ZO fine-tuning of random weights goes nowhere. What makes MeZO work is that a pretrained model
already separates the classes, and the task only has to be connected to the options.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from zobench.engine import stream
from zobench.tasks import toy

BOS, PAD, EOS = "<s>", "<pad>", "</s>"  # ids 0, 1, 2, like OPT's
MAX_LENGTH = 128
N_HELD_OUT = 1000


def parse_args() -> argparse.Namespace:
    """The command line; the defaults made the checkpoint that ships."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint; existing files are replaced")
    parser.add_argument("--documents", type=int, default=60_000, help="pretraining reviews")
    parser.add_argument("--steps", type=int, default=1500, help="AdamW steps")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3, help="peak; 5 %% warmup, then cosine to zero")
    parser.add_argument("--vocab-size", type=int, default=1024, help="at most; all bytes, then merges")
    parser.add_argument("--hidden", type=int, default=96)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument(
        "--init-std", type=float, default=0.06, help="of the initial weights; OPT's 0.02 is for wide layers"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; the exact bits depend on them")
    return parser.parse_args()


def train_tokenizer(documents: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE like GPT-2's (a word carries its leading space, any text can be encoded) that puts <s> first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        pad_token=PAD,
        eos_token=EOS,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def check_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    """What the toy task's prompt relies on.

    Raises:
        ValueError: an option is not one token, or the prompt's tokens do not start those of prompt and option.
    """
    prompt = toy.generate("validation")[0]["sentence"] + " It was"
    prompt_ids = tokenizer(prompt)["input_ids"]
    if tokenizer.convert_tokens_to_ids([BOS, PAD, EOS]) != [0, 1, 2] or prompt_ids[0] != 0:
        raise ValueError("the special tokens must have ids 0, 1, 2, and <s> must come first")
    for option in toy.OPTIONS:
        ids = tokenizer(f"{prompt} {option}")["input_ids"]
        if ids[:-1] != prompt_ids:
            raise ValueError(f"' {option}' is not one token after the prompt; raise --vocab-size")


def encode(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> list[torch.Tensor]:
    """Token ids of each document, <s> ... </s>, cut to the model's length."""
    ids = tokenizer(documents)["input_ids"]
    return [torch.tensor([*row, tokenizer.eos_token_id][:MAX_LENGTH]) for row in ids]


def batches(rows: list[torch.Tensor], batch_size: int, seed: int) -> Iterator[torch.Tensor]:
    """Endless batches, (batch, longest) ids padded on the right; every epoch in an order of its own."""
    epoch = 0
    while True:
        order: list[int] = stream.generator(seed, epoch, stream.BATCHES).permutation(len(rows)).tolist()
        for start in range(0, len(order) - batch_size + 1, batch_size):
            chosen = [rows[i] for i in order[start : start + batch_size]]
            yield torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=1)
        epoch += 1


def lm_loss(model: OPTForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross-entropy. Causal attention needs no mask, as all padding is on the right."""
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=1)


def make_model(args: argparse.Namespace, vocab_size: int) -> OPTForCausalLM:
    """A small OPT with random weights; the caller's global RNG stays as it was."""
    config = OPTConfig(
        vocab_size=vocab_size, hidden_size=args.hidden, word_embed_proj_dim=args.hidden, ffn_dim=4 * args.hidden,
        num_hidden_layers=args.layers, num_attention_heads=args.heads, max_position_embeddings=MAX_LENGTH,
        dropout=0.0, attention_dropout=0.0, layerdrop=0.0, init_std=args.init_std, tie_word_embeddings=True,
        bos_token_id=0, pad_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream.derive_key(args.seed, purpose=stream.INIT)[0])
        return OPTForCausalLM(config)


def pretrain(model: OPTForCausalLM, rows: list[torch.Tensor], args: argparse.Namespace) -> None:
    """AdamW with warmup and cosine decay."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    stream_of_batches = batches(rows, args.batch_size, args.seed)
    started = time.perf_counter()
    for step in range(args.steps):
        warmup = max(1, args.steps // 20)
        scale = min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / args.steps)))
        for group in optimizer.param_groups:
            group["lr"] = args.lr * scale
        loss = lm_loss(model, next(stream_of_batches))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step:5d}  loss {loss.item():.4f}  {time.perf_counter() - started:.0f} s", flush=True)


@torch.no_grad()
def held_out_loss(model: OPTForCausalLM, rows: list[torch.Tensor], batch_size: int) -> float:
    """Mean loss per token of documents that were not trained on."""
    pieces = [torch.nn.utils.rnn.pad_sequence(rows[i : i + batch_size], batch_first=True, padding_value=1)
              for i in range(0, len(rows), batch_size)]  # fmt: skip
    n_tokens = np.array([int((ids[:, 1:] != 1).sum()) for ids in pieces])
    losses = np.array([lm_loss(model, ids).item() for ids in pieces])
    return float((losses * n_tokens).sum() / n_tokens.sum())


README = """\
# tiny

An OPT-architecture language model of {n_parameters:,} parameters ({layers} layers, hidden {hidden}, {heads} heads,
vocabulary {vocab}, float32), pretrained from scratch on text generated by `zobench.tasks.toy.corpus`: {documents:,}
short reviews without labels. It knows that text and nothing else; it exists so that tests and demo need no download.

- Made with `{command}`, torch {torch}, {threads} CPU thread(s).
- Tokenizer: byte-level BPE trained on the same text; `<s>` (0) comes first by itself, `<pad>` is 1, `</s>` is 2.
- Held-out loss: {loss:.3f} nats a token on {held_out:,} further reviews (uniform: {uniform:.3f}).
- The text uses the words and templates of both splits of the toy task, so the polarity of every word can be learned
  from it (and some of the task's sentences occur in it by coincidence, without their labels). After "It was",
  though, the nouns of the review decide between "great" and "terrible", not its polarity: zero-shot accuracy is near
  chance, and connecting the polarity to these two words is left to fine-tuning.
"""


def main() -> None:
    """Text, tokenizer, model, checkpoint."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    documents = toy.corpus(args.documents + N_HELD_OUT, args.seed)
    training, held_out = documents[: args.documents], documents[args.documents :]
    tokenizer = train_tokenizer(training, args.vocab_size)
    check_tokenizer(tokenizer)
    model = make_model(args, len(tokenizer)).train()
    pretrain(model, encode(tokenizer, training), args)
    loss = held_out_loss(model.eval(), encode(tokenizer, held_out), args.batch_size)

    args.out.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(bos_token_id=0, pad_token_id=1, eos_token_id=2, max_length=MAX_LENGTH)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    readme = README.format(
        n_parameters=model.num_parameters(), layers=args.layers, hidden=args.hidden, heads=args.heads,
        vocab=len(tokenizer), documents=args.documents, held_out=N_HELD_OUT, loss=loss,
        uniform=math.log(len(tokenizer)), torch=torch.__version__, threads=args.threads,
        command=shlex.join(["python", "-m", "runners.pretrain_tiny", *sys.argv[1:]]),
    )  # fmt: skip
    (args.out / "README.md").write_text(readme, encoding="utf-8")
    print(json.dumps({"held_out_loss": round(loss, 4), "n_parameters": model.num_parameters()}))


if __name__ == "__main__":
    main()
