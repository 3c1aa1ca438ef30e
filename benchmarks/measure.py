"""What does measuring cost? `measure` against the plain run of the same spiking network, interleaved.

Run: .venv/bin/python benchmarks/measure.py [--repeats 9] [--out results/measure.jsonl]
ResNet-20 and a small VGG with random weights, PMSM(levels=9), random pictures of 3x32x32, one thread. The
plain run is `simulate` without recording spikes. "one batch" holds everything that is done once per call: the
walk through the graph and the fan-out of every neuron; "per batch" is what each further batch costs.
"""

import argparse
import json
import platform
import statistics
from pathlib import Path

import torch
from cost import interleave, quotient
from torch import nn

from pmsm.ann.models import resnet20, small_vgg
from pmsm.methods import PMSM
from pmsm.qann.calibrate import calibrate
from pmsm.qann.quantize import quantize
from pmsm.snn.convert import convert
from pmsm.snn.simulate import simulate
from pmsm.study.demo import environment
from pmsm.study.energy.measure import measure

BATCHES = 4


def main() -> None:
    """Print the ratios and write them, with the environment."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(options.batch, 3, 32, 32)
    for name, ann in {"ResNet-20": resnet20(), "small VGG": small_vgg(3)}.items():
        for timesteps in (1, 4):
            ratios = compare(ann, x, timesteps, options.repeats)
            for what, (median, low, high) in ratios.items():
                print(
                    f"{name:10s} T={timesteps} {what:24s} {median:6.3f}   quartiles {low:.3f} to {high:.3f}"
                )
            if options.out:
                row = {
                    "benchmark": "measure", "network": name, "batch": options.batch, "timesteps": timesteps,
                    "n": options.repeats, "machine": platform.machine(), "environment": environment(0),
                    "ratios": {k: {"median": m, "quartiles": [a, b]} for k, (m, a, b) in ratios.items()},
                }  # fmt: skip
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")


def compare(
    ann: nn.Module, x: torch.Tensor, timesteps: int, repeats: int
) -> dict[str, tuple[float, float, float]]:
    """Median and quartiles of measure / plain run, for one batch, for several, and for each further one."""
    snn = convert(calibrate(quantize(ann.eval(), PMSM(levels=9), x[:2]), x))
    several = [x] * BATCHES
    times, _ = interleave(
        {
            "plain": lambda: simulate(snn, x, timesteps, record=None),
            "plain, several": lambda: [simulate(snn, x, timesteps, record=None) for x in several],
            "one batch": lambda: measure(snn, x, timesteps),
            "several": lambda: measure(snn, several, timesteps),
        },
        repeats,
    )
    further = [
        (more - one) / (plain_more - plain)
        for more, one, plain_more, plain in zip(
            times["several"], times["one batch"], times["plain, several"], times["plain"], strict=True
        )
    ]
    low, median, high = statistics.quantiles(further, n=4)
    return {
        "one batch": quotient(times, "one batch", "plain"),
        f"{BATCHES} batches": quotient(times, "several", "plain, several"),
        "per batch": (median, low, high),
    }


if __name__ == "__main__":
    main()
