"""How many timesteps until the spiking network *is* its quantized network? One ViT, 32 levels, same weights.

Run: .venv/bin/python recipes/tracking.py CIFAR10_FOLDER [--images 32]
vit_tiny_patch4_32 with random weights, PMSM(levels=32), calibrated on 256 training pictures; the test
pictures are real. T is the first step from which on the read-out equals the quantized network's,
`torch.equal`, for all images. burst 1 is the signed ternary neuron (ST-BIF of SpikeZIP-TF), written here as
`TrackingNeuron`. Appends to results/tracking.jsonl.
"""

import argparse
import json
from pathlib import Path

import torch

from pmsm.ann import data
from pmsm.ann.data.images import Batches
from pmsm.ann.models.vit import vit_tiny_patch4_32
from pmsm.methods import PMSM
from pmsm.qann.calibrate import calibrate
from pmsm.qann.quantize import quantize
from pmsm.snn.convert import convert
from pmsm.snn.run import Run
from pmsm.snn.simulate import simulate
from pmsm.study.demo import environment

RESULTS = Path(__file__).parent.parent / "results" / "tracking.jsonl"
STEPS = 64


def main() -> None:
    """One line per burst limit, and one for the rate code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--levels", type=int, default=32)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    train_set, test_set = data.load(options.directory)
    x = next(iter(Batches(test_set, options.images)))[0]
    calibration = Batches(train_set.take(slice(0, 256)), 64)
    qann = quantize(vit_tiny_patch4_32().eval(), PMSM(levels=options.levels), x[:2])
    calibrate(qann, calibration)
    with torch.no_grad():
        wanted = qann(x)
    for burst in (None, 16, 8, 4, 2, 1):
        run = simulate(convert(qann, mode="tracking", burst=burst), x, STEPS)
        row = {
            "recipe": "tracking", "network": "vit_tiny_patch4_32", "weights": "random", "data": test_set.name,
            "images": len(x), "levels": options.levels, "burst": burst, "timesteps": settled(run, wanted),
            "spikes_per_neuron": run.spikes_per_neuron(), "environment": environment(0),
        }  # fmt: skip
        spikes = f"{row['spikes_per_neuron']:.2f} spikes per neuron"
        print(f"burst {burst or 'free'}: T = {row['timesteps']}, {spikes}", flush=True)
        with options.results.open("a") as file:
            file.write(json.dumps(row) + "\n")


def settled(run: Run, wanted: torch.Tensor) -> int | None:
    """First step (from 1) from which on the read-out equals `wanted`; None if it does not within the run."""
    equal = [torch.equal(output, wanted) for output in run.outputs]
    last = max((t for t, same in enumerate(equal) if not same), default=-1)
    return last + 2 if last + 1 < len(equal) else None


if __name__ == "__main__":
    main()
