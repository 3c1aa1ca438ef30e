"""Runs a file of `pmsm.export_npz` with NumPy alone: run(path, x, timesteps) -> [T, N, outputs] sums."""

import json

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def windows(x, kernel, stride, padding, dilation=(1, 1), fill=0):
    """[N, C, H, W] -> [N, C, H', W', kh, kw]."""
    x = np.pad(x, ((0, 0), (0, 0), *((p, p) for p in padding)), constant_values=fill)
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    view = sliding_window_view(x, spans, axis=(2, 3))
    return view[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def channels(values, x):
    """[C] -> shaped to go with [N, C, ...]."""
    return values.reshape(1, -1, *[1] * (x.ndim - 2))


def conv(x, op, a):
    """[N, C, H, W] counts -> [N, O, H', W'] units of the weights, int32."""
    out = []
    kernels = np.split(a["weight"].astype(np.int32), op["groups"])
    for part, weight in zip(np.split(x, op["groups"], 1), kernels, strict=True):
        view = windows(part, weight.shape[2:], op["stride"], op["padding"], op["dilation"])
        out.append(np.einsum("nchwij,ocij->nohw", view, weight, optimize=True))
    return np.concatenate(out, 1) + channels(a["bias"], x)


def neuron(x, op, a, state):
    """Input current and state of an integrating neuron -> signed counts, both [N, C, ...]."""
    threshold = channels(a["threshold"], x)
    v = x + state.get("v", channels(a["start"], x))
    count = np.clip((v + threshold // 2) // threshold, op["least"], op["most"])
    if op["side"]:
        step = op["quant_min"] if op["side"] > 0 else op["quant_max"]
        bound = state.get("bound", np.full_like(count, step))
        count = np.maximum(count, bound) if op["side"] > 0 else np.minimum(count, bound)
        state["bound"] = bound - count + step
    state["v"] = v - count * threshold
    return count


def maxpool(x, op, state):
    """Counts -> by how much the largest sum so far in each window has grown."""
    state["total"] = state.get("total", 0) + x
    view = windows(state["total"], op["kernel"], op["stride"], op["padding"], fill=-(2**31) + 1)
    found, sent = view.max((4, 5)), state.get("found", 0)
    state["found"] = found
    return found - sent


def step(op, a, xs, state):
    """One operation at one timestep."""
    kind, x = op["kind"], xs[0]
    if kind == "conv":
        return conv(x, op, a)
    if kind == "linear":
        return x @ a["weight"].astype(np.int32).T + a["bias"]
    if kind == "sum":
        return sum(x * channels(worth, x) for x, worth in zip(xs, a["worth"], strict=True))
    if kind == "sumpool":
        return windows(x, op["kernel"], op["stride"], op["padding"]).sum((4, 5), dtype=np.int32)
    if kind == "move":
        flat = np.concatenate([x.reshape(len(x), -1) for x in xs] + [np.zeros((len(x), 1), np.int32)], 1)
        return flat[:, a["index"].ravel()].reshape(len(x), *op["shape"])  # index -1 is the zero at the end
    return maxpool(x, op, state) if kind == "maxpool" else neuron(x, op, a, state)


def run(path, x, timesteps=1):
    """[N, ...] float32 -> [T, N, outputs] int64, outputs added up; times output_unit / t: the read-out."""
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    table = json.loads(str(arrays.pop("operations")))["operations"]
    held = [
        {k.split(".")[1]: v for k, v in arrays.items() if k.startswith(f"{i}.")} for i in range(len(table))
    ]
    scaled = np.floor(x.astype(np.float32) / np.float32(table[0]["step"]) + np.float32(0.5))
    states, sums = [{} for _ in table], []
    for _ in range(timesteps):
        values = {table[0]["name"]: np.clip(scaled, -127, 127).astype(np.int32)}
        for op, a, state in list(zip(table, held, states, strict=True))[1:]:
            values[op["name"]] = step(op, a, [values[name] for name in op["inputs"]], state)
        sums.append(values[op["name"]].astype(np.int64))
    return np.cumsum(sums, 0)
