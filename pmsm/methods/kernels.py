"""The chains of `rounding` and `neuron` compiled by numba: one pass through memory, the same bits.

Optional (extra `fast`). Used for float32 and bfloat16 on a CPU with one step per site; everything else, and
everything where numba is missing, takes the plain torch form, which is the reference.
"""

import numba
import numpy as np

TILE = 2048  # elements whose working state (a few float32 arrays) stays in the first-level cache
HALF = np.float32(0.5)

_compile = numba.njit(cache=True, nogil=True, error_model="numpy")


@_compile
def quantize_float32(x, out, scale, low, high):
    """x, out: [n] float32; out = scale * clip(floor(x / scale + 1/2), low, high)."""
    for i in range(x.size):
        code = np.floor(x[i] / scale + HALF)
        code = high if code > high else code
        code = low if code < low else code
        out[i] = code * scale


@_compile
def quantize_bfloat16(x, out, scale, low, high):
    """As `quantize_float32`, x and out: [n] bits of bfloat16 as uint16, arithmetic in float32."""
    bits, out_bits = np.empty(TILE, np.uint32), np.empty(TILE, np.uint32)
    for start in range(0, x.size, TILE):  # two buffers: in place, the loop would not be vectorized
        size = min(TILE, x.size - start)
        _widen(x[start : start + size], bits)
        quantize_float32(bits.view(np.float32)[:size], out_bits.view(np.float32), scale, low, high)
        _narrow(out_bits[:size], out[start : start + size])


@_compile
def gradients_float32(grad, x, grad_x, sums, scale, low, high, slack):
    """grad, x, grad_x: [n] float32; sums: [TILE] float32, to which grad * d/dscale is added lane by lane."""
    half_cell = slack == HALF
    for start in range(0, x.size, TILE):
        size = min(TILE, x.size - start)
        here = slice(start, start + size)
        _gradients(grad[here], x[here], grad_x[here], sums, scale, low, high, slack, half_cell)


@_compile
def gradients_bfloat16(grad, x, grad_x, sums, scale, low, high, slack):
    """As `gradients_float32`; grad, x, grad_x: [n] bits of bfloat16 as uint16."""
    half_cell = slack == HALF
    grad_bits, x_bits, out_bits = (
        np.empty(TILE, np.uint32),
        np.empty(TILE, np.uint32),
        np.empty(TILE, np.uint32),
    )
    grad_value, x_value, out_value = (
        grad_bits.view(np.float32),
        x_bits.view(np.float32),
        out_bits.view(np.float32),
    )
    for start in range(0, x.size, TILE):
        size = min(TILE, x.size - start)
        _widen(grad[start : start + size], grad_bits)
        _widen(x[start : start + size], x_bits)
        _gradients(grad_value, x_value[:size], out_value, sums, scale, low, high, slack, half_cell)
        _narrow(out_bits[:size], grad_x[start : start + size])


@_compile
def _gradients(grad, x, grad_x, sums, scale, low, high, slack, half_cell):
    for i in range(x.size):
        u = x[i] / scale
        free = np.floor(u + HALF)
        code = high if free > high else free
        code = low if code < low else code
        inside = (free == code) if half_cell else (u >= low - slack and u < high + slack)
        g = grad[i]
        grad_x[i] = g if inside else np.float32(0.0)
        sums[i] += (code - u if inside else code) * g


@_compile
def neuron_once(x, out, net, size, scale, low, high):
    """A single timestep: `quantize_float32` per sample, x and out: [N, M], sums of k and |k|: [N] int64."""
    for n in range(x.shape[0]):
        total, absolute = 0, 0
        for start in range(0, x.shape[1], TILE):
            stop = min(start + TILE, x.shape[1])
            tile_total, tile_absolute = _count_tile(x[n, start:stop], out[n, start:stop], scale, low, high)
            total += int(tile_total)
            absolute += int(tile_absolute)
        net[n], size[n] = total, absolute


# The sums are of whole numbers far below 2**24, exact in any order: the compiler may choose one. Nothing else
# here is a chain of additions that it could reorder.
@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc"})
def _count_tile(x, out, scale, low, high):
    total, absolute = np.float32(0.0), np.float32(0.0)
    for i in range(x.size):
        code = np.floor(x[i] / scale + HALF)
        code = high if code > high else code
        code = low if code < low else code
        out[i] = code * scale
        total += code
        absolute += abs(code)
    return total, absolute


@_compile
def neuron_scan(x, out, net, size, threshold, low, high, first_bound, bound_step, side):
    """All steps of fresh neurons. x, out: [T, N, M] float32; net, size: [T, N] int64, sums of k and of |k|
    over M.

    side: 1 for a lower bound on the running total, -1 for an upper bound, 0 for none; the bound starts at
    `first_bound` and moves by `bound_step` - k.
    """
    v, bound, codes = np.empty(TILE, np.float32), np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    timesteps, samples, neurons = x.shape
    for n in range(samples):
        for start in range(0, neurons, TILE):
            stop = min(start + TILE, neurons)
            v[:] = np.float32(0.0)
            bound[:] = first_bound
            for t in range(timesteps):
                total, absolute = _neuron_tile(
                    x[t, n, start:stop],
                    v,
                    bound,
                    codes,
                    out[t, n, start:stop],
                    threshold,
                    low,
                    high,
                    bound_step,
                    side,
                )
                net[t, n] += int(total)
                size[t, n] += int(absolute)


@_compile
def neuron_step(x, v, bound, out, net, size, threshold, low, high, bound_step, side):
    """One step of neurons with state. x, v, bound, out: [N, M] float32 (bound: [1, 1] if side is 0); net,
    size: [N].
    """
    codes = np.empty(TILE, np.float32)
    for n in range(x.shape[0]):
        b = bound[n] if side != 0 else bound[0]
        net[n], size[n] = 0, 0
        for start in range(0, x.shape[1], TILE):
            here = slice(start, min(start + TILE, x.shape[1]))
            tile_bound = b[here] if side != 0 else b
            total, absolute = _neuron_tile(
                x[n, here],
                v[n, here],
                tile_bound,
                codes,
                out[n, here],
                threshold,
                low,
                high,
                bound_step,
                side,
            )
            net[n] += int(total)
            size[n] += int(absolute)


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc"})
def _sums(codes):
    total, absolute = np.float32(0.0), np.float32(0.0)
    for i in range(codes.size):
        total += codes[i]
        absolute += abs(codes[i])
    return total, absolute


@_compile
def _neuron_tile(x, v, bound, codes, out, threshold, low, high, bound_step, side):
    for i in range(x.size):
        w = v[i] + x[i] / threshold
        k = np.floor(w + HALF)
        k = high if k > high else k
        k = low if k < low else k
        if side > 0:
            k = bound[i] if k < bound[i] else k
            bound[i] = (bound[i] - k) + bound_step
        elif side < 0:
            k = bound[i] if k > bound[i] else k
            bound[i] = (bound[i] - k) + bound_step
        v[i] = w - k
        out[i] = k * threshold
        codes[i] = k
    return _sums(codes[: x.size])


@_compile
def _widen(x, bits):
    for i in range(x.size):
        bits[i] = np.uint32(x[i]) << np.uint32(16)


@_compile
def _narrow(bits, out):
    """Round to nearest even, as torch does; NaN stays NaN."""
    for i in range(bits.size):
        b = bits[i]
        rounded = (b + np.uint32(0x7FFF) + ((b >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        out[i] = (
            np.uint16(0x7FC0) if (b & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000) else np.uint16(rounded)
        )
