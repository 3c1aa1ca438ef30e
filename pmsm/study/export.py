"""A saved network in the format of another tool: which formats there are, and what each needs first."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pmsm import graph
from pmsm.errors import ConversionError, SettingsError
from pmsm.graph import Network
from pmsm.methods.base import Quantizer
from pmsm.qann.onnx import export_onnx
from pmsm.qann.units import WHOLE_LAYERS
from pmsm.qann.weights import quantize_weights
from pmsm.snn.c_header import export_c
from pmsm.snn.checkpoint import load
from pmsm.snn.convert import convert
from pmsm.snn.explicit import export_program
from pmsm.snn.header import read_header
from pmsm.snn.nir import export_nir
from pmsm.snn.npz import export_npz

WHOLE: dict[str, Callable[[Network, Path, Tensor], None]] = {
    "npz": lambda network, path, _: export_npz(network, path),
    "c": lambda network, path, _: export_c(network, path),
    "nir": lambda network, path, _: export_nir(network, path),
    "onnx": export_onnx,
}
"""Formats of rounded networks, whose numbers are all whole."""

FORMATS = (*WHOLE, "pt2")
SUFFIXES = {"c": "h"}


def export(
    source: str | Path,
    to: str,
    path: str | Path | None = None,
    *,
    bits: int = 8,
    aligned: bool = True,
    floating: bool = False,
    state: bool = False,
) -> Path:
    """Write the network that `pmsm.save` put at `source` in another format; returns where.

    Args:
        to: one of `FORMATS`.
        path: of the new file; default: beside `source`, with the ending of the format.
        bits, aligned: how a network that is not rounded yet is, see `quantize_weights`; without data, so it
            keeps the initial potentials that calibration chose.
        floating: "onnx" in float32, unrounded, by `export_program`, as "pt2" always is: any network that
            converts. What is rounded has 8-bit kernels.
        state: one timestep with its state in and out, by `export_program`; "onnx" and "pt2" only.

    Raises:
        SettingsError: an unknown format, or settings that it has not.
        ConversionError: a spiking network for a rounded format: rounding needs the quantized network.
        CheckpointError, QuantizationError: see `load` and the format.
    """
    source = Path(source)
    if to not in FORMATS:
        raise SettingsError(f"the formats are {', '.join(FORMATS)}, got {to!r}.")
    if (state or floating) and to not in ("onnx", "pt2"):
        raise SettingsError(f"{to!r} holds whole numbers alone; state and float32 are for 'onnx' and 'pt2'.")
    path = source.with_suffix(f".{SUFFIXES.get(to, to)}") if path is None else Path(path)
    network = load(source)
    examples = tuple(
        torch.zeros(2, *entry["shape"][1:], dtype=getattr(torch, entry["dtype"].removeprefix("torch.")))
        for entry in read_header(source).inputs
    )
    if to == "pt2" or floating or state:
        quantized = any(True for _ in graph.modules(network, Quantizer))
        export_program(convert(network) if state and quantized else network, path, examples, state=state)
        return path
    if not any(isinstance(module, WHOLE_LAYERS) for module in network.modules()):
        if not any(True for _ in graph.modules(network, Quantizer)):
            raise ConversionError(
                f"{source} holds a spiking network, and {to!r} needs weights that were rounded before "
                f"conversion. Save the quantized network, pmsm.save(qann, path), and export that."
            )
        network = quantize_weights(network, bits=bits, aligned=aligned)
    WHOLE[to](network, path, examples[0])
    return path


def told(path: Path) -> dict[str, Any]:
    """What was written, JSON-able."""
    return {"file": str(path), "bytes": path.stat().st_size}
