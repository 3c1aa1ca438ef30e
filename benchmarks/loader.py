"""Does the loader keep up? Images per second of each augmentation against those that ResNet-20 trains on.

Run: .venv/bin/python benchmarks/loader.py [--data DIR] [--repeats 15] [--out results/loader.jsonl]
Batches of 128 pictures of 3x32x32 in random order from a memory-mapped set: CIFAR in DIR, or 50,000 random
pictures. The training step is forward, backward and SGD of ResNet-20, in float32 (contiguous) and in bfloat16
autocast (channels_last), as `pmsm.train` chooses them. One thread for all; processor seconds; each round runs
every variant once in random order, and a ratio is the median over rounds of the quotient within a round. The
loader runs before the step here, not beside it. Left out: the first decoding, which is done once.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from cost import KEEP_MEMORY, interleave, quotient
from torch.nn import functional as F

from pmsm.ann.data import Batches, Images, load
from pmsm.ann.models import resnet20
from pmsm.study.demo import environment

AUGMENTATIONS = (
    "none",
    "crop-flip",
    "crop-flip+cutout",
    "crop-flip+erase",
    "crop-flip+autoaugment",
    "crop-flip+mixup",
    "crop-flip+cutmix",
    "crop-flip+autoaugment+cutout+erase+mixup+cutmix",
)
BAR = 3.0  # the loader should give at least three times as many images as a training step takes


def main() -> None:
    """Print the rates and ratios, and write them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of CIFAR; random pictures without it")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not KEEP_MEMORY.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        images = load(options.data)[0] if options.data else random_images(Path(folder) / "pixels.npy")
        steps = {f"train {name}": training_step(images, options.batch, name) for name in ("fp32", "bf16")}
        loaders = {name: loading(images, options.batch, name) for name in AUGMENTATIONS}
        times, _ = interleave({**steps, **loaders}, options.repeats)
    rates = {name: round(options.batch / statistics.median(values)) for name, values in times.items()}
    ratios = {
        name: {step.removeprefix("train "): quotient(times, step, name) for step in steps} for name in loaders
    }
    for name, rate in rates.items():
        both = "   ".join(f"{step} {ratio[0]:5.1f}x" for step, ratio in ratios.get(name, {}).items())
        print(f"{name:50s} {rate:8,d} images/s   {both}")
    slowest = min(ratio[0] for found in ratios.values() for ratio in found.values())
    print(f"the slowest gives {slowest:.1f} times what training takes (bar: {BAR})")
    if options.out:
        row = {
            "benchmark": "loader", "network": "ResNet-20", "batch": options.batch, "n": options.repeats,
            "data": images.name, "machine": platform.machine(), "environment": environment(0),
            "images_per_s": rates, "slowest": round(slowest, 2),
            "loader_over_training": {
                name: {step: {"median": m, "quartiles": [a, b]} for step, (m, a, b) in found.items()}
                for name, found in ratios.items()
            },
        }  # fmt: skip
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")


def random_images(file: Path) -> Images:
    """50,000 pictures in a memory-mapped file, smooth enough that no operation is spared its work."""
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (50_000, 3, 8, 8), dtype=np.uint8)
    np.save(file, coarse.repeat(4, 2).repeat(4, 3))
    pixels = torch.from_numpy(np.load(file, mmap_mode="c"))
    labels = torch.from_numpy(draw.integers(0, 10, 50_000))
    return Images(pixels, labels, 10, (0.5,) * 3, (0.25,) * 3, "random pictures")


def loading(images: Images, batch: int, augment: str) -> Callable[[], object]:
    """The next batch, epoch after epoch."""

    def endless() -> Iterator[object]:
        """Batches of one epoch after the other."""
        batches = Batches(images, batch, shuffle=True, augment=augment, drop_last=True)
        for epoch in range(10**6):
            batches.set_epoch(epoch)
            yield from batches

    iterator = endless()
    return lambda: next(iterator)


def training_step(images: Images, batch: int, precision: str) -> Callable[[], object]:
    """One step of SGD on a batch that is there already."""
    x, y = next(iter(Batches(images, batch, shuffle=True)))
    network, low = resnet20(images.class_count).train(), precision == "bf16"
    if low:
        network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        x = x.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, nesterov=True)

    def step() -> None:
        """Forward pass in `precision`, backward pass, update."""
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = F.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
