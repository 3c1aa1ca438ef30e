"""Does every architecture of the zoo come back from a file, bit for bit, where its code is not installed?

Run: .venv/bin/python recipes/round_trip.py [--only PATTERN] [--resume]
The small form of each network of `zoo` is quantized, calibrated and converted. Its QANN and its SNNs
(integrate and tracking) are saved, and loaded in a process that cannot import timm, torchvision or
transformers; that process answers with their outputs on the same batch, which must be `torch.equal`. Writes
one line per network to results/round_trip.jsonl, in place of an older one.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
import zoo
from torch import Tensor
from torch.utils import _pytree as pytree

import pmsm
from pmsm.study.demo import environment

RESULTS = Path(__file__).parent.parent / "results" / "round_trip.jsonl"
FORMS: dict[str, tuple[dict[str, Any] | None, int]] = {
    "qann": (None, 1),
    "integrate T=1": ({}, 1),
    "integrate T=4": ({}, 4),
    "tracking T=4": ({"mode": "tracking"}, 4),
}
"""Name -> arguments of convert (None: the QANN itself) and timesteps."""

LOADER = """
import sys, time
for foreign in ("timm", "torchvision", "transformers"):
    sys.modules[foreign] = None  # importing one of them would fail
import torch
from safetensors.torch import load_file, save_file
from torch.utils import _pytree as pytree
import pmsm
torch.set_num_threads(1)
for line in sys.stdin:
    path, timesteps = line.rsplit(maxsplit=1)
    start = time.process_time()
    net = pmsm.load(path)
    seconds = time.process_time() - start
    x = load_file(path + ".x")["x"]
    with torch.no_grad():
        y = pmsm.simulate(net, x, int(timesteps), record=None).outputs if "mode" in net.meta else net(x)
    leaves = [leaf.contiguous() for leaf in pytree.tree_leaves(y) if isinstance(leaf, torch.Tensor)]
    save_file({str(i): leaf.clone() for i, leaf in enumerate(leaves)}, path + ".y")
    print(seconds, flush=True)
"""


def main() -> None:
    """Every network, one line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="*", metavar="PATTERN", help="names, as in a shell: 'timm:*'")
    parser.add_argument("--resume", action="store_true", help="only what has no line yet")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    present = {line["name"] for line in zoo.lines(options.results)} if options.resume else set()
    loader = subprocess.Popen(
        [sys.executable, "-c", LOADER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    for name, entry in zoo.NETWORKS.items():
        if fnmatch(name, options.only) and name not in present:
            with tempfile.TemporaryDirectory() as folder:
                row = measure(entry, Path(folder), loader)
            print(told(row), flush=True)
            zoo.write(row, options.results)
    loader.communicate()


def measure(entry: zoo.Entry, folder: Path, loader: Any) -> dict[str, Any]:
    """One line: which forms came back equal, and how large and fast the file is."""
    torch.manual_seed(0)
    ann = zoo.randomized(entry.build(False))
    x = entry.example(ann, False)
    row: dict[str, Any] = {"recipe": "round_trip", "name": entry.name, "full": False}
    try:
        qann = pmsm.calibrate(pmsm.quantize(ann, zoo.METHOD, x), [x])
        pmsm.convert(qann)
    except Exception as error:  # the reason is in the lines of the zoo
        return row | {"refused": type(error).__name__, "environment": environment(0)}
    row["equal"] = {}
    for form, (arguments, timesteps) in FORMS.items():
        net = qann if arguments is None else pmsm.convert(qann, **arguments)
        path, start = folder / "net.safetensors", time.process_time()
        pmsm.save(net, path)
        seconds = time.process_time() - start
        row["equal"][form], read_s = came_back(net, path, x, timesteps, loader)
        if arguments is None:
            row |= {"bytes": path.stat().st_size, "header_bytes": header_bytes(path)}
            row |= {"save_s": round(seconds, 2), "load_s": round(read_s, 2)}
    return row | {"environment": environment(0)}


def came_back(net: Any, path: Path, x: Tensor, timesteps: int, loader: Any) -> tuple[bool, float]:
    """Whether the other process computes the same from the file, and the seconds that it took to load it."""
    from safetensors.torch import load_file, save_file

    save_file({"x": x}, f"{path}.x")
    loader.stdin.write(f"{path} {timesteps}\n")
    loader.stdin.flush()
    seconds = float(loader.stdout.readline())
    with torch.no_grad():
        y = pmsm.simulate(net, x, timesteps, record=None).outputs if "mode" in net.meta else net(x)
    wanted = [leaf for leaf in pytree.tree_leaves(y) if isinstance(leaf, Tensor)]
    got = load_file(f"{path}.y")
    equal = len(wanted) == len(got) and all(torch.equal(y, got[str(i)]) for i, y in enumerate(wanted))
    return equal, seconds


def header_bytes(path: Path) -> int:
    """Length of the header of a safetensors file."""
    with path.open("rb") as file:
        return int.from_bytes(file.read(8), "little")


def told(row: dict[str, Any]) -> str:
    """The line as a person reads it."""
    if "refused" in row:
        return f"{row['name']:38s} does not convert"
    different = [form for form, equal in row["equal"].items() if not equal]
    found = f"DIFFERENT: {different}" if different else "equal"
    return (
        f"{row['name']:38s} {found} {row['bytes']:12,d} bytes, header {row['header_bytes']:9,d}, "
        f"save {row['save_s']} s, load {row['load_s']} s"
    )


if __name__ == "__main__":
    main()
