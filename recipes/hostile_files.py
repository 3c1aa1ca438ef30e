"""What happens to whoever loads a hostile file: nothing. Thousands of mutated files, one line per mutation.

Run: .venv/bin/python recipes/hostile_files.py [--count N] [--seed S] [--kind KIND]
Sound files are mutated (`hostile_mutations`) and read by a process of its own, which may allocate no more
than `ALLOCATION_BYTES` beyond what it held before the first file, take `LIMIT_S` for one, and do nothing of
`FORBIDDEN`: an audit hook of Python tells. A file has to be refused with the library's own error, or read to
the very network that was written; where its hashes were corrected, it may also describe another network.
Writes the tally to results/hostile_files.jsonl, and ends with status 1 if a single file did anything else.

Another kind of file is one more entry of `KINDS`.
"""

import argparse
import json
import os
import random
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from hostile_mutations import BYTES, HEADER, MARKER, SIGNED, Mutation
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import pmsm
from pmsm.errors import PMSMError
from pmsm.study.demo import environment

ALLOCATION_BYTES = 2**29
"""What a process may map beyond what it had; the tensors of the sound files are a few kilobytes."""
HOSTILE = "hostile"  # name of the mutated file, beside the sound ones
LIMIT_S = 20
"""On two busy cores; the largest header that is read takes 5 s there, a network 20 ms."""
GOOD = {"refused", "identical", "another network"}
FORBIDDEN = (
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "os.rename", "os.mkdir", "shutil.",
    "subprocess.Popen", "socket.", "pickle.find_class", "ctypes.dlopen", "urllib.Request", "marshal.loads",
)  # fmt: skip
"""How audit events of Python begin that reading a network has no business with."""
RESULTS = Path(__file__).parent.parent / "results" / "hostile_files.jsonl"


class Small(nn.Module):
    """Convolution, BatchNorm, pool, attention, LayerNorm, a constant and a mask: something of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.pool, self.token = nn.MaxPool2d(2), nn.Parameter(torch.randn(1, 1, 4))
        self.ln, self.gelu, self.head = nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 3)
        self.register_buffer("mask", torch.ones(5, 5, dtype=torch.bool).tril(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, 4, 4] -> [N, 3]."""
        h = self.pool(self.relu(self.norm(self.conv(x)))).flatten(2).transpose(1, 2)
        h = self.ln(torch.cat((self.token.expand(h.shape[0], -1, -1), h), 1))
        h = nn.functional.scaled_dot_product_attention(h, h, h, attn_mask=self.mask)
        return self.head(self.gelu(h).mean(1))


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Args:
        sound: folder -> sound files.
        read: path -> what is read of it, comparable by `same`.
        mutations: by name.
        signed: names of those after which a file may soundly be another one.
    """

    sound: Callable[[Path], list[Path]]
    read: Callable[[Path], Any]
    same: Callable[[Any, Any], bool]
    mutations: dict[str, Mutation]
    signed: frozenset[str]


def checkpoints(folder: Path) -> list[Path]:
    """A small QANN, and the SNNs of each kind that it becomes."""
    torch.manual_seed(0)
    x = torch.randn(4, 1, 4, 4)
    qann = pmsm.calibrate(pmsm.quantize(Small().eval(), pmsm.PMSM(levels=5), x), x)
    networks = [
        qann,
        pmsm.convert(qann),
        pmsm.convert(qann, mode="tracking"),
        pmsm.convert(qann, unroll=True),
    ]
    paths = [folder / f"{i}.safetensors" for i in range(len(networks))]
    for network, path in zip(networks, paths, strict=True):
        pmsm.save(network, path)
    return paths


def same_network(a: Any, b: Any) -> bool:
    """Whether two networks hold the same tensors and compute the same on a batch."""
    left, right = a.state_dict(), b.state_dict()
    if left.keys() != right.keys() or not all(torch.equal(left[k], right[k]) for k in left):
        return False
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        outputs = [pytree.tree_leaves(network(x)) for network in (a, b)]
    return all(torch.equal(p, q) for p, q in zip(*outputs, strict=True))


KINDS: dict[str, Kind] = {
    "checkpoint": Kind(
        checkpoints, pmsm.load, same_network, BYTES | HEADER | SIGNED, frozenset(SIGNED)
    ),
}  # fmt: skip


def outcome(kind: Kind, mutation: str, path: Path, sound: Any) -> str:
    """What reading a file came to."""
    executed.clear()
    try:
        found = kind.read(path)
        result = "identical" if mutation not in kind.signed and kind.same(sound, found) else "another network"
        if result == "another network" and mutation not in kind.signed:
            result = "CHANGED AND ACCEPTED"
    except PMSMError:
        result = "refused"
    except MemoryError:
        result = "ALLOCATED TOO MUCH"
    except Exception as error:
        result = f"RAISED {type(error).__name__}: {str(error)[:100]}"
    return f"EXECUTED {executed}" if executed or Path(MARKER).exists() else result


executed: list[str] = []


def watch(event: str, arguments: Any) -> None:
    """Note what reading a file must not do."""
    writes = event == "open" and len(arguments) > 1 and any(c in str(arguments[1] or "r") for c in "wax+")
    if writes or event.startswith(FORBIDDEN):
        executed.append(event)


def reader(connection: Any, name: str, folder: Path) -> None:
    """Read one file after the other, within the limits, and answer with its outcome."""
    torch.set_num_threads(1)
    os.chdir(folder)
    kind, sound = KINDS[name], {}
    for path in sorted(path for path in folder.iterdir() if path.name != HOSTILE):
        sound[path.name] = kind.read(path)  # imports what is imported late, so that no limit meets it
        kind.same(sound[path.name], sound[path.name])
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + ALLOCATION_BYTES, held + ALLOCATION_BYTES))
    sys.addaudithook(watch)
    connection.send("ready")
    while True:
        mutation, path, origin = connection.recv()
        connection.send(outcome(kind, mutation, path, sound[origin]))


class Reader:
    """A process that reads, started anew whenever one is lost."""

    def __init__(self, kind: str, folder: Path):
        self.kind, self.folder = kind, folder
        self.start()

    def start(self) -> None:
        """A fresh process, ready to read."""
        context = get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=reader, args=(other, self.kind, self.folder), daemon=True)
        self.process.start()
        other.close()
        self.connection.recv()

    def __call__(self, mutation: str, path: Path, origin: str) -> str:
        """The outcome of one file, a crash and a hang included."""
        self.connection.send((mutation, path, origin))
        try:
            if self.connection.poll(LIMIT_S):
                return self.connection.recv()
            result = "HUNG"
        except (EOFError, ConnectionError):
            self.process.join()
            result = f"CRASHED with status {self.process.exitcode}"
        self.process.kill()
        self.start()
        return result


def main() -> None:
    """All kinds of files, `--count` each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = [row(name, options.count, options.seed) for name in KINDS if options.kind in (None, name)]
    with options.results.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    sys.exit(any(row["bad"] for row in rows))


def row(name: str, count: int, seed: int) -> dict[str, Any]:
    """The tally of one kind of file."""
    kind, rng, tally, bad = KINDS[name], random.Random(seed), Counter(), []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        sound, read = {path.name: path.read_bytes() for path in kind.sound(folder)}, Reader(name, folder)
        for i in range(count):
            mutation, origin = rng.choice(list(kind.mutations)), rng.choice(list(sound))
            path = folder / HOSTILE
            path.write_bytes(kind.mutations[mutation](sound[origin], rng))
            result = read(mutation, path, origin)
            tally[mutation, result.partition(" {")[0] if result in GOOD else "BAD"] += 1
            if result not in GOOD:
                bad.append({"file": i, "mutation": mutation, "outcome": result})
                print(bad[-1], flush=True)
        read.process.kill()
    for mutation in kind.mutations:
        told = ", ".join(f"{n} {result}" for (m, result), n in sorted(tally.items()) if m == mutation)
        print(f"{name} {mutation:22s} {told}", flush=True)
    totals = {result: sum(n for (_, r), n in tally.items() if r == result) for result in sorted(GOOD)}
    print(f"{name}: {count} files, {totals}, {len(bad)} bad")
    return {
        "recipe": "hostile_files", "kind": name, "files": count, "seed": seed, **totals, "bad": bad,
        "allocation_bytes": ALLOCATION_BYTES, "limit_s": LIMIT_S, "environment": environment(seed),
    }  # fmt: skip


if __name__ == "__main__":
    main()
