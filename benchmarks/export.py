"""How much faster is the exported 8-bit network than the float one? ResNet-20, one thread, interleaved.

Run: .venv/bin/python benchmarks/export.py [--repeats 15] [--out results/export.jsonl]
Random weights (speed does not depend on them), PMSM(levels=9) at T=1, random pictures of 3x32x32, batches of
64 and of 1. Beside each other in one run: the float network in PyTorch and in onnxruntime, and the exported
network in onnxruntime with the default settings, without `aligned`, and with one step per site. Processor
time of the one thread; needs the extra `onnx`.
"""

import argparse
import json
import platform
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from cost import interleave, quotient
from torch import Tensor, nn

from pmsm.ann.models import resnet20
from pmsm.methods import PMSM
from pmsm.qann.calibrate import calibrate
from pmsm.qann.onnx import OPSET, export_onnx
from pmsm.qann.quantize import quantize
from pmsm.qann.weights import quantize_weights
from pmsm.study.demo import environment

INT8 = {
    "int8": (True, True),
    "int8, aligned=False": (True, False),
    "int8, per_channel=False": (False, True),
}
"""Name -> (per_channel, aligned)."""


def main() -> None:
    """Print the ratios and write them, with the environment."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(64, 3, 32, 32)
    with tempfile.TemporaryDirectory() as folder:
        engines = build(resnet20().eval(), x, Path(folder))
    for batch, calls in ((64, 1), (1, 20)):
        work = {name: _calls(engine, x[:batch], calls) for name, engine in engines.items()}
        times, _ = interleave(work, options.repeats)
        pairs = [(float_, name) for name in INT8 for float_ in ("float, PyTorch", "float, onnxruntime")]
        ratios = {f"{float_} / {name}": quotient(times, float_, name) for float_, name in pairs}
        for what, (median, low, high) in ratios.items():
            print(f"batch {batch:2d}  {what:48s} {median:6.2f}   quartiles {low:.2f} to {high:.2f}")
        if options.out:
            row = {
                "benchmark": "export", "network": "ResNet-20", "levels": 9, "batch": batch,
                "n": options.repeats, "machine": platform.machine(), "environment": environment(0),
                "onnxruntime": onnxruntime.__version__,
                "ratios": {k: {"median": m, "quartiles": [a, b]} for k, (m, a, b) in ratios.items()},
            }  # fmt: skip
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")


def build(ann: nn.Module, x: Tensor, folder: Path) -> dict[str, Callable[[Tensor], Any]]:
    """Name -> the network in that form, as a function of a batch."""

    def in_pytorch(x: Tensor) -> Any:
        """The float network as it is."""
        with torch.inference_mode():
            return ann(x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is torch's older one; the other needs more packages
        torch.onnx.export(
            ann, (x[:2],), str(folder / "float.onnx"), dynamo=False, opset_version=OPSET,
            input_names=["input"], dynamic_axes={"input": {0: "N"}},
        )  # fmt: skip
    engines = {"float, PyTorch": in_pytorch, "float, onnxruntime": session(folder / "float.onnx")}
    for name, (per_channel, aligned) in INT8.items():
        qann = calibrate(quantize(ann, PMSM(levels=9, per_channel=per_channel), x[:2]), x)
        export_onnx(quantize_weights(qann, x, aligned=aligned), folder / "int8.onnx", x)
        engines[name] = session(folder / "int8.onnx")
    return engines


def session(path: Path) -> Callable[[Tensor], Any]:
    """The file in onnxruntime, on one thread."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    running = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    return lambda x: running.run(None, {"input": x.numpy()})


def _calls(engine: Callable[[Tensor], Any], x: Tensor, times: int) -> Callable[[], None]:
    def work() -> None:
        """So many batches, so that one measurement is long enough."""
        for _ in range(times):
            engine(x)

    return work


if __name__ == "__main__":
    main()
