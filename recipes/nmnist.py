"""N-MNIST: quantization-aware training on frames, the spiking network on the stream of events.

Run: .venv/bin/python recipes/nmnist.py --data NMNIST_FOLDER [--seeds 0 1 2] [--timesteps 4 8]
SmallResNet at 9 levels, trained on windows of frames (`WindowBatches`); recordings are cut into T frames of
equally many events. The stream with its state carried from frame to frame, the same with every frame on its
own (the quantized network averaged over frames), and the stream in tracking mode. One line per seed and T,
learning curves included, goes to results/nmnist.jsonl.
"""

import argparse
import json
from pathlib import Path

import torch

from pmsm.study.demo import environment
from pmsm.study.experiment import Experiment, evaluate_over_time, load_experiment, prove, run_experiment

RESULTS = Path(__file__).parent.parent / "results" / "nmnist.jsonl"


def main() -> None:
    """Every seed and T, one line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--timesteps", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--out", type=Path, default=Path("runs/nmnist"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for timesteps in options.timesteps:
        for seed in options.seeds:
            row = run(options, timesteps, seed)
            print(timesteps, seed, {k: row[k]["accuracy"][-1] for k in ("stream", "frames", "tracking")})
            with options.results.open("a") as file:
                file.write(json.dumps(row) + "\n")


def run(options: argparse.Namespace, timesteps: int, seed: int) -> dict:
    """Train, convert, prove, measure; the line."""
    experiment = Experiment(
        f"nmnist:{options.data}", timesteps=timesteps, epochs=options.epochs, batch_size=20, seed=seed
    )
    out = options.out / f"{timesteps}-{seed}"
    trained = run_experiment(experiment, out)
    _, source, qann = load_experiment(out)
    found = prove(qann, source)
    return {
        "recipe": "nmnist", "data": source.name, "recordings": len(source.test.frames),  # pyright: ignore
        "events": source.events,
        "timesteps": timesteps, "seed": seed, "levels": experiment.levels, "epochs": experiment.epochs,
        **{key: trained[key] for key in ("float_accuracy", "qann_accuracy", "float_curve", "qann_curve")},
        "codes_compared": found.codes, "codes_different": found.different,
        "stream": evaluate_over_time(qann, source, timesteps),
        "frames": evaluate_over_time(qann, source, timesteps, reset_each_frame=True),
        "tracking": evaluate_over_time(qann, source, timesteps, mode="tracking"),
        "environment": environment(seed),
    }  # fmt: skip


if __name__ == "__main__":
    main()
