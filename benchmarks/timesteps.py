"""What do more timesteps cost? Time and memory against T, and the two schedules against each other.

Run: .venv/bin/python benchmarks/timesteps.py [--repeats 5] [--out results/timesteps.jsonl]
ResNet-20 with random weights, 3x32x32 random pictures, float32, one thread. Time: processor seconds, every
variant once per round in random order, medians over rounds; the allocator keeps its memory (see cost.py).
Memory, each in a process of its own and with the allocator left alone: the most that tensors held at once
(torch's profiler), so without the interpreter and the libraries, and the peak of the whole process.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch
from cost import KEEP_MEMORY, interleave, quotient
from torch.profiler import ProfilerActivity, profile

from pmsm.ann.models.resnet import resnet20
from pmsm.graph import Network
from pmsm.methods import PMSM
from pmsm.qann.calibrate import calibrate
from pmsm.qann.quantize import quantize
from pmsm.snn.convert import convert
from pmsm.snn.simulate import simulate
from pmsm.study.demo import environment

BATCHES = (1, 8, 64)
TIMESTEPS = (4, 8, 32)
MEMORY_BATCH = 32


def main() -> None:
    """Print the ratios and write them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--memory", nargs=2, metavar=("T", "SCHEDULE"), help="measure one memory and print it"
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        print(json.dumps(memory(int(options.memory[0]), options.memory[1])))
        return
    if not KEEP_MEMORY.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})
    row = {
        "benchmark": "timesteps", "network": "ResNet-20", "n": options.repeats,
        "machine": platform.machine(), "environment": environment(0),
        "schedules": schedules(options.repeats), "growth": growth(options.repeats),
        "memory": [in_a_process(t, schedule) for schedule in ("steps", "auto") for t in (1, 2, 8, 32)],
    }  # fmt: skip
    show(row)
    if options.out:
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")


def spiking() -> Network:
    """The network, calibrated on noise: speed does not ask what it computes."""
    torch.manual_seed(0)
    x = torch.randn(64, 3, 32, 32)
    return convert(calibrate(quantize(resnet20().eval(), PMSM(levels=9), x[:2]), x))


def schedules(repeats: int) -> list[dict]:
    """Layer-wise against step-wise, for several N and T."""
    snn, rows = spiking(), []
    for samples in BATCHES:
        x = torch.randn(samples, 3, 32, 32)
        for timesteps in TIMESTEPS:
            variants = {
                schedule: lambda x=x, t=timesteps, s=schedule: simulate(snn, x, t, schedule=s)
                for schedule in ("steps", "layers")
            }
            times, _ = interleave(variants, repeats)
            median, low, high = quotient(times, "steps", "layers")
            rows.append({"samples": samples, "timesteps": timesteps, "steps_over_layers": median,
                         "quartiles": [low, high]})  # fmt: skip
    return rows


def growth(repeats: int) -> list[dict]:
    """Time at T=32 over time at T=8, both schedules."""
    snn, x, rows = spiking(), torch.randn(MEMORY_BATCH, 3, 32, 32), []
    for schedule in ("steps", "layers"):
        variants = {
            str(t): lambda t=t, schedule=schedule: simulate(snn, x, t, schedule=schedule) for t in (8, 32)
        }
        times, _ = interleave(variants, repeats)
        median, low, high = quotient(times, "32", "8")
        rows.append(
            {"schedule": schedule, "samples": MEMORY_BATCH, "ratio": median, "quartiles": [low, high]}
        )
    return rows


def in_a_process(timesteps: int, schedule: str) -> dict:
    """`memory` in a fresh process."""
    command = [sys.executable, __file__, "--memory", str(timesteps), schedule]
    alone = {key: value for key, value in os.environ.items() if key not in KEEP_MEMORY}
    found = subprocess.run(command, check=True, capture_output=True, text=True, env=alone)
    return json.loads(found.stdout.splitlines()[-1])


def memory(timesteps: int, schedule: str) -> dict:
    """Peak of the tensors held at once, and of the process, in MiB."""
    snn, x = spiking(), torch.randn(MEMORY_BATCH, 3, 32, 32)
    simulate(snn, x[:1], 2)  # kernels are compiled and libraries loaded before
    simulate(snn, x, timesteps, schedule=schedule)
    process = peak_of_process()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        simulate(snn, x, timesteps, schedule=schedule)
    held, peak = 0, 0
    for event in profiler.profiler.kineto_results.events():  # pyright: ignore[reportOptionalMemberAccess]
        if event.name() == "[memory]":
            held += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
            peak = max(peak, held)
    return {"timesteps": timesteps, "schedule": schedule, "samples": MEMORY_BATCH,
            "tensors_mib": round(peak / 2**20, 2), "process_mib": round(process, 1)}  # fmt: skip


def peak_of_process() -> float:
    """MiB; not ru_maxrss, which a process inherits from the one that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10


def show(row: dict) -> None:
    """The tables."""
    for line in row["schedules"]:
        print("N={samples:<3d} T={timesteps:<3d} steps / layers {steps_over_layers:.2f}".format(**line))
    for line in row["growth"]:
        print("{schedule:6s} time T=32 / T=8 {ratio:.2f}".format(**line))
    for line in row["memory"]:
        print(
            "{schedule:5s} T={timesteps:<3d} tensors {tensors_mib} MiB, process {process_mib} MiB".format(
                **line
            )
        )


if __name__ == "__main__":
    main()
