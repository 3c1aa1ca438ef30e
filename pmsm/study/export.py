"""A network in the format of another tool: which formats there are, and what each needs first."""

from collections.abc import Callable
from dataclasses import dataclass
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
from pmsm.snn.checkpoint import load, save
from pmsm.snn.convert import convert
from pmsm.snn.explicit import export_program
from pmsm.snn.header import read_header
from pmsm.snn.nir import export_nir
from pmsm.snn.npz import export_npz
from pmsm.study.experiment import load_experiment

WHOLE: dict[str, Callable[[Network, Path, Tensor], None]] = {
    "npz": lambda network, path, _: export_npz(network, path),
    "c": lambda network, path, _: export_c(network, path),
    "nir": lambda network, path, _: export_nir(network, path),
    "onnx": lambda network, path, example: export_onnx(network, path, example),
}
"""Formats of rounded networks, whose numbers are all whole."""

FORMATS = (*WHOLE, "pt2", "safetensors")
SUFFIXES = {"c": "h"}


@dataclass(frozen=True)
class Origin:
    """What is exported: a network, example inputs, and if it is a run's, data to calibrate and test on."""

    network: Network
    examples: tuple[Tensor, ...]
    beside: Path
    calibration: Any = None
    test: Tensor | None = None

    @property
    def quantized(self) -> bool:
        """Whether it still has quantizers, not neurons."""
        return any(True for _ in graph.modules(self.network, Quantizer))


def export(
    source: str | Path,
    to: str,
    path: str | Path | None = None,
    *,
    bits: int = 8,
    aligned: bool = True,
    floating: bool = False,
    state: bool = False,
) -> dict[str, Any]:
    """Write a network in another format.

    Args:
        source: a file of `pmsm.save`, or the folder of a run.
        to: one of `FORMATS`; "safetensors" is the spiking network, for `pmsm.load`.
        path: of the new file; default: beside `source`, or net.* in the folder, with its ending.
        bits, aligned: how a network that is not rounded yet is, see `quantize_weights`; a run's potentials
            are then chosen anew from its data, a file's are kept.
        floating: "onnx" in float32, unrounded, by `export_program`, as "pt2" always is: any network that
            converts. What is rounded has 8-bit kernels.
        state: one timestep with its state in and out, by `export_program`; "onnx" and "pt2" only.

    Returns:
        file, bytes; of a run also samples, and `agreement`: share of the first test samples, in percent, to
        which the network as written gives the same answer as that of the run.

    Raises:
        SettingsError: an unknown format, settings that it has not, or the new file is `source`.
        ConversionError: a spiking network for a rounded format: rounding needs the quantized network.
        CheckpointError, QuantizationError: see `load` and the format.
    """
    source = Path(source)
    if to not in FORMATS:
        raise SettingsError(f"the formats are {', '.join(FORMATS)}, got {to!r}.")
    if (state or floating) and to not in ("onnx", "pt2"):
        raise SettingsError(f"{to!r} has one form; state and float32 are for 'onnx' and 'pt2'.")
    origin = _of_run(source) if source.is_dir() else _of_file(source)
    path = origin.beside.with_suffix(f".{SUFFIXES.get(to, to)}") if path is None else Path(path)
    if path == source:
        raise SettingsError(
            f"the new file would take the place of {str(source)!r}. Name another, --out FILE."
        )
    if to == "safetensors":
        written = convert(origin.network) if origin.quantized else origin.network
        save(written, path)
    elif to == "pt2" or floating or state:
        written = convert(origin.network) if state and origin.quantized else origin.network
        export_program(written, path, origin.examples, state=state)
    else:
        written = _rounded(origin, source, to, bits, aligned)
        WHOLE[to](written, path, origin.examples[0])
    return {"file": str(path), "bytes": path.stat().st_size, **_agreement(origin, written)}


def _of_file(source: Path) -> Origin:
    examples = tuple(
        torch.zeros(2, *entry["shape"][1:], dtype=getattr(torch, entry["dtype"].removeprefix("torch.")))
        for entry in read_header(source).inputs
    )
    return Origin(load(source), examples, source)


def _of_run(folder: Path) -> Origin:
    _, source, qann = load_experiment(folder)
    x = next(iter(source.valid))[0]  # single frames where there are events
    return Origin(qann, (x[:2],), folder / "net", source.calibration, x)


def _rounded(origin: Origin, source: Path, to: str, bits: int, aligned: bool) -> Network:
    """The network with whole numbers for weights."""
    if any(isinstance(module, WHOLE_LAYERS) for module in origin.network.modules()):
        return origin.network
    if not origin.quantized:
        raise ConversionError(
            f"{source} holds a spiking network, and {to!r} needs weights that were rounded before "
            f"conversion. Save the quantized network, pmsm.save(qann, path), and export that."
        )
    return quantize_weights(origin.network, origin.calibration, bits=bits, aligned=aligned)


@torch.no_grad()
def _agreement(origin: Origin, written: Network) -> dict[str, Any]:
    """How often the network that was written answers as the run's does."""
    if origin.test is None:
        return {}
    same = origin.network(origin.test).argmax(1) == written(origin.test).argmax(1)
    return {"samples": len(origin.test), "agreement": 100 * float(same.double().mean())}
