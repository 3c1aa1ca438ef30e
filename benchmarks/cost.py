"""What does exactness cost? Ratios of SNN, QANN and float network, in one interleaved run.

Run: .venv/bin/python benchmarks/cost.py [--repeats 15] [--out results/cost.jsonl]
ResNet-20 with random weights, batch 128 of 3x32x32 random pictures, one thread. Forward passes in float32,
contiguous; training steps (forward, backward, SGD) in bfloat16 autocast and channels_last, eager and
compiled. Each round times every variant once, in random order; a
ratio is the median over rounds of the quotient within a round. Left out: loading data, the energy of
anything.

The allocator of the C library is told to keep what it was given (see `KEEP_MEMORY`); `--allocator default`
leaves it alone. Left alone it maps and returns the 8 MB tensors anew in each pass, by a pattern that depends
on the history of the process: 0 to 25,000 page faults per pass, worth up to a quarter of its time, and not
the same number for two networks that run the same kernels. Each row holds the faults beside the times.
"""

import argparse
import copy
import json
import os
import platform
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from pmsm.ann.models.resnet import resnet20
from pmsm.methods import PMSM
from pmsm.qann.calibrate import calibrate
from pmsm.qann.quantize import quantize
from pmsm.snn.convert import convert
from pmsm.snn.simulate import simulate
from pmsm.study.demo import environment

Work = Callable[[], object]

# glibc: serve large blocks from the heap, and do not give the heap back. Read when a process starts.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}


def main() -> None:
    """Print the ratios and write them, with the environment."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--compile", action="store_true", help="time compiled training steps as well")
    parser.add_argument("--allocator", choices=("keep", "default"), default="keep")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.allocator == "keep" and not KEEP_MEMORY.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = torch.randn(options.batch, 3, 32, 32), torch.randint(0, 10, (options.batch,))
    ann = resnet20().eval()
    qann = calibrate(quantize(ann, PMSM(levels=9), x[:2]), [x])
    times, faults = interleave(forward_variants(ann, qann, x), options.repeats)
    ratios = {
        "SNN at T=1 / QANN forward": quotient(times, "snn T=1", "qann"),
        "SNN at T=1, without counting spikes / QANN forward": quotient(times, "snn T=1 uncounted", "qann"),
        "QANN / float forward": quotient(times, "qann", "float"),
        "T=8 / T=1": quotient(times, "snn T=8", "snn T=1"),
    }
    for compiled in (False, True) if options.compile else (False,):
        steps, _ = interleave(
            {"float": training_step(ann, x, y, compiled), "qat": training_step(qann, x, y, compiled)},
            options.repeats,
        )
        times |= {f"{name} step{' compiled' * compiled}": values for name, values in steps.items()}
        ratios[f"QAT step / float step{', compiled' * compiled}"] = quotient(steps, "qat", "float")
    for name, (median, low, high) in ratios.items():
        print(f"{name:52s} {median:6.3f}   quartiles {low:.3f} to {high:.3f}")
    if options.out:
        row = {
            "benchmark": "cost", "network": "ResNet-20", "batch": options.batch, "n": options.repeats,
            "machine": platform.machine(), "environment": environment(0), "allocator": options.allocator,
            "ratios": {name: {"median": m, "quartiles": [a, b]} for name, (m, a, b) in ratios.items()},
            "milliseconds": {name: round(1e3 * statistics.median(v), 2) for name, v in times.items()},
            "page_faults": {name: statistics.median(v) for name, v in faults.items()},
        }  # fmt: skip
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")


def forward_variants(ann: nn.Module, qann: nn.Module, x: torch.Tensor) -> dict[str, Work]:
    """The same pictures through float network, QANN and SNN."""
    snn = convert(qann)  # pyright: ignore[reportArgumentType]

    def plain(network: nn.Module) -> Work:
        """The network as it is, without gradients."""

        def run() -> object:
            with torch.no_grad():
                return network(x)

        return run

    return {
        "float": plain(ann),
        "qann": plain(qann),
        "snn T=1": lambda: simulate(snn, x, 1),
        "snn T=1 uncounted": lambda: simulate(snn, x, 1, record=None),
        "snn T=8": lambda: simulate(snn, x, 8),
    }


def training_step(network: nn.Module, x: torch.Tensor, y: torch.Tensor, compiled: bool) -> Work:
    """One step of SGD on a fixed batch."""
    network = copy.deepcopy(network).train().requires_grad_(True).to(memory_format=torch.channels_last)  # pyright: ignore
    x = x.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
    forward = torch.compile(network) if compiled else network

    def step() -> None:
        """Forward pass in bf16, backward pass, update."""
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(forward(x), y)
        loss.backward()
        optimizer.step()

    return step


def interleave(
    variants: Mapping[str, Work], repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds and page faults of each variant, round by round, in an order drawn anew each time; two rounds
    warm up and do not count.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    faults: dict[str, list[float]] = {name: [] for name in variants}
    order, draw = list(variants.items()), random.Random(0)
    for round_ in range(repeats + 2):
        draw.shuffle(order)
        for name, work in order:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            start = time.process_time()  # of this one thread: what others do on the machine does not count
            work()
            if round_ >= 2:
                times[name].append(time.process_time() - start)
                faults[name].append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return times, faults


def quotient(times: dict[str, list[float]], a: str, b: str) -> tuple[float, float, float]:
    """Median and quartiles of a / b within rounds."""
    ratios = [p / q for p, q in zip(times[a], times[b], strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return median, low, high


if __name__ == "__main__":
    main()
