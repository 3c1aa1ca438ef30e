"""As recipes/deployed.py, for a VGG with MaxPool and for vision transformers.

Run: .venv/bin/python recipes/deployed_others.py --data CIFAR10_FOLDER --fashion FASHION_FOLDER [--images 500]
VGG-16 and a transformer with random weights (BatchNorm with the statistics of training images) on CIFAR-10,
and a transformer that was trained for one epoch on a third of Fashion-MNIST; calibrated on 512 training
images; the pictures are test images. VGG-16 is rounded and compared in every form. A transformer has no
integer form (softmax, LayerNorm and GELU need floats): its quantized network is compared with what
`export_program` writes, in torch.export, onnxruntime and OpenVINO. One line each goes to
results/deployed_others.jsonl. Needs the extras `onnx` and `train`, and openvino.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import onnxruntime
import openvino
import torch
from deployed import BATCH, measure
from torch import Tensor, nn
from vit_fashion import Rgb

from pmsm.ann.data import cifar10, fashion_mnist
from pmsm.ann.data.images import Batches, Images
from pmsm.ann.models.vgg import vgg16
from pmsm.ann.models.vit import VisionTransformer, vit_tiny_patch4_32
from pmsm.ann.train import evaluate, train
from pmsm.methods import PMSM
from pmsm.qann.calibrate import calibrate
from pmsm.qann.quantize import quantize
from pmsm.qann.weights import quantize_weights
from pmsm.snn.explicit import export_program
from pmsm.study.demo import environment

RESULTS = Path(__file__).parent.parent / "results" / "deployed_others.jsonl"
NETWORKS = ("vgg16", "vit", "vit_fashion")


def main() -> None:
    """One line for each network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fashion", type=Path, required=True)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--slow", type=int, default=20, help="images for events and NumPy")
    parser.add_argument("--levels", type=int, default=9)
    parser.add_argument("--network", choices=NETWORKS, action="append")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.network or NETWORKS:
        trains = name == "vit_fashion"
        train_set, test_set = fashion_mnist(options.fashion) if trains else cifar10(options.data)
        calibration: Any = Batches(train_set.take(slice(0, 512)), 128)
        pictures: Any = Batches(test_set.take(slice(0, options.images)), BATCH)
        if trains:
            calibration, pictures = Rgb(calibration), Rgb(pictures)
        ann = trained(train_set) if trains else random(name, calibration)
        example = next(iter(calibration))[0][:2]
        qann = calibrate(quantize(ann, PMSM(levels=options.levels), example), calibration)
        row: dict[str, Any] = {"recipe": "deployed_others", "network": name, "data": test_set.name,
                               "images": options.images, "levels": options.levels}  # fmt: skip
        if name == "vgg16":
            row |= measure(ann, qann, quantize_weights(qann, calibration), pictures, options.slow)
        else:
            row |= {"qann_accuracy": evaluate(qann, pictures)} | measure_floats(qann, pictures)
        print(json.dumps(row), flush=True)
        with options.results.open("a") as file:
            file.write(json.dumps(row | {"environment": environment(0)}) + "\n")


def random(name: str, batches: Any) -> nn.Module:
    """A network with random weights, whose BatchNorms have seen `batches`."""
    torch.manual_seed(0)
    ann = (vgg16 if name == "vgg16" else vit_tiny_patch4_32)().train()
    with torch.no_grad():
        for x, _ in batches:
            ann(x)
    return ann.eval()


def trained(images: Images) -> nn.Module:
    """A transformer of four blocks, one epoch on 20,000 pictures."""
    torch.manual_seed(0)
    ann = VisionTransformer(28, 4, 96, 4, 3, 10)
    batches: Any = Rgb(Batches(images.take(slice(0, 20_000)), 128, seed=0, shuffle=True, drop_last=True))
    train(ann, batches, epochs=1, optimizer="adamw", weight_decay=0.05, warmup_epochs=0.2)
    return ann.eval()


@torch.no_grad()
def measure_floats(qann: nn.Module, test: Any) -> dict[str, Any]:
    """Answers in percent that agree with the quantized network's, and the largest difference of an output,
    beside the spread (standard deviation) of the outputs.
    """
    with tempfile.TemporaryDirectory() as folder:
        forms = exported(qann, next(iter(test))[0], Path(folder))
    agree, largest, expected = dict.fromkeys(forms, 0), dict.fromkeys(forms, 0.0), []
    for x, _ in test:
        expected.append(qann(x))
        for name, form in forms.items():
            found = form(x)
            agree[name] += int((found.argmax(1) == expected[-1].argmax(1)).sum())
            largest[name] = max(largest[name], float((found - expected[-1]).abs().max()))
    outputs = torch.cat(expected)
    return {
        "agree_with_qann": {name: round(100 * n / len(outputs), 4) for name, n in agree.items()},
        "largest_difference": {name: float(f"{value:.3g}") for name, value in largest.items()},
        "spread": round(float(outputs.std()), 4),
    }


def exported(qann: Any, example: Tensor, folder: Path) -> dict[str, Any]:
    """What `export_program` writes, loaded by torch.export, onnxruntime and OpenVINO; one thread each."""
    for suffix in ("pt2", "onnx"):
        export_program(qann, folder / f"network.{suffix}", example)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    path = folder / "network.onnx"
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    in_float32 = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", in_float32)
    return {
        "torch.export": torch.export.load(folder / "network.pt2").module(),
        "onnxruntime": lambda x: torch.from_numpy(session.run(None, {"input": x.numpy()})[0]),
        "openvino": lambda x: torch.from_numpy(compiled(x.numpy())[0].copy()),
    }


if __name__ == "__main__":
    main()
