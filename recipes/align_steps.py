"""How much does it cost to let residual steps share a profile, and which mean of them costs least?

Run: .venv/bin/python recipes/align_steps.py --data CIFAR10_FOLDER --weights FOLDER [--images 3000]
ResNet-20, calibrated on 512 training images, not trained, weights in floating point: only the steps move. The
Kullback-Leibler divergence, in nats, of the quantized network's answers from the float network's, on other
training images, whose labels are not read. `pmsm.qann.align.POWER` follows this. One line per number of
levels goes to results/align_steps.jsonl.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from pretrained import arguments, network, pictures
from torch import Tensor

from pmsm import graph
from pmsm.ann.data.images import normalize
from pmsm.methods import PMSM
from pmsm.qann.align import align
from pmsm.qann.calibrate import calibrate
from pmsm.qann.potential import match_means
from pmsm.qann.quantize import quantize
from pmsm.study.demo import environment

RESULTS = Path(__file__).parent.parent / "results" / "align_steps.jsonl"
WAYS: dict[str, dict[str, Any]] = {
    "own steps": {"bytes_": False},
    **{f"power {power}": {"power": power} for power in (1, 2, 4, 8, 16)},
}


def main() -> None:
    """Every number of levels, one line each."""
    parser = arguments(__doc__, RESULTS)
    parser.add_argument("--images", type=int, default=3_000)
    parser.add_argument("--levels", type=int, action="append", help="Default: 9, 17 and 33.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ann = network("resnet20", options.weights)
    train, _ = pictures(options.data, options.weights)
    calibration = normalize(train.images[:512], train.mean, train.std)
    others = normalize(train.images[512 : 512 + options.images], train.mean, train.std)
    wanted = log_shares(ann, others)
    for levels in options.levels or (9, 17, 33):
        qann = calibrate(quantize(ann, PMSM(levels=levels), calibration[:2]), calibration)
        folded = graph.fold_batchnorm(qann)
        row: dict[str, Any] = {"recipe": "align_steps", "network": "resnet20", "data": "CIFAR-10 training",
                               "images": len(others), "levels": levels}  # fmt: skip
        row["divergence"] = {"as calibrated": divergence(wanted, qann, others)}
        for name, settings in WAYS.items():
            aligned = align(copy.deepcopy(folded), **settings)
            match_means(aligned, (calibration,))
            row["divergence"][name] = divergence(wanted, aligned, others)
        print(json.dumps(row), flush=True)
        with options.results.open("a") as file:
            file.write(json.dumps(row | {"environment": environment(0)}) + "\n")


@torch.no_grad()
def log_shares(network: Any, x: Tensor) -> Tensor:
    """[N, classes], natural logarithm of the softmax."""
    return torch.cat([network(part) for part in x.split(250)]).log_softmax(1)


def divergence(wanted: Tensor, network: Any, x: Tensor) -> dict[str, float]:
    """Mean over images of sum p log(p / q), and the standard error of that mean; nats."""
    each = (wanted.exp() * (wanted - log_shares(network, x))).sum(1)
    return {"mean": round(float(each.mean()), 5), "error": round(float(each.std() / len(each) ** 0.5), 5)}


if __name__ == "__main__":
    main()
