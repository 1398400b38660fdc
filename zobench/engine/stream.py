"""The definition of the noise: z is a pure function of (seed, step, probe, tensor, element).

Every engine (``cpu.py``, ``cuda.py``) implements what this file defines; the numpy functions here are the
reference that tests compare them with. Nothing reads or sets a global RNG.

Counter-based generator: Philox4x32-10 (Salmon et al., SC 2011, "Parallel Random Numbers: As Easy as 1, 2, 3").

* key (2 words of 32 bits): the first two words of Philox at counter (seed, step, probe, purpose) under a constant key,
  so streams that differ in any of the four are independent, and a kernel needs only two words a stream.
* counter (4 words): (i // 8, 0, tensor id low, tensor id high) for elements 8 (i // 8) ... 8 (i // 8) + 7. The tensor
  id is a hash of the tensor's name, so z depends neither on parameter order nor on what else is trainable.
* gaussian: word w of the 4 gives elements 2w and 2w + 1 by Box-Muller with 16-bit arguments:
  radius sqrt(-2 ln((low half + 1/2) / 2^16)), angle (high half as int16 + 1/2) pi / 2^15; cosine first, sine second.
  Variance 1 - 5.3e-6 (the mean of -ln over the 2^16 midpoints is 1 - ln 2 / 2^17), largest value 4.86.
* rademacher: word w gives elements 2w (its bit 15) and 2w + 1 (its bit 31): bit set is -1, clear is +1.
* rounding and mask bits: word w gives elements 2w (low half) and 2w + 1 (high half), 16 bits each.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
import numpy.typing as npt

NOISE_VERSION = 1  # written to every record; changes whenever the same key would give another z

Distribution = Literal["gaussian", "rademacher"]
Key = tuple[int, int]

# purposes: the fourth word of a key's derivation
NOISE, ROUNDING, BATCHES, SPLITS, INIT, MASKS, BLOCKS, DEMONSTRATIONS = range(8)

M0, M1 = 0xD2511F53, 0xCD9E8D57  # multipliers of Philox4x32
W0, W1 = 0x9E3779B9, 0xBB67AE85  # Weyl increments of its key
ROUNDS = 10
_DOMAIN: Key = (0x7A6F6265, 0x6E636821)
_MASK = 0xFFFFFFFF


def philox_words(counter: tuple[int, int, int, int], key: Key) -> tuple[int, int, int, int]:
    """Philox4x32-10 of one counter, in Python integers: four words in [0, 2^32)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        p0, p1 = M0 * c0, M1 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + W0) & _MASK, (k1 + W1) & _MASK
    return c0, c1, c2, c3


def derive_key(seed: int, step: int = 0, probe: int = 0, purpose: int = NOISE) -> Key:
    """The two key words of a stream.

    Raises:
        ValueError: a part is negative or does not fit in 32 bits.
    """
    parts = (seed, step, probe, purpose)
    for name, part in zip(("seed", "step", "probe", "purpose"), parts, strict=True):
        if not 0 <= part <= _MASK:
            raise ValueError(f"{name}={part}: must be in [0, {_MASK}]")
    words = philox_words(parts, _DOMAIN)
    return words[0], words[1]


def tensor_id(name: str) -> int:
    """64-bit id of a tensor: the first 8 bytes, little-endian, of the SHA-256 of its name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def generator(seed: int, step: int = 0, purpose: int = BATCHES) -> np.random.Generator:
    """A numpy generator of its own for host-side draws (batch order, splits), keyed like the noise."""
    k0, k1 = derive_key(seed, step, 0, purpose)
    return np.random.Generator(np.random.Philox(key=[k0, k1]))


# ---- reference, in numpy -------------------------------------------------------------------------------------------


def words(key: Key, tensor: int, n: int) -> npt.NDArray[np.uint32]:
    """Random words of one tensor: (ceil(n / 8), 4) uint32, row c for elements 8c ... 8c + 7."""
    blocks = -(-n // 8)
    mask = np.uint64(_MASK)
    c0 = np.arange(blocks, dtype=np.uint64)
    c1 = np.zeros(blocks, dtype=np.uint64)
    c2 = np.full(blocks, tensor & _MASK, dtype=np.uint64)
    c3 = np.full(blocks, tensor >> 32, dtype=np.uint64)
    k0, k1 = key
    for _ in range(ROUNDS):
        p0, p1 = np.uint64(M0) * c0, np.uint64(M1) * c2
        shift = np.uint64(32)
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ np.uint64(k0), p1 & mask, (p0 >> shift) ^ c3 ^ np.uint64(k1), p0 & mask
        k0, k1 = (k0 + W0) & _MASK, (k1 + W1) & _MASK
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def tables() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """All radii, (65536,) float32 by low half, and all (cosine, sine), (65536, 2) float32 by high half."""
    u = np.arange(65536, dtype=np.float64)
    radius = np.sqrt(-2.0 * np.log((u + 0.5) / 65536.0))
    angle = (np.arange(65536, dtype=np.uint16).view(np.int16).astype(np.float64) + 0.5) * (np.pi / 32768.0)
    return radius.astype(np.float32), np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def noise(key: Key, tensor: int, n: int, distribution: Distribution = "gaussian") -> npt.NDArray[np.float32]:
    """z of the first n elements of one tensor: (n,) float32."""
    w = words(key, tensor, n)
    if distribution == "rademacher":
        bits = np.stack([(w >> np.uint32(15)) & np.uint32(1), w >> np.uint32(31)], axis=2)
        return (1.0 - 2.0 * bits.astype(np.float32)).reshape(-1)[:n].astype(np.float32)
    radius, trig = tables()
    z: npt.NDArray[np.float32] = radius[w & np.uint32(0xFFFF)][:, :, None] * trig[w >> np.uint32(16)]
    return z.reshape(-1)[:n]


def bits(key: Key, tensor: int, n: int) -> npt.NDArray[np.uint32]:
    """16 random bits an element, to round with or to draw a mask: (n,) uint32 in [0, 65536)."""
    w = words(key, tensor, n)
    return np.stack([w & np.uint32(0xFFFF), w >> np.uint32(16)], axis=2).reshape(-1)[:n].astype(np.uint32)
