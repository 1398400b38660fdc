"""What the device must be told for a plan, in one copy: values of sweeps, their programs, batches of forwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zobench.engine.cuda_kernels import PARAM_WORDS
from zobench.engine.cuda_resolve import HEADER_WORDS
from zobench.engine.program import CODE_WORDS, OUT_WORDS, Program

WORDS = 1 << 16  # int32, that the buffers have room for at first
BUFFERS = 8  # on the host: so many plans may be under way at a time

Place = tuple[int, int, torch.dtype, tuple[int, ...]]  # first byte, bytes, dtype and shape of a tensor


@dataclass
class Page:
    """The content of a feed for one plan. The first part lies at the same places in all plans of one signature:
    headers of the sweeps, slots of the losses, values, tensors. The rest, programs, is found by the headers.

    headers, values: first words, by sweep; slots: word of the first loss's slot; tensors: places, by batch and name.
    """

    headers: list[int] = field(default_factory=list)
    values: list[int] = field(default_factory=list)
    slots: int = 0
    tensors: list[dict[str, Place]] = field(default_factory=list)


class Feed:
    """Buffers on the host (pinned) and one on the device, which grow as plans need it. ``device_words``: (words,)
    int32 on the device; ``grown``: how often it has become another."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.grown = -1
        self._next = 0
        self._grow(WORDS)

    def send(
        self, values: Sequence[npt.NDArray[np.int32]], programs: Sequence[Program], slots: Sequence[int],
        batches: Sequence[Mapping[str, Tensor]],
    ) -> Page:  # fmt: skip
        """Copy a plan to the device, in the order of its stream: after the call, kernels read it there.

        The buffer on the host is that of `BUFFERS` calls before, whose copy must be done.

        Args:
            values, programs: of each sweep.
            slots: of each loss.
            batches: tensors on the host.
        """
        page, at = Page(), 0
        for _ in values:
            page.headers.append(at)
            at += HEADER_WORDS
        page.slots, at = at, _up(at + len(slots), PARAM_WORDS)
        for rows in values:
            page.values.append(at)
            at += rows.size
        for batch in batches:
            places: dict[str, Place] = {}
            for name, tensor in batch.items():
                at = _up(at, 4)  # kernels may read 16 bytes at once
                places[name] = 4 * at, tensor.nbytes, tensor.dtype, tuple(tensor.shape)
                at += -(-tensor.nbytes // 4)
            page.tensors.append(places)
        at = _up(at, 2)
        parts = [(len(p.work) * 2, p.work, len(p.code), p.code, len(p.outs), p.outs) for p in programs]
        needed = at + sum(n_work + n_code + n_out + 1 for n_work, _, n_code, _, n_out, _ in parts)
        if needed > len(self.device_words):
            self._grow(needed)
        host = self._hosts[self._next]
        words, doubles, octets = (array[self._next] for array in (self._words, self._doubles, self._bytes))
        self._next = (self._next + 1) % BUFFERS
        words[page.slots : page.slots + len(slots)] = slots
        for first, rows in zip(page.values, values, strict=True):
            words[first : first + rows.size] = rows.reshape(-1)
        for batch, places in zip(batches, page.tensors, strict=True):
            for name, (first, size, _, _) in places.items():
                octets[first : first + size] = batch[name].contiguous().numpy().reshape(-1).view(np.uint8)
        for header, (n_work, work, n_code, code, n_out, outs) in zip(page.headers, parts, strict=True):
            doubles[at // 2 : (at + n_work) // 2] = work
            code_at, out_at = at + n_work, at + n_work + n_code
            words[code_at:out_at] = code
            words[out_at : out_at + n_out] = outs
            head = code_at, n_code // CODE_WORDS, at // 2, out_at, n_out // OUT_WORDS
            words[header : header + len(head)] = head
            at = _up(out_at + n_out, 2)
        self.device_words[:at].copy_(host[:at], non_blocking=True)
        return page

    def tensors(self, places: Mapping[str, Place]) -> dict[str, Tensor]:
        """Those of a batch, on the device, for as long as the page is there."""
        octets = self.device_words.view(torch.uint8)
        return {
            name: octets[first : first + size].view(dtype).view(shape)
            for name, (first, size, dtype, shape) in places.items()
        }

    def _grow(self, needed: int) -> None:
        n = max(WORDS, 1 << (needed - 1).bit_length())
        pinned = self._device.type == "cuda"
        self.device_words = torch.zeros(n, dtype=torch.int32, device=self._device)
        self._hosts = [torch.zeros(n, dtype=torch.int32, pin_memory=pinned) for _ in range(BUFFERS)]
        self._words = [host.numpy() for host in self._hosts]
        self._doubles = [words.view(np.float64) for words in self._words]
        self._bytes = [words.view(np.uint8) for words in self._words]
        self.grown += 1


def _up(words: int, to: int) -> int:
    return -(-words // to) * to
