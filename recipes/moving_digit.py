"""What does a video cost in tracking mode? A handwritten digit that stands still, and one that moves.

Run: .venv/bin/python recipes/moving_digit.py [--seeds 0 1 2]
scikit-learn's digits (8x8) on a black field of 16x16, anywhere; SmallResNet, 9 levels, QAT. Videos of 24
frames of 100 test digits each: still, moving a pixel in every fourth frame, and in every frame. Tracking mode
sends only changes; its read-out is compared, frame by frame and bit for bit, with the quantized network run
anew on each frame, and its spikes with what that would send (T = 1 for every frame). One line per seed goes
to results/moving_digit.jsonl.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import pmsm
from pmsm.ann.data.digits import digits
from pmsm.ann.data.images import Batches, Images, normalize
from pmsm.ann.models.small import SmallResNet
from pmsm.graph import Network
from pmsm.study.demo import environment

RESULTS = Path(__file__).parent.parent / "results" / "moving_digit.jsonl"
FIELD, FRAMES, VIDEOS = 16, 24, 100
MOVES_EVERY = {"still": 0, "every fourth frame": 4, "every frame": 1}


def main() -> None:
    """Every seed, one line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        row = run(seed)
        print(seed, {name: round(video["ratio"], 3) for name, video in row["videos"].items()}, flush=True)
        with options.results.open("a") as file:
            file.write(json.dumps(row) + "\n")


def run(seed: int) -> dict:
    """Train, then the three videos; the line."""
    torch.manual_seed(seed)
    train_set, test_set = (on_a_field(images) for images in digits())
    train, test = Batches(train_set, 64, seed=seed, shuffle=True, drop_last=True), Batches(test_set, 250)
    ann = SmallResNet(1, 10)
    pmsm.train(ann, train, epochs=12, lr=0.1, warmup_epochs=1, seed=seed, progress=False)
    qann = pmsm.calibrate(pmsm.quantize(ann, pmsm.PMSM(levels=9), next(iter(test))[0][:2]), train)
    pmsm.train(qann, train, epochs=6, lr=0.02, warmup_epochs=1, seed=seed, progress=False)
    return {
        "recipe": "moving_digit", "data": "digits on 16x16", "levels": 9, "seed": seed, "frames": FRAMES,
        "samples": VIDEOS, "float_accuracy": pmsm.evaluate(ann, test),
        "qann_accuracy": pmsm.evaluate(qann, test),
        "videos": {name: measure(qann, video(test_set, every, seed)) for name, every in MOVES_EVERY.items()},
        "environment": environment(seed),
    }  # fmt: skip


def on_a_field(images: Images) -> Images:
    """Four copies of each digit, each somewhere on the field."""
    room = FIELD - images.images.shape[2]
    fields, labels = images.images.repeat(4, 1, 1, 1), images.labels.repeat(4)
    at = torch.randint(0, room + 1, (len(fields), 2))
    return replace(images, images=placed(fields, at), labels=labels)


def placed(digits: Tensor, at: Tensor) -> Tensor:
    """[n, 1, 8, 8] -> [n, 1, 16, 16], each with its upper left corner at its row and column."""
    room = FIELD - digits.shape[2]
    return torch.stack([
        F.pad(digit, (int(x), room - int(x), int(y), room - int(y)))
        for digit, (y, x) in zip(digits, at, strict=True)
    ])  # fmt: skip


def video(images: Images, every: int, seed: int) -> Tensor:
    """[F, N, 1, 16, 16] normalized frames: a step of one pixel in every `every`-th frame, 0: none."""
    generator = torch.Generator().manual_seed(seed)
    inner = images.images[:VIDEOS]
    rows, columns = (inner.amax(dims) > 0 for dims in ((1, 3), (1, 2)))
    first = torch.stack([rows.int().argmax(1), columns.int().argmax(1)], 1)
    room, frames = FIELD - 8, []
    crops = torch.stack([
        F.pad(field, (0, 8, 0, 8))[:, y : y + 8, x : x + 8]
        for field, (y, x) in zip(inner, first.tolist(), strict=True)
    ])  # fmt: skip
    at = torch.randint(0, room + 1, (VIDEOS, 2), generator=generator)
    step = torch.tensor([[0, 1], [1, 0], [0, -1], [-1, 0]])[
        torch.randint(0, 4, (VIDEOS,), generator=generator)
    ]
    for f in range(FRAMES):
        if every and f and f % every == 0:
            wall = ((at + step) < 0) | ((at + step) > room)
            step = torch.where(wall, -step, step)  # it bounces
            at = at + step
        frames.append(normalize(placed(crops, at), images.mean, images.std))
    return torch.stack(frames)


def measure(qann: Network, frames: Tensor) -> dict:
    """Spikes per neuron and frame, tracking against T = 1 anew, and whether all read-outs are equal."""
    tracking = pmsm.simulate(pmsm.convert(qann, mode="tracking"), frames, stream=True)
    anew = pmsm.simulate(pmsm.convert(qann), frames, stream=True, reset_each_frame=True)
    with torch.no_grad():
        equal = all(torch.equal(tracking.outputs[f], qann(frame)) for f, frame in enumerate(frames))
    neurons = VIDEOS * sum(spikes.neurons for spikes in tracking.spikes.values())
    per_frame = [
        [sum(int(s.positive[f].sum() + s.negative[f].sum()) for s in run.spikes.values()) / neurons
         for f in range(FRAMES)]
        for run in (tracking, anew)
    ]  # fmt: skip
    later = [sum(spikes[1:]) / (FRAMES - 1) for spikes in per_frame]
    return {"equal": equal, "tracking": per_frame[0], "anew": per_frame[1], "later_tracking": later[0],
            "later_anew": later[1], "ratio": later[0] / later[1]}  # fmt: skip


if __name__ == "__main__":
    main()
