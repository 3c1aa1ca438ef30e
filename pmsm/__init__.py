"""pmsm: turn a trained PyTorch network into a spiking network that is exact at the first timestep."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pmsm.ann.evaluate import evaluate
    from pmsm.ann.train import train
    from pmsm.methods import METHODS, PMSM, QCFS, STBIF
    from pmsm.qann.adopt import adopt
    from pmsm.qann.calibrate import calibrate
    from pmsm.qann.kept import kept
    from pmsm.qann.onnx import export_onnx
    from pmsm.qann.quantize import clipped, quantize
    from pmsm.qann.weights import quantize_weights
    from pmsm.snn.c_header import export_c
    from pmsm.snn.checkpoint import load, save
    from pmsm.snn.convert import RULES, convert
    from pmsm.snn.events import events
    from pmsm.snn.explicit import export_program
    from pmsm.snn.integer import integer
    from pmsm.snn.nir import export_nir
    from pmsm.snn.npz import export_npz
    from pmsm.snn.run import Run
    from pmsm.snn.running import running
    from pmsm.snn.simulate import simulate
    from pmsm.snn.temporal import Rule
    from pmsm.snn.verify import verify
    from pmsm.study.allocation.allocate import allocate
    from pmsm.study.compare import compare
    from pmsm.study.energy.measure import measure
    from pmsm.study.energy.measurement import Measurement
    from pmsm.study.energy.technology import TECHNOLOGIES
    from pmsm.study.explain import explain

__version__ = "0.1.0"

__all__ = [
    "METHODS", "Measurement", "PMSM", "QCFS", "RULES", "Rule", "Run", "STBIF", "TECHNOLOGIES", "adopt",
    "allocate", "calibrate", "clipped", "compare", "convert", "evaluate", "events", "explain", "export_c",
    "export_nir", "export_npz", "export_onnx", "export_program", "integer", "kept", "load", "measure",
    "quantize", "quantize_weights", "running", "save", "simulate", "train", "verify",
]  # fmt: skip

_HOME = {
    "METHODS": "methods", "PMSM": "methods", "QCFS": "methods", "STBIF": "methods",
    "adopt": "qann.adopt", "calibrate": "qann.calibrate", "kept": "qann.kept", "clipped": "qann.quantize",
    "quantize": "qann.quantize", "quantize_weights": "qann.weights", "export_onnx": "qann.onnx",
    "integer": "snn.integer", "events": "snn.events", "export_npz": "snn.npz",
    "export_c": "snn.c_header", "export_program": "snn.explicit",
    "export_nir": "snn.nir",
    "RULES": "snn.convert", "convert": "snn.convert", "Run": "snn.run",
    "load": "snn.checkpoint", "save": "snn.checkpoint",
    "running": "snn.running", "simulate": "snn.simulate", "Rule": "snn.temporal", "verify": "snn.verify",
    "evaluate": "ann.evaluate", "train": "ann.train", "explain": "study.explain",
    "measure": "study.energy.measure", "Measurement": "study.energy.measurement",
    "TECHNOLOGIES": "study.energy.technology", "allocate": "study.allocation.allocate",
    "compare": "study.compare",
}  # fmt: skip
"""Public name -> the file that defines it; imported on first use, so that `pmsm --help` need not load
torch.
"""


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'pmsm' has no attribute {name!r}")
    return getattr(import_module(f"pmsm.{_HOME[name]}"), name)
