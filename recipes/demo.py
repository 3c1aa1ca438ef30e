"""Is nothing lost at T=1? The demo over several seeds: float network, PMSM calibrated and trained, QCFS-IF at
every T.

Run: .venv/bin/python recipes/demo.py [FASHION_MNIST_FOLDER ...] [--seeds 3] [--levels 9]
Runs on scikit-learn's digits and on each folder given. Appends one line per run to results/demo.jsonl and
prints, per data set, mean and spread (lowest to highest seed).
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean

import torch

from pmsm.study.demo import TIMESTEPS, Demo, run_demo

RESULTS = Path(__file__).parent.parent / "results" / "demo.jsonl"


def main() -> None:
    """Every data set and seed, one line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directories", type=Path, nargs="*")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--levels", type=int, default=9)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for directory in [None, *options.directories]:
        records = []
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as out:
                command = f"recipes/demo.py --levels {options.levels} (seed {seed})"
                record = run_demo(Demo(directory, options.levels, out=Path(out), seed=seed), command)
            records.append(record)
            with options.results.open("a") as file:
                file.write(json.dumps({"recipe": "demo", "seed": seed, **record}) + "\n")
        print(table(records), flush=True)


def table(records: list[dict]) -> str:
    """Accuracy of every method at every T: mean (lowest to highest) over the seeds."""
    lines = [f"{records[0]['data']['name']}, {len(records)} seeds, accuracy in %",
             f"{'float network':24s} {_cell([r['float']['accuracy'] for r in records])}"]  # fmt: skip
    for i, method in enumerate(records[0]["methods"]):
        cells = [
            f"T={t} " + _cell([r["methods"][i]["accuracy"][j] for r in records])
            for j, t in enumerate(TIMESTEPS)
        ]
        lines.append(f"{method['name']:24s} " + "  ".join(cells))
    for record in records:
        gap = record["methods"][1]["accuracy"][0] - record["float"]["accuracy"]
        lines.append(
            f"seed {record['environment']['seed']}: PMSM after QAT at T=1 minus float: {gap:+.2f} pp"
        )
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    return f"{mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
