"""The noise of `stream` in registers: Triton functions that `cuda_kernels` is made of.

Shapes: N counters at a time; "eight" is a tuple of eight (N,) tensors, one for each element of a counter. NATIVE is
false in Triton's interpreter, which runs no inline assembly.
"""
# Triton reads these functions' source, types their arguments at the first launch and gives `if` on constants no scope:
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"

from __future__ import annotations

import triton
import triton.language as tl

from zobench.engine import stream

_M0 = tl.constexpr(stream.M0)
_M1 = tl.constexpr(stream.M1)
_W0 = tl.constexpr(stream.W0)
_W1 = tl.constexpr(stream.W1)
_ROUNDS = tl.constexpr(stream.ROUNDS)
# Both halves of a product at once: left to itself, ptxas makes them by two multiplications where registers are short.
_PRODUCT = "{{ .reg .u64 p; mul.wide.u32 p, $2, {:#x}; mov.b64 {{$0, $1}}, p; }}"
_TIMES_M0 = tl.constexpr(_PRODUCT.format(stream.M0))
_TIMES_M1 = tl.constexpr(_PRODUCT.format(stream.M1))
# A 16-bit half h under these bits is the float 2^23 + h: a bit operation, where a conversion would take its turn on the
# special-function units, which two streams fill. Then (2^23 + h) SCALE + SHIFT = (h + 1/2) / 2^16, without rounding.
_MAGIC = tl.constexpr(0x4B000000)
_SCALE = tl.constexpr(2.0**-16)
_SHIFT = tl.constexpr(2.0**-17 - 128.0)
# Left to itself, ptxas takes two instructions for a half under these bits, and one more to turn a sign.
_LOW = tl.constexpr("prmt.b32 $0, $1, 0x4B000000, 0x7610;")
_HIGH = tl.constexpr("prmt.b32 $0, $1, 0x4B000000, 0x7632;")
_ROOT = tl.constexpr("{ .reg .f32 n; neg.f32 n, $1; sqrt.approx.ftz.f32 $0, n; }")
_PI = tl.constexpr(3.141592653589793)
# sqrt(-2 ln u) = sqrt(2 ln 2) sqrt(-log2 u). Negative, because angles are taken pi lower, to lie in (-pi, pi).
_UNIT = tl.constexpr(-1.1774100225154747)


@triton.jit
def words(c0, low, high, k0, k1, NATIVE: tl.constexpr):
    """Philox4x32-10 at counters (c0, 0, low, high): four words, uint32, from c0 uint32 (N,) and uint32 scalars.

    Half the work of the first two rounds is on scalars, once a program.
    """
    c1 = tl.full([], 0, tl.uint32)
    c2 = low
    c3 = high
    for _ in tl.static_range(_ROUNDS):
        if NATIVE:
            low0, high0 = tl.inline_asm_elementwise(_TIMES_M0, "=r,=r,r", [c0], (tl.uint32, tl.uint32), True, 1)
            low1, high1 = tl.inline_asm_elementwise(_TIMES_M1, "=r,=r,r", [c2], (tl.uint32, tl.uint32), True, 1)
        else:
            p0 = c0.to(tl.uint64) * _M0
            p1 = c2.to(tl.uint64) * _M1
            low0, high0 = p0.to(tl.uint32), (p0 >> 32).to(tl.uint32)
            low1, high1 = p1.to(tl.uint32), (p1 >> 32).to(tl.uint32)
        c0 = high1 ^ c1 ^ k0
        c2 = high0 ^ c3 ^ k1
        c1 = low1
        c3 = low0
        k0 = k0 + _W0
        k1 = k1 + _W1
    return c0, c1, c2, c3


@triton.jit
def halves(counter, name, key, NATIVE: tl.constexpr):
    """The 16 bits of each element of (N,) counters, `stream.bits`: eight uint32."""
    w = words(counter, name[0], name[1], key[0], key[1], NATIVE)
    low = w[0] & 0xFFFF, w[1] & 0xFFFF, w[2] & 0xFFFF, w[3] & 0xFFFF
    return low[0], w[0] >> 16, low[1], w[1] >> 16, low[2], w[2] >> 16, low[3], w[3] >> 16


@triton.jit
def _pair(word, coef, GAUSSIAN: tl.constexpr, NATIVE: tl.constexpr):
    """coef z of the two elements of a word: (N,) float32 each."""
    if GAUSSIAN:
        if NATIVE:
            low = tl.inline_asm_elementwise(_LOW, "=r,r", [word], tl.uint32, True, 1)
            high = tl.inline_asm_elementwise(_HIGH, "=r,r", [word], tl.uint32, True, 1)
        else:
            low = (word & 0xFFFF) | _MAGIC
            high = (word >> 16) | _MAGIC
        u = low.to(tl.float32, bitcast=True) * _SCALE + _SHIFT
        turn = high.to(tl.float32, bitcast=True) * _SCALE + _SHIFT
        angle = turn * (2 * _PI) - _PI
        if NATIVE:
            log = tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [u], tl.float32, True, 1)
            radius = tl.inline_asm_elementwise(_ROOT, "=f,f", [log], tl.float32, True, 1)
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
def noise(counter, name, key, coef, GAUSSIAN: tl.constexpr, NATIVE: tl.constexpr):
    """coef z of the elements of (N,) counters: eight float32."""
    w0, w1, w2, w3 = words(counter, name[0], name[1], key[0], key[1], NATIVE)
    z0, z1 = _pair(w0, coef, GAUSSIAN, NATIVE)
    z2, z3 = _pair(w1, coef, GAUSSIAN, NATIVE)
    z4, z5 = _pair(w2, coef, GAUSSIAN, NATIVE)
    z6, z7 = _pair(w3, coef, GAUSSIAN, NATIVE)
    return z0, z1, z2, z3, z4, z5, z6, z7


@triton.jit
def plus(x, y):
    """x + y, eights."""
    return x[0] + y[0], x[1] + y[1], x[2] + y[2], x[3] + y[3], x[4] + y[4], x[5] + y[5], x[6] + y[6], x[7] + y[7]


@triton.jit
def times(c, x):
    """c x, of a scalar and an eight."""
    return c * x[0], c * x[1], c * x[2], c * x[3], c * x[4], c * x[5], c * x[6], c * x[7]


@triton.jit
def zeros(real: tl.constexpr, N: tl.constexpr):
    """An eight of zeros, of dtype ``real``."""
    o = tl.zeros([N], real)
    return o, o, o, o, o, o, o, o


@triton.jit
def interleave(x, BLOCK: tl.constexpr):
    """(BLOCK,) from eight, element 8c + e at c of the e-th. A thread holds all eight of a counter, so that for 16-bit
    weights nothing moves between threads, and each reads and writes 16 bytes at once."""
    even = tl.join(tl.join(x[0], x[4]), tl.join(x[2], x[6]))
    odd = tl.join(tl.join(x[1], x[5]), tl.join(x[3], x[7]))
    return tl.reshape(tl.join(even, odd), [BLOCK])
