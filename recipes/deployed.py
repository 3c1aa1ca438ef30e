"""Does the network that is shipped compute what the quantized network does? ResNet-20 on CIFAR-10.

Run: .venv/bin/python recipes/deployed.py --data CIFAR10_FOLDER --weights FILE [--images 10000]
Calibrated on 512 training images, not trained; int8 weights and input. Per number of levels and kind of step:
the accuracy of the quantized network, of its rounded copy in float32, of the integer network, and of the ONNX
file in onnxruntime and OpenVINO; how many of their codes and answers agree. One line each goes to
results/deployed.jsonl. Needs the extra `onnx`, and openvino.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import openvino
import torch
from safetensors.torch import load_file
from torch import Tensor

from pmsm.ann.data import cifar10
from pmsm.ann.data.images import Batches
from pmsm.ann.models import resnet20
from pmsm.methods import PMSM
from pmsm.methods.base import Quantizer
from pmsm.qann.calibrate import calibrate
from pmsm.qann.onnx import export_onnx
from pmsm.qann.quantize import quantize
from pmsm.qann.weights import quantize_weights
from pmsm.snn.integer import integer
from pmsm.study.demo import environment

RESULTS = Path(__file__).parent.parent / "results" / "deployed.jsonl"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # those of the weights, from their README


def main() -> None:
    """Every number of levels and kind of step, one line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument(
        "--images", type=int, default=10_000, help="for the default: aligned, one per channel"
    )
    parser.add_argument("--beside", type=int, default=2_000, help="images for the other kinds of step")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train_set, test_set = (replace(images, mean=MEAN, std=STD) for images in cifar10(options.data))
    calibration = Batches(train_set.take(slice(0, 512)), 128)
    ann = resnet20()
    ann.load_state_dict(load_file(options.weights), strict=True)
    ann.eval()
    for per_channel, aligned in ((True, True), (True, False), (False, True), (False, False)):
        main_ = per_channel and aligned
        images = test_set.take(slice(0, options.images if main_ else options.beside))
        for levels in (9, 17, 33):
            method = PMSM(levels=levels, per_channel=per_channel)
            row = {"recipe": "deployed", "network": "resnet20", "data": "CIFAR-10 test",
                   "images": len(images), "levels": levels, "per_channel": per_channel, "aligned": aligned,
                   "weight_bits": 8, "input_step": 2.0**-5}  # fmt: skip
            row |= deploy(ann, method, calibration, Batches(images, 250), aligned=aligned, integers=main_)
            print(json.dumps(row), flush=True)
            with options.results.open("a") as file:
                file.write(json.dumps(row | {"environment": environment(0)}) + "\n")


def deploy(
    ann: Any, method: PMSM, calibration: Batches, test: Batches, *, aligned: bool, integers: bool
) -> dict[str, Any]:
    """Quantize, calibrate, round, and measure; what `measure` returns."""
    qann = calibrate(quantize(ann, method, next(_inputs(calibration))[:2]), calibration)
    rounded = quantize_weights(qann, calibration, aligned=aligned)
    with torch.no_grad():
        answers = {
            name: torch.cat([form(x).argmax(1) for x in _inputs(test)])
            for name, form in {"float": ann, "qann": qann}.items()
        }
    return measure(rounded, test, answers, integers=integers)


@torch.no_grad()
def measure(rounded: Any, test: Batches, answers: dict[str, Tensor], *, integers: bool) -> dict[str, Any]:
    """Accuracy in percent of every form, answers that agree with the rounded network's, codes that differ."""
    labels = torch.cat([y for _, y in test])
    seen: dict[str, Tensor] = {}
    for module in rounded.modules():
        if isinstance(module, Quantizer):
            module.register_forward_hook(_keep_codes(seen))
    network, found, codes, different = integer(rounded), {}, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        engines = runtimes(rounded, next(_inputs(test)), Path(folder))
    for x in _inputs(test):
        found.setdefault("rounded", []).append(rounded(x).argmax(1))
        for name, engine in engines.items():
            found.setdefault(name, []).append(engine(x).argmax(1))
        if integers:
            run = network(x, record=True)
            found.setdefault("integer", []).append(run.output.argmax(1))
            codes += sum(counts.numel() for counts in run.counts.values())
            different += sum(int((run.counts[name][0] != seen[name]).sum()) for name in run.counts)
    forms = answers | {name: torch.cat(parts) for name, parts in found.items()}
    return {
        "accuracy": {name: _percent(form == labels) for name, form in forms.items()},
        "agree_with_rounded": {name: _percent(form == forms["rounded"]) for name, form in forms.items()},
        "codes_compared": codes,
        "codes_different": different,
    }


def runtimes(rounded: Any, example: Tensor, folder: Path) -> dict[str, Callable[[Tensor], Tensor]]:
    """The exported file in onnxruntime and in OpenVINO, one thread each."""
    path = folder / "network.onnx"
    export_onnx(rounded, path, example)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    in_float32 = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", in_float32)
    return {
        "onnxruntime": lambda x: torch.from_numpy(session.run(None, {"input": x.numpy()})[0]),
        "openvino": lambda x: torch.from_numpy(compiled(x.numpy())[0].copy()),
    }


def _inputs(test: Batches) -> Iterator[Tensor]:
    yield from (x for x, _ in test)


def _keep_codes(seen: dict[str, Tensor]) -> Callable[[Any, Any, Tensor], None]:
    def keep(quantizer: Any, _: Any, out: Tensor) -> None:
        seen[quantizer.site.name] = (out / quantizer.scale()).round().to(torch.int32)

    return keep


def _percent(right: Tensor) -> float:
    return round(100 * float(right.double().mean()), 4)


if __name__ == "__main__":
    main()
