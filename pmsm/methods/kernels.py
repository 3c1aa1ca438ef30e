"""The chains of `rounding` and `neuron` compiled by numba: one pass through memory, the same bits.

Optional (extra `fast`). Used for float32 and bfloat16 on a CPU; everything else, and everything where numba
is missing, takes the plain torch form, which is the reference.

Step and initial potential come as a pattern (`rounding.channel_pattern`): arrays scale and initial [period]
and the number of consecutive elements, `run`, that each entry holds for. A kernel walks over segments of at
most TILE elements, for which `_segment` lays both out side by side.
"""

import numba
import numpy as np

TILE = 2048  # elements whose working state (a few float32 arrays) stays in the first-level cache
HALF = np.float32(0.5)

_compile = numba.njit(cache=True, nogil=True, error_model="numpy")


@_compile
def _segment(start, size, scale, initial, run, s, o, known):
    """Fill s and o [TILE] for the elements from `start` on; where the segment stops, and what they hold now.

    `known` is what they held before, so that nothing is written twice: the first entry of the pattern.
    """
    if run > 1:
        row = start // run
        entry = row % scale.size
        if entry != known:
            s[:], o[:] = scale[entry], initial[entry]
        return min(start + TILE, (row + 1) * run, size), entry
    entry = start % scale.size
    length = min(TILE, scale.size - entry)
    if entry != known:
        s[:length], o[:length] = scale[entry : entry + length], initial[entry : entry + length]
    return min(start + length, size), entry


@_compile
def quantize_float32(x, out, scale, initial, run, low, high):
    """x, out: [n] float32; out = scale * clip(floor(x / scale + initial + 1/2), low, high)."""
    s, o = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    start, known = 0, -1
    while start < x.size:
        stop, known = _segment(start, x.size, scale, initial, run, s, o, known)
        _quantize(x[start:stop], out[start:stop], s, o, low, high)
        start = stop


@_compile
def quantize_bfloat16(x, out, scale, initial, run, low, high):
    """As `quantize_float32`, x and out: [n] bits of bfloat16 as uint16, arithmetic in float32."""
    s, o = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    bits, out_bits = np.empty(TILE, np.uint32), np.empty(TILE, np.uint32)
    start, known = 0, -1
    while start < x.size:  # two buffers: in place, the loop would not be vectorized
        stop, known = _segment(start, x.size, scale, initial, run, s, o, known)
        size = stop - start
        _widen(x[start:stop], bits)
        _quantize(bits.view(np.float32)[:size], out_bits.view(np.float32), s, o, low, high)
        _narrow(out_bits[:size], out[start:stop])
        start = stop


@_compile
def _quantize(x, out, s, o, low, high):
    for i in range(x.size):
        code = np.floor(x[i] / s[i] + o[i] + HALF)
        code = high if code > high else code
        code = low if code < low else code
        out[i] = code * s[i]


@_compile
def gradients_float32(grad, x, grad_x, sums, scale, initial, run, low, high, slack):
    """grad, x, grad_x: [n] float32; sums: [period] float32, to which grad * d/dscale is added entry by
    entry.
    """
    half_cell = slack == HALF
    s, o, slopes = np.empty(TILE, np.float32), np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    start, known = 0, -1
    while start < x.size:
        stop, known = _segment(start, x.size, scale, initial, run, s, o, known)
        here = slice(start, stop)
        _gradients(grad[here], x[here], grad_x[here], slopes, s, o, low, high, slack, half_cell)
        _add_slopes(slopes[: stop - start], sums, known, run)
        start = stop


@_compile
def gradients_bfloat16(grad, x, grad_x, sums, scale, initial, run, low, high, slack):
    """As `gradients_float32`; grad, x, grad_x: [n] bits of bfloat16 as uint16."""
    half_cell = slack == HALF
    s, o, slopes = np.empty(TILE, np.float32), np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    grad_bits, x_bits = np.empty(TILE, np.uint32), np.empty(TILE, np.uint32)
    out_bits = np.empty(TILE, np.uint32)
    grad_value, x_value = grad_bits.view(np.float32), x_bits.view(np.float32)
    out_value = out_bits.view(np.float32)
    start, known = 0, -1
    while start < x.size:
        stop, known = _segment(start, x.size, scale, initial, run, s, o, known)
        size = stop - start
        _widen(grad[start:stop], grad_bits)
        _widen(x[start:stop], x_bits)
        _gradients(grad_value, x_value[:size], out_value, slopes, s, o, low, high, slack, half_cell)
        _add_slopes(slopes[:size], sums, known, run)
        _narrow(out_bits[:size], grad_x[start:stop])
        start = stop


@_compile
def _gradients(grad, x, grad_x, slopes, s, o, low, high, slack, half_cell):
    for i in range(x.size):
        current = x[i] / s[i]
        u = current + o[i]
        free = np.floor(u + HALF)
        code = high if free > high else free
        code = low if code < low else code
        inside = (free == code) if half_cell else (u >= low - slack and u < high + slack)
        g = grad[i]
        grad_x[i] = g if inside else np.float32(0.0)
        slopes[i] = (code - current if inside else code) * g


@_compile
def _add_slopes(slopes, sums, entry, run):
    if run > 1:
        sums[entry] += _sum(slopes)
    else:
        for i in range(slopes.size):
            sums[entry + i] += slopes[i]


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc"})
def _sum(x):
    total = np.float32(0.0)
    for i in range(x.size):
        total += x[i]
    return total


@_compile
def neuron_once(x, out, net, size, scale, initial, run, low, high):
    """A single timestep: `quantize_float32` per sample, x and out: [N, M], sums of k and |k|: [N] int64."""
    s, o = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    known = -1
    for n in range(x.shape[0]):
        total, absolute, start = 0, 0, 0
        while start < x.shape[1]:
            stop, known = _segment(start, x.shape[1], scale, initial, run, s, o, known)
            tile_total, tile_absolute = _count_tile(x[n, start:stop], out[n, start:stop], s, o, low, high)
            total += int(tile_total)
            absolute += int(tile_absolute)
            start = stop
        net[n], size[n] = total, absolute


# The sums are of whole numbers far below 2**24, exact in any order: the compiler may choose one. What else it
# may reorder here, x / s + o + 1/2, it must not: potentials are made first, in a function of their own.
@_compile
def _potentials(x, s, o, v):
    for i in range(x.size):
        v[i] = x[i] / s[i] + o[i] + HALF


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc"})
def _count_tile(x, out, s, o, low, high):
    _potentials(x, s, o, out)
    total, absolute = np.float32(0.0), np.float32(0.0)
    for i in range(x.size):
        code = np.floor(out[i])
        code = high if code > high else code
        code = low if code < low else code
        out[i] = code * s[i]
        total += code
        absolute += abs(code)
    return total, absolute


@_compile
def neuron_scan(x, out, net, size, threshold, initial, run, low, high, first_bound, bound_step, side):
    """All steps of fresh neurons. x, out: [T, N, M] float32; net, size: [T, N] int64, sums of k and of |k|
    over M.

    side: 1 for a lower bound on the running total, -1 for an upper bound, 0 for none; the bound starts at
    `first_bound` and moves by `bound_step` - k.
    """
    v, bound, codes = np.empty(TILE, np.float32), np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    s, o = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    timesteps, samples, neurons = x.shape
    known = -1
    for n in range(samples):
        start = 0
        while start < neurons:
            stop, known = _segment(start, neurons, threshold, initial, run, s, o, known)
            v[:] = o
            bound[:] = first_bound
            for t in range(timesteps):
                here = x[t, n, start:stop]
                total, absolute = _neuron_tile(
                    here, v, bound, codes, out[t, n, start:stop], s, low, high, bound_step, side
                )
                net[t, n] += int(total)
                size[t, n] += int(absolute)
            start = stop


@_compile
def neuron_step(x, v, bound, out, net, size, threshold, initial, run, low, high, bound_step, side):
    """One step of neurons with state. x, v, bound, out: [N, M] float32 (bound: [1, 1] if side is 0); net,
    size: [N].
    """
    codes = np.empty(TILE, np.float32)
    s, o = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    known = -1
    for n in range(x.shape[0]):
        b = bound[n] if side != 0 else bound[0]
        net[n], size[n], start = 0, 0, 0
        while start < x.shape[1]:
            stop, known = _segment(start, x.shape[1], threshold, initial, run, s, o, known)
            here = slice(start, stop)
            tile_bound = b[here] if side != 0 else b
            total, absolute = _neuron_tile(
                x[n, here], v[n, here], tile_bound, codes, out[n, here], s, low, high, bound_step, side
            )
            net[n] += int(total)
            size[n] += int(absolute)
            start = stop


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
        w = v[i] + x[i] / threshold[i]
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
        out[i] = k * threshold[i]
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
