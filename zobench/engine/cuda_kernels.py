"""The Triton kernels of `cuda.CudaEngine`: sweeps over tables of tensors, and the noise of `stream` in registers.

Shapes: N = BLOCK / 8 counters a step; "eight" is a tuple of eight (N,) tensors, one for each element of a counter.
Compile-time arguments: ``dtype`` of the weights; ``real``, the dtype of sums (float64 for float64 weights, else
float32); NATIVE, false in Triton's interpreter, which runs neither inline assembly nor bfloat16 as the hardware does.
"""
# Triton's launcher has a local named params, so no kernel argument may be called that.
# Triton reads these functions' source, types their arguments at the first launch and gives `if` on constants no scope:
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"

from __future__ import annotations

import triton
import triton.language as tl

from zobench.engine import stream

ROW_WORDS = 4  # int64, of a tensor's row: address of the weight, address of the master (or 0), numel, noise id
PARAM_WORDS = 8  # int32, of a stream's row: key (2), (coef, commit) in float32 (2) and in float64 (4)

_ROW = tl.constexpr(ROW_WORDS)
_PARAM = tl.constexpr(PARAM_WORDS)
_M0 = tl.constexpr(stream.M0)
_M1 = tl.constexpr(stream.M1)
_W0 = tl.constexpr(stream.W0)
_W1 = tl.constexpr(stream.W1)
_ROUNDS = tl.constexpr(stream.ROUNDS)
# A 16-bit half h under these bits is the float 2^23 + h: a bit operation, where a conversion would take its turn on the
# special-function units, which two streams fill. Then (2^23 + h) SCALE + SHIFT = (h + 1/2) / 2^16, without rounding.
_MAGIC = tl.constexpr(0x4B000000)
_SCALE = tl.constexpr(2.0**-16)
_SHIFT = tl.constexpr(2.0**-17 - 128.0)
_PI = tl.constexpr(3.141592653589793)
# sqrt(-2 ln u) = sqrt(2 ln 2) sqrt(-log2 u). Negative, because angles are taken pi lower, to lie in (-pi, pi).
_UNIT = tl.constexpr(-1.1774100225154747)


@triton.jit
def _words(c0, low, high, k0, k1):
    """Philox4x32-10 at counters (c0, 0, low, high): four words, uint32, from c0 uint32 (N,) and uint32 scalars.

    Half the work of the first two rounds is on scalars, once a program; 64-bit products are one instruction each.
    """
    c1 = tl.full([], 0, tl.uint32)
    c2 = low
    c3 = high
    for _ in tl.static_range(_ROUNDS):
        p0 = c0.to(tl.uint64) * _M0
        p1 = c2.to(tl.uint64) * _M1
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = p1.to(tl.uint32)
        c3 = p0.to(tl.uint32)
        k0 = k0 + _W0
        k1 = k1 + _W1
    return c0, c1, c2, c3


@triton.jit
def _pair(word, coef, GAUSSIAN: tl.constexpr, NATIVE: tl.constexpr):
    """coef z of the two elements of a word: (N,) float32 each."""
    if GAUSSIAN:
        u = ((word & 0xFFFF) | _MAGIC).to(tl.float32, bitcast=True) * _SCALE + _SHIFT
        turn = ((word >> 16) | _MAGIC).to(tl.float32, bitcast=True) * _SCALE + _SHIFT
        angle = turn * (2 * _PI) - _PI
        if NATIVE:
            log = tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [u], tl.float32, True, 1)
            radius = tl.inline_asm_elementwise("sqrt.approx.ftz.f32 $0, $1;", "=f,f", [-log], tl.float32, True, 1)
            first = tl.inline_asm_elementwise("cos.approx.ftz.f32 $0, $1;", "=f,f", [angle], tl.float32, True, 1)
            second = tl.inline_asm_elementwise("sin.approx.ftz.f32 $0, $1;", "=f,f", [angle], tl.float32, True, 1)
        else:
            radius = tl.sqrt(-tl.log2(u))
            first = tl.cos(angle)
            second = tl.sin(angle)
        radius = radius * (coef * _UNIT)
        first = first * radius
        second = second * radius
    else:
        bits = coef.to(tl.uint32, bitcast=True)
        first = (((word << 16) & 0x80000000) ^ bits).to(tl.float32, bitcast=True)
        second = ((word & 0x80000000) ^ bits).to(tl.float32, bitcast=True)
    return first, second


@triton.jit
def _noise(counter, name, key, coef, GAUSSIAN: tl.constexpr, NATIVE: tl.constexpr):
    """coef z of the elements of (N,) counters: eight float32."""
    w0, w1, w2, w3 = _words(counter, name[0], name[1], key[0], key[1])
    z0, z1 = _pair(w0, coef, GAUSSIAN, NATIVE)
    z2, z3 = _pair(w1, coef, GAUSSIAN, NATIVE)
    z4, z5 = _pair(w2, coef, GAUSSIAN, NATIVE)
    z6, z7 = _pair(w3, coef, GAUSSIAN, NATIVE)
    return z0, z1, z2, z3, z4, z5, z6, z7


@triton.jit
def _plus(x, y):
    return x[0] + y[0], x[1] + y[1], x[2] + y[2], x[3] + y[3], x[4] + y[4], x[5] + y[5], x[6] + y[6], x[7] + y[7]


@triton.jit
def _times(c, x):
    return c * x[0], c * x[1], c * x[2], c * x[3], c * x[4], c * x[5], c * x[6], c * x[7]


@triton.jit
def _zeros(real: tl.constexpr, N: tl.constexpr):
    o = tl.zeros([N], real)
    return o, o, o, o, o, o, o, o


@triton.jit
def _interleave(x, BLOCK: tl.constexpr):
    """(BLOCK,) from eight, element 8c + e at c of the e-th. A thread holds all eight of a counter, so that for 16-bit
    weights nothing moves between threads, and each reads and writes 16 bytes at once."""
    even = tl.join(tl.join(x[0], x[4]), tl.join(x[2], x[6]))
    odd = tl.join(tl.join(x[1], x[5]), tl.join(x[3], x[7]))
    return tl.reshape(tl.join(even, odd), [BLOCK])


@triton.jit
def _key(values, row):
    """The two key words, uint32, of a row of the parameters; row 0 has the key of the rounding."""
    at = values + row * _PARAM
    return tl.load(at).to(tl.uint32, bitcast=True), tl.load(at + 1).to(tl.uint32, bitcast=True)


@triton.jit
def _coefs(values, row, real: tl.constexpr):
    """(coef, commit) of a row of the parameters; row 0 has the scale for its coef."""
    at = values + row * _PARAM
    pair = (at + (4 if real == tl.float64 else 2)).to(tl.pointer_type(real))
    return tl.load(pair), tl.load(pair + 1)


@triton.jit
def _add(delta, moved, counter, name, key, coefs, real: tl.constexpr, COMMIT: tl.constexpr, GAUSSIAN: tl.constexpr,
         NATIVE: tl.constexpr):  # fmt: skip
    """One stream more: (delta + coef z, moved + commit z), eights; the second only if COMMIT."""
    if COMMIT or real == tl.float64:
        z = _noise(counter, name, key, tl.full([], 1.0, tl.float32), GAUSSIAN, NATIVE)
        delta = _plus(delta, _times(coefs[0], z))
        if COMMIT:
            moved = _plus(moved, _times(coefs[1], z))
    else:
        delta = _plus(delta, _noise(counter, name, key, coefs[0], GAUSSIAN, NATIVE))
    return delta, moved


@triton.jit
def _read(at, mask, real: tl.constexpr, MASKED: tl.constexpr, NATIVE: tl.constexpr):
    """Elements at (BLOCK,) pointers, as ``real``."""
    x = tl.load(at, mask=mask, other=0.0) if MASKED else tl.load(at)
    if x.dtype == tl.bfloat16 and not NATIVE:  # the interpreter misreads subnormal bfloat16
        x = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(real)


@triton.jit
def _write(at, value, mask, MASKED: tl.constexpr):
    if MASKED:
        tl.store(at, value, mask=mask)
    else:
        tl.store(at, value)


@triton.jit
def _round(x, counter, name, key, dtype: tl.constexpr, STOCHASTIC: tl.constexpr, NATIVE: tl.constexpr,
           BLOCK: tl.constexpr):  # fmt: skip
    """x (BLOCK,) as ``dtype``: to nearest even, or for bfloat16 stochastically with the bits of ``key``."""
    if STOCHASTIC or (dtype == tl.bfloat16 and not NATIVE):  # the interpreter truncates
        bits = x.to(tl.uint32, bitcast=True)
        if STOCHASTIC:
            w = _words(counter, name[0], name[1], key[0], key[1])
            low = w[0] & 0xFFFF, w[1] & 0xFFFF, w[2] & 0xFFFF, w[3] & 0xFFFF
            add = _interleave((low[0], w[0] >> 16, low[1], w[1] >> 16, low[2], w[2] >> 16, low[3], w[3] >> 16), BLOCK)
        else:
            add = ((bits >> 16) & 1) + 0x7FFF
        quiet = tl.where((bits & 0x007FFFFF) != 0, bits | 0x00400000, bits)  # a nan stays one, whatever its payload
        bits = tl.where((bits & 0x7F800000) == 0x7F800000, quiet, bits + add)
        value = (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        value = x.to(dtype)
    return value


@triton.jit
def _block(weight, master, values, n_streams, place, start, scale, keys, coefs, rounding, dtype: tl.constexpr,
           real: tl.constexpr, MASTER: tl.constexpr, COMMIT: tl.constexpr, STREAMS: tl.constexpr,
           GAUSSIAN: tl.constexpr, STOCHASTIC: tl.constexpr, MASKED: tl.constexpr, NATIVE: tl.constexpr,
           BLOCK: tl.constexpr):  # fmt: skip
    """Sweeps BLOCK elements, from ``start`` on, of the chunk that weight and master point at."""
    first, left, name = place
    offset = start + tl.arange(0, BLOCK)
    mask = offset < left
    counter = (first // 8).to(tl.uint32) + (start // 8 + tl.arange(0, BLOCK // 8)).to(tl.uint32)
    x = _read((master if MASTER else weight) + offset, mask, real, MASKED, NATIVE)
    delta = _zeros(real, BLOCK // 8)
    moved = _zeros(real, BLOCK // 8)
    if STREAMS >= 0:
        for j in tl.static_range(STREAMS):
            delta, moved = _add(delta, moved, counter, name, keys[j], coefs[j], real, COMMIT, GAUSSIAN, NATIVE)
    else:
        for j in range(1, n_streams + 1):
            delta, moved = _add(delta, moved, counter, name, _key(values, j), _coefs(values, j, real), real, COMMIT,
                                GAUSSIAN, NATIVE)  # fmt: skip
    x = x * scale
    if COMMIT:
        x += _interleave(moved, BLOCK)
        _write(master + offset, x.to(tl.float32), mask, MASKED)
    value = _round(x + _interleave(delta, BLOCK), counter, name, rounding, dtype, STOCHASTIC, NATIVE, BLOCK)
    _write(weight + offset, value, mask, MASKED)


@triton.jit
def _place(row, chunk, CHUNK: tl.constexpr):
    """A chunk: its first element (int64), its number of elements, and the two words of its tensor's id."""
    first = chunk.to(tl.int64) * CHUNK
    left = tl.minimum(tl.load(row + 2) - first, CHUNK).to(tl.int32)
    name = tl.load(row + 3)
    return first, left, ((name & 0xFFFFFFFF).to(tl.uint32), ((name >> 32) & 0xFFFFFFFF).to(tl.uint32))


@triton.jit(do_not_specialize=["n_streams"])
def sweep(rows, chunks, values, n_streams, dtype: tl.constexpr, real: tl.constexpr, MASTER: tl.constexpr,
          COMMIT: tl.constexpr, STREAMS: tl.constexpr, GAUSSIAN: tl.constexpr, STOCHASTIC: tl.constexpr,
          ALIGNED: tl.constexpr, NATIVE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """`slot.Engine.sweep`, or `sweep_master` if MASTER (COMMIT: it is written), of all chunks; a program does one.

    rows (tensors, ROW_WORDS) int64; chunks (programs, 2) int32: row and number of the chunk; values (1 + n_streams,
    PARAM_WORDS) int32. STREAMS: their number, or -1 to read it (and, for each block again, them) at run time.
    """
    at = chunks + 2 * tl.program_id(0)
    row = rows + tl.load(at) * _ROW
    place = _place(row, tl.load(at + 1), CHUNK)
    weight = tl.load(row).to(tl.pointer_type(dtype))
    master = tl.load(row + 1).to(tl.pointer_type(tl.float32))
    if ALIGNED:
        weight = tl.multiple_of(weight, 16)
        master = tl.multiple_of(master, 16)
    weight += place[0]
    master += place[0]
    scale = _coefs(values, 0, real)[0]
    rounding = _key(values, 0)
    keys = ()
    coefs = ()
    for j in tl.static_range(1, STREAMS + 1):  # here, since after a store whatever was read would be read again
        keys = keys + (_key(values, j),)  # noqa: RUF005 (Triton has no starred expressions)
        coefs = coefs + (_coefs(values, j, real),)  # noqa: RUF005
    whole = place[1] // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        _block(weight, master, values, n_streams, place, start, scale, keys, coefs, rounding, dtype, real, MASTER,
               COMMIT, STREAMS, GAUSSIAN, STOCHASTIC, False, NATIVE, BLOCK)  # fmt: skip
    if whole < place[1]:
        _block(weight, master, values, n_streams, place, whole, scale, keys, coefs, rounding, dtype, real, MASTER,
               COMMIT, STREAMS, GAUSSIAN, STOCHASTIC, True, NATIVE, BLOCK)  # fmt: skip


@triton.jit
def squared_norm(rows, chunks, values, sums, NATIVE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """sums[program], float64 <- the sum of z^2 over a chunk, z of the first stream of ``values``."""
    at = chunks + 2 * tl.program_id(0)
    first, left, name = _place(rows + tl.load(at) * _ROW, tl.load(at + 1), CHUNK)
    key = _key(values, 1)
    counters = tl.arange(0, BLOCK // 8)
    total = tl.zeros([BLOCK // 8], tl.float64)
    for start in range(0, left, BLOCK):
        counter = (first // 8).to(tl.uint32) + (start // 8 + counters).to(tl.uint32)
        z = _noise(counter, name, key, tl.full([], 1.0, tl.float32), True, NATIVE)
        for e in tl.static_range(8):
            total += tl.where(start + 8 * counters + e < left, z[e] * z[e], 0.0).to(tl.float64)
    tl.store(sums + tl.program_id(0), tl.sum(total, 0))
