"""Whether a run fits the memory of its GPU, said before it starts."""

from __future__ import annotations

import torch

from zobench.models import ModelError
from zobench.profile.memory import predict
from zobench.run import Bench
from zobench.tasks.encoding import Encoded

GIB = 2**30


def room(device: torch.device) -> int | None:
    """Bytes of a GPU that this process has or can get; None of a CPU, whose memory others share."""
    if device.type != "cuda":
        return None
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)


def memory_line(bench: Bench, free: int) -> str | None:
    """What a step on the longest rows takes at most, and whether that fits ``free`` bytes; None where it cannot be
    said. Evaluations are not looked at."""
    try:
        peak = predict(bench.spec, longest(bench)).peak
    except (ModelError, ValueError):
        return None
    fits = "fits" if peak <= free else "does not fit; smaller: batch_size, micro_batch_size, task.max_length, model"
    return f"{peak / GIB:.3f} GiB at most in a step, predicted; {free / GIB:.3f} GiB are free: {fits}"


def longest(bench: Bench) -> list[Encoded]:
    """As many training rows as a minibatch has, those with the most tokens."""
    rows = sorted(bench.data["train"], key=_n_token, reverse=True)
    return (rows * -(-bench.spec.batch_size // len(rows)))[: bench.spec.batch_size]


def _n_token(row: Encoded) -> int:
    return len(row.prompt_ids) + max(len(option) for option in row.option_ids)
