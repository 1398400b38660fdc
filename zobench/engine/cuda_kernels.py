"""The Triton kernels of `cuda.CudaEngine`: sweeps over tables of tensors.

Shapes: a step takes BLOCK elements, N = BLOCK / 8 counters; "eight" as in `cuda_noise`. Compile-time arguments:
``dtype`` of the weights; ``real``, the dtype of sums and states (float64 for float64 weights, else float32); RULE, the
kind of a `rules.Rule` or "none", with STATES states; MASK, "none", "random" (a `slot.Keep`) or "stored" (bits); NATIVE,
false in Triton's interpreter, which runs neither inline assembly nor bfloat16 as the hardware does.

What a variant does not use, the compiler drops: a sweep without rule or mask loads no address of states or bits.
"""
# Triton's launcher has a local named params, so no kernel argument may be called that.
# Triton reads these functions' source, types their arguments at the first launch and gives `if` on constants no scope:
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"

from __future__ import annotations

import triton
import triton.language as tl

from zobench.engine.cuda_noise import halves, interleave, noise, plus, times, zeros

# int64, of a tensor's row: addresses of the weight and of the master, numel, noise id; addresses of two states and of
# the bits (0 for what there is not), and a word that only makes the row 64 bytes.
ROW_WORDS = 8
PARAM_WORDS = 8  # int32, of a row of the parameters: a key (2), a pair of values in float32 (2) and in float64 (4)
RULE_ROWS = 4

_ROW = tl.constexpr(ROW_WORDS)
_PARAM = tl.constexpr(PARAM_WORDS)
_RULE_ROWS = tl.constexpr(RULE_ROWS)
# Two bfloat16 of a register as float32, by one instruction each.
_WIDEN = tl.constexpr("{ .reg .b32 w; shl.b32 w, $2, 16; mov.b32 $0, w; and.b32 w, $2, 0xFFFF0000; mov.b32 $1, w; }")


@triton.jit
def _key(values, row):
    """The two key words, uint32, of a row of the parameters."""
    at = values + row * _PARAM
    return tl.load(at).to(tl.uint32, bitcast=True), tl.load(at + 1).to(tl.uint32, bitcast=True)


@triton.jit
def _coefs(values, row, real: tl.constexpr):
    """The pair of values of a row of the parameters."""
    at = values + row * _PARAM
    pair = (at + (4 if real == tl.float64 else 2)).to(tl.pointer_type(real))
    return tl.load(pair), tl.load(pair + 1)


@triton.jit
def _add(delta, moved, counter, name, key, coefs, real: tl.constexpr, COMMIT: tl.constexpr, GAUSSIAN: tl.constexpr,
         NATIVE: tl.constexpr):  # fmt: skip
    """One stream more: (delta + coef z, moved + commit z), eights; the second only if COMMIT."""
    if COMMIT or real == tl.float64:
        z = noise(counter, name, key, tl.full([], 1.0, tl.float32), GAUSSIAN, NATIVE)
        delta = plus(delta, times(coefs[0], z))
        if COMMIT:
            moved = plus(moved, times(coefs[1], z))
    else:
        delta = plus(delta, noise(counter, name, key, coefs[0], GAUSSIAN, NATIVE))
    return delta, moved


@triton.jit
def _read(at, inside, PARTIAL: tl.constexpr):
    """Elements at (BLOCK,) pointers, as they are."""
    return tl.load(at, mask=inside, other=0.0) if PARTIAL else tl.load(at)


@triton.jit
def _as_real(x, real: tl.constexpr, NATIVE: tl.constexpr):
    if x.dtype == tl.bfloat16:
        if NATIVE:
            x = tl.inline_asm_elementwise(_WIDEN, "=f,=f,r", [x], tl.float32, True, 2)
        else:  # the interpreter misreads subnormal bfloat16
            x = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(real)


@triton.jit
def _write(at, new, old, kept, inside, MASK: tl.constexpr, PARTIAL: tl.constexpr):
    """What a mask leaves out gets the bits it had: cheaper than a store that skips elements in its 16 bytes."""
    if MASK != "none":
        new = tl.where(kept, new, old)
    if PARTIAL:
        tl.store(at, new, mask=inside)
    else:
        tl.store(at, new)


@triton.jit
def _round(x, counter, name, key, dtype: tl.constexpr, STOCHASTIC: tl.constexpr, NATIVE: tl.constexpr,
           BLOCK: tl.constexpr):  # fmt: skip
    """x (BLOCK,) as ``dtype``: to nearest even, or for bfloat16 stochastically with the bits of ``key``."""
    if STOCHASTIC or (dtype == tl.bfloat16 and not NATIVE):  # the interpreter truncates
        bits = x.to(tl.uint32, bitcast=True)
        add = interleave(halves(counter, name, key, NATIVE), BLOCK) if STOCHASTIC else ((bits >> 16) & 1) + 0x7FFF
        quiet = tl.where((bits & 0x007FFFFF) != 0, bits | 0x00400000, bits)  # a nan stays one, whatever its payload
        bits = tl.where((bits & 0x7F800000) == 0x7F800000, quiet, bits + add)
        value = (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        value = x.to(dtype)
    return value


@triton.jit
def _chosen(at, counter, start, left, name, keep, MASK: tl.constexpr, PARTIAL: tl.constexpr, NATIVE: tl.constexpr,
            BLOCK: tl.constexpr):  # fmt: skip
    """(BLOCK,) int1: which elements take part. ``at``: the chunk's stored bits; ``keep``: (key, limit) of a random
    mask."""
    if MASK == "random":
        h = halves(counter, name, keep[0], NATIVE)
        limit = keep[1]
        kept = (h[0] < limit, h[1] < limit, h[2] < limit, h[3] < limit,
                h[4] < limit, h[5] < limit, h[6] < limit, h[7] < limit)  # fmt: skip
    else:
        index = start // 8 + tl.arange(0, BLOCK // 8)
        byte = tl.load(at + index, mask=8 * index < left, other=0) if PARTIAL else tl.load(at + index)
        kept = ((byte & 1) != 0, (byte & 2) != 0, (byte & 4) != 0, (byte & 8) != 0,
                (byte & 16) != 0, (byte & 32) != 0, (byte & 64) != 0, (byte & 128) != 0)  # fmt: skip
    return interleave(kept, BLOCK)


@triton.jit
def _rule(g, states, pairs, RULE: tl.constexpr):
    """f(g) and the new states of a `rules.Rule`, of g and the old ones, all (BLOCK,). Pairs of its values: (lr, eps or
    mu), (beta1, 1 - beta1), (beta2, 1 - beta2), (b, c)."""
    lr = pairs[0][0]
    if RULE == "sign":
        f = lr * ((g < 0).to(g.dtype) - (g > 0).to(g.dtype))
        new = ()
    elif RULE == "heavy_ball":
        v = pairs[0][1] * states[0] + g
        f = -lr * v
        new = (v,)
    else:
        m = pairs[1][0] * states[0] + pairs[1][1] * g
        if RULE == "adam":
            v = pairs[2][0] * states[1] + pairs[2][1] * g * g
            f = -lr * (pairs[3][0] * m) / (tl.sqrt(pairs[3][1] * v) + pairs[0][1])
        else:
            v = pairs[2][0] * states[1] + pairs[2][1] * m * m
            f = -lr * m / tl.sqrt(v + pairs[0][1])
        new = (m, v)
    return f, new


@triton.jit
def _block(at, place, start, values, n_streams, scale, rounding, keys, coefs, keep, pairs, dtype: tl.constexpr,
           real: tl.constexpr, MASTER: tl.constexpr, COMMIT: tl.constexpr, RULE: tl.constexpr, STATES: tl.constexpr,
           MASK: tl.constexpr, STREAMS: tl.constexpr, GAUSSIAN: tl.constexpr, STOCHASTIC: tl.constexpr,
           PARTIAL: tl.constexpr, NATIVE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Sweeps BLOCK elements, from ``start`` on, of a chunk. ``at``: pointers to its weight, master, states and bits."""
    first, left, name = place
    offset = start + tl.arange(0, BLOCK)
    inside = offset < left
    counter = (first // 8).to(tl.uint32) + (start // 8 + tl.arange(0, BLOCK // 8)).to(tl.uint32)
    theta = _read((at[1] if MASTER else at[0]) + offset, inside, PARTIAL)
    weight = theta
    if MASTER and MASK != "none":
        weight = _read(at[0] + offset, inside, PARTIAL)
    states = ()
    for j in tl.static_range(STATES):
        states = states + (_read(at[2 + j] + offset, inside, PARTIAL),)  # noqa: RUF005 (Triton has no starred ones)
    kept = inside
    if MASK != "none":
        kept = _chosen(at[4], counter, start, left, name, keep, MASK, PARTIAL, NATIVE, BLOCK)
    x = _as_real(theta, real, NATIVE)
    delta = zeros(real, BLOCK // 8)
    moved = zeros(real, BLOCK // 8)
    if STREAMS >= 0:
        for j in tl.static_range(STREAMS):
            delta, moved = _add(delta, moved, counter, name, keys[j], coefs[j], real, COMMIT, GAUSSIAN, NATIVE)
    else:
        for j in range(1, n_streams + 1):
            delta, moved = _add(delta, moved, counter, name, _key(values, j), _coefs(values, j, real), real, COMMIT,
                                GAUSSIAN, NATIVE)  # fmt: skip
    x = x * scale
    if COMMIT:
        g = interleave(moved, BLOCK)
        if RULE != "none":
            g, new = _rule(g, states, pairs, RULE)
            for j in tl.static_range(STATES):
                _write(at[2 + j] + offset, new[j], states[j], kept, inside, MASK, PARTIAL)
        x += g
        if MASTER:
            _write(at[1] + offset, x.to(tl.float32), theta, kept, inside, MASK, PARTIAL)
    value = _round(x + interleave(delta, BLOCK), counter, name, rounding, dtype, STOCHASTIC, NATIVE, BLOCK)
    _write(at[0] + offset, value, weight, kept, inside, MASK, PARTIAL)


@triton.jit
def _place(numel, name, chunk, CHUNK: tl.constexpr):
    """A chunk of a tensor, its numel and id int64: its first element (int64), its number of elements (0 behind the
    tensor's end), and the two words of the id."""
    first = chunk.to(tl.int64) * CHUNK
    left = tl.maximum(tl.minimum(numel - first, CHUNK), 0).to(tl.int32)
    return first, left, ((name & 0xFFFFFFFF).to(tl.uint32), ((name >> 32) & 0xFFFFFFFF).to(tl.uint32))


@triton.jit
def _pointer(word, first, kind: tl.constexpr, ALIGNED: tl.constexpr):
    """To the first element of a chunk, of the tensor whose address is there."""
    at = tl.load(word).to(tl.pointer_type(kind))
    if ALIGNED:
        at = tl.multiple_of(at, 16)
    return at + first


@triton.jit(do_not_specialize=["n_streams"])
def sweep(rows, chunks, values, n_streams, dtype: tl.constexpr, real: tl.constexpr, MASTER: tl.constexpr,
          COMMIT: tl.constexpr, RULE: tl.constexpr, STATES: tl.constexpr, MASK: tl.constexpr, STREAMS: tl.constexpr,
          GAUSSIAN: tl.constexpr, STOCHASTIC: tl.constexpr, ALIGNED: tl.constexpr, NATIVE: tl.constexpr,
          CHUNK: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """`slot.Engine.sweep` of all chunks; PARTS programs do one.

    rows (tensors, ROW_WORDS) int64; chunks (chunks, 2) int32: row and number of the chunk; values (rows, PARAM_WORDS)
    int32. Rows of values: key of the rounding and (scale, stop); for each stream its key and (coef, commit); key of the
    random mask and (limit, 0); RULE_ROWS of the rule, see `_rule`. The last two only with a mask or a rule. With a stop
    that is not 0, nothing is touched.

    COMMIT: g is needed, since there is a rule or the master is written; without, commits are not read. STREAMS: their
    number, or -1 to read it (and, for each block again, them) at run time.
    """
    chunk = chunks + 2 * (tl.program_id(0) // PARTS)
    part = tl.program_id(0) % PARTS
    row = rows + tl.load(chunk) * _ROW
    place = _place(tl.load(row + 2), tl.load(row + 3), tl.load(chunk + 1) * PARTS + part, CHUNK // PARTS)
    first = place[0]
    at = (_pointer(row, first, dtype, ALIGNED), _pointer(row + 1, first, tl.float32, ALIGNED),
          _pointer(row + 4, first, real, ALIGNED), _pointer(row + 5, first, real, ALIGNED),
          _pointer(row + 6, first // 8, tl.uint8, False))  # fmt: skip
    scale, stop = _coefs(values, 0, real)
    place = (first, tl.where(stop != 0.0, 0, place[1]), place[2])
    rounding = _key(values, 0)
    # All values are read here, since after a store whatever was read would be read again.
    keys = ()
    coefs = ()
    for j in tl.static_range(1, STREAMS + 1):
        keys = keys + (_key(values, j),)  # noqa: RUF005 (Triton has no starred expressions)
        coefs = coefs + (_coefs(values, j, real),)  # noqa: RUF005
    keep = ()
    if MASK == "random":
        keep = (_key(values, n_streams + 1), _coefs(values, n_streams + 1, real)[0].to(tl.uint32))
    pairs = ()
    if RULE != "none":
        for j in tl.static_range(_RULE_ROWS):
            pairs = pairs + (_coefs(values, n_streams + 2 + j, real),)  # noqa: RUF005
    whole = place[1] // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        _block(at, place, start, values, n_streams, scale, rounding, keys, coefs, keep, pairs, dtype, real, MASTER,
               COMMIT, RULE, STATES, MASK, STREAMS, GAUSSIAN, STOCHASTIC, False, NATIVE, BLOCK)  # fmt: skip
    if whole < place[1]:
        _block(at, place, whole, values, n_streams, scale, rounding, keys, coefs, keep, pairs, dtype, real, MASTER,
               COMMIT, RULE, STATES, MASK, STREAMS, GAUSSIAN, STOCHASTIC, True, NATIVE, BLOCK)  # fmt: skip


@triton.jit(do_not_specialize=["numel", "name"])
def fill(out, numel, name, values, dtype: tl.constexpr, real: tl.constexpr, GAUSSIAN: tl.constexpr,
         NATIVE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """`slot.Engine.fill`; a program does a chunk. ``name``: the id, as int64; values: as for `sweep` of one stream."""
    first, left, name = _place(numel.to(tl.int64), name.to(tl.int64), tl.program_id(0), CHUNK)
    key = _key(values, 1)
    coefs = _coefs(values, 1, real)
    none = zeros(real, BLOCK // 8)
    for start in range(0, left, BLOCK):
        offset = start + tl.arange(0, BLOCK)
        counter = (first // 8).to(tl.uint32) + (start // 8 + tl.arange(0, BLOCK // 8)).to(tl.uint32)
        z = _add(none, none, counter, name, key, coefs, real, False, GAUSSIAN, NATIVE)[0]
        value = _round(interleave(z, BLOCK), counter, name, key, dtype, False, NATIVE, BLOCK)
        tl.store(out + first + offset, value, mask=offset < left)


@triton.jit
def squared_norm(rows, chunks, values, sums, NATIVE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """sums[program], float64 <- the sum of z^2 over a chunk, z of the first stream of ``values``."""
    at = chunks + 2 * tl.program_id(0)
    row = rows + tl.load(at) * _ROW
    first, left, name = _place(tl.load(row + 2), tl.load(row + 3), tl.load(at + 1), CHUNK)
    key = _key(values, 1)
    counters = tl.arange(0, BLOCK // 8)
    total = tl.zeros([BLOCK // 8], tl.float64)
    for start in range(0, left, BLOCK):
        counter = (first // 8).to(tl.uint32) + (start // 8 + counters).to(tl.uint32)
        z = noise(counter, name, key, tl.full([], 1.0, tl.float32), True, NATIVE)
        for e in tl.static_range(8):
            total += tl.where(start + 8 * counters + e < left, z[e] * z[e], 0.0).to(tl.float64)
    tl.store(sums + tl.program_id(0), tl.sum(total, 0))
