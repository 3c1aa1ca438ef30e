"""Does the network that is shipped compute what the quantized network does? ResNet-20 on CIFAR-10.

Run: .venv/bin/python recipes/deployed.py --data CIFAR10_FOLDER --weights FOLDER [--images 10000] [--levels 9]
Calibrated on 512 training images, not trained; int8 weights and input. Beside each other: the accuracy of the
float network, the quantized network, its rounded copy in float32 (int8 weights), the integer network, the
network of events, docs/read_npz.py on the exported .npz, and the ONNX file in onnxruntime and OpenVINO; and
how many counts and outputs differ. Events and NumPy run on the first `--slow` images alone. One line each
goes to results/deployed.jsonl. Needs the extra `onnx`, and openvino.
"""

import json
import runpy
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import openvino
import torch
from pretrained import arguments, network, pictures
from torch import Tensor

from pmsm.ann.data.images import Batches
from pmsm.methods import PMSM
from pmsm.methods.base import Quantizer
from pmsm.qann.calibrate import calibrate
from pmsm.qann.onnx import export_onnx
from pmsm.qann.quantize import quantize
from pmsm.qann.weights import quantize_weights
from pmsm.snn.events import events
from pmsm.snn.integer import integer
from pmsm.snn.npz import export_npz
from pmsm.study.demo import environment

HERE = Path(__file__).parent.parent
RESULTS = HERE / "results" / "deployed.jsonl"
BATCH = 250


def main() -> None:
    """Every number of levels and kind of step, one line each."""
    parser = arguments(__doc__, RESULTS)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--slow", type=int, default=BATCH, help="images for events and NumPy")
    parser.add_argument("--levels", type=int, action="append", help="default: 9, 17 and 33")
    parser.add_argument("--own-steps", action="store_true", help="aligned=False")
    parser.add_argument("--per-site", action="store_true", help="per_channel=False")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ann = network("resnet20", options.weights)
    train, test = pictures(options.data, options.weights)
    calibration = Batches(train.take(slice(0, 512)), 128)
    images = test.take(slice(0, options.images))
    for levels in options.levels or (9, 17, 33):
        method = PMSM(levels=levels, per_channel=not options.per_site)
        row = {"recipe": "deployed", "network": "resnet20", "data": "CIFAR-10 test",
               "images": len(images), "levels": levels, "per_channel": method.per_channel,
               "aligned": not options.own_steps, "weight_bits": 8, "input_step": 2.0**-5}  # fmt: skip
        qann = calibrate(quantize(ann, method, next(_inputs(calibration))[:2]), calibration)
        rounded = quantize_weights(qann, calibration, aligned=not options.own_steps)
        row |= measure(ann, qann, rounded, Batches(images, BATCH), options.slow)
        print(json.dumps(row), flush=True)
        with options.results.open("a") as file:
            file.write(json.dumps(row | {"environment": environment(0)}) + "\n")


@torch.no_grad()
def measure(ann: Any, qann: Any, rounded: Any, test: Batches, slow: int) -> dict[str, Any]:
    """Accuracy in percent of every form, answers that agree with the rounded network's, counts and outputs
    that differ from the integer network's.
    """
    seen: dict[str, Tensor] = {}
    for module in rounded.modules():
        if isinstance(module, Quantizer):
            module.register_forward_hook(_keep_codes(seen))
    network, answers, counts, different = integer(rounded), {}, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        forms: dict[str, Any] = {"float": ann, "qann": qann, "rounded": rounded}
        forms |= runtimes(rounded, next(_inputs(test)), Path(folder))
        few = on_few(rounded, Path(folder))
        outputs = {name: [0, 0] for name in ("rounded", "onnxruntime", "openvino", *few)}
        for i, x in enumerate(_inputs(test)):
            run = network(x, record=True)
            answers.setdefault("integer", []).append(run.output.argmax(1))
            for name, form in forms.items():
                found = form(x)
                answers.setdefault(name, []).append(found.argmax(1))
                if name in outputs:  # every output is a whole multiple of its unit: which one?
                    _compare(outputs[name], (found.double() / run.unit).round(), run.sums[0])
            counts += sum(kept.numel() for kept in run.counts.values())
            different += sum(int((run.counts[name][0] != seen[name]).sum()) for name in run.counts)
            for name, form in few.items() if i * BATCH < slow else ():
                _compare(outputs[name], form(x[: slow - i * BATCH]), run.sums[0])
    labels = torch.cat([y for _, y in test])
    found = {name: torch.cat(parts) for name, parts in answers.items()}
    compared = {name: {"compared": n, "different": k} for name, (n, k) in outputs.items()}
    return {
        "accuracy": {name: _percent(form == labels) for name, form in found.items()},
        "agree_with_rounded": {name: _percent(form == found["rounded"]) for name, form in found.items()},
        "codes_compared": counts,
        "codes_different": different,
        "outputs": compared,
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


def on_few(rounded: Any, folder: Path) -> dict[str, Callable[[Tensor], Tensor]]:
    """Event by event, and the .npz file read with NumPy alone: [N, outputs] whole numbers each."""
    path, by_event = folder / "network.npz", events(rounded)
    export_npz(rounded, path)
    read = runpy.run_path(str(HERE / "docs" / "read_npz.py"))["run"]
    return {
        "events": lambda x: by_event(x).sums[0],
        "numpy": lambda x: torch.from_numpy(read(path, x.numpy())[0]),
    }


def _compare(tally: list[int], found: Tensor, sums: Tensor) -> None:
    tally[0] += found.numel()
    tally[1] += int((found != sums[: len(found)]).sum())


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
