"""The network of a run as the file that is shipped; the suffix says which form it takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pmsm.errors import SettingsError
from pmsm.graph import Network
from pmsm.qann.onnx import export_onnx
from pmsm.qann.weights import quantize_weights
from pmsm.snn.checkpoint import save
from pmsm.snn.convert import convert
from pmsm.snn.npz import export_npz
from pmsm.study.experiment import Source, load_experiment

Write = Callable[[Network, Source, Path], Network]
"""(quantized network of a run, its data, the file) -> the network that the file holds."""


def _spiking(qann: Network, source: Source, path: Path) -> Network:
    save(convert(qann), path)
    return qann


def _integers(qann: Network, source: Source, path: Path) -> Network:
    rounded = quantize_weights(qann, source.calibration)
    export_npz(rounded, path)
    return rounded


def _graph(qann: Network, source: Source, path: Path) -> Network:
    rounded = quantize_weights(qann, source.calibration)
    export_onnx(rounded, path, _example(source)[:1])
    return rounded


FORMS: dict[str, tuple[str, Write]] = {
    ".safetensors": ("spiking network, for pmsm.load", _spiking),
    ".npz": ("whole numbers, for NumPy", _integers),
    ".onnx": ("8-bit kernels, for onnxruntime and OpenVINO", _graph),
}
"""Suffix of a file -> what it holds, and what writes it."""


def export_run(folder: Path, path: Path) -> dict[str, Any]:
    """Write the network of the run in `folder` to `path`.

    Returns:
        file, form, bytes; samples, and `agreement`: share of the first test samples, in percent, to which the
        shipped network gives the same answer as the network of the run (integers are rounded anew).

    Raises:
        SettingsError: a suffix that no form has.
        PMSMError: what that form cannot hold, in the words of the function that writes it.
    """
    if path.suffix not in FORMS:
        known = "; ".join(f"FILE{suffix}: {told}" for suffix, (told, _) in FORMS.items())
        raise SettingsError(f"cannot export to {str(path)!r}, its suffix says the form. Write {known}.")
    told, write = FORMS[path.suffix]
    _, source, qann = load_experiment(folder)
    shipped = write(qann, source, path)
    x = _example(source)
    with torch.no_grad():
        same = (qann(x).argmax(1) == shipped(x).argmax(1)).double().mean()
    return {
        "file": str(path), "form": told, "bytes": path.stat().st_size, "samples": len(x),
        "agreement": 100 * float(same),
    }  # fmt: skip


def _example(source: Source) -> Tensor:
    """A batch of test samples, single frames where there are events."""
    return next(iter(source.valid))[0]
