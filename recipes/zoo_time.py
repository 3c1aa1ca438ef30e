"""Do the laws of time hold on published architectures? Tracking, schedules and binary spikes, random weights.

Run: .venv/bin/python recipes/zoo_time.py [--only PATTERN] [--resume]
The networks of zoo.py in their small form, 9 levels. Tracking mode with at most m spikes per step, m = 1, 2
and unlimited: the first step after which nothing is sent any more, and whether the output is then the
quantized network's, bit for bit; unlimited, it must be so at every step. Step-wise against layer-wise, two
steps of four samples: equal bits. Binary spikes (unroll=True) in float64, two steps: equal counts in every
layer. Writes one line per network to results/zoo_time.jsonl, in place of an older one.
"""

import argparse
from fnmatch import fnmatch
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import zoo
from torch import Tensor
from torch.utils import _pytree as pytree

import pmsm
from pmsm.errors import ConversionError, PMSMError
from pmsm.graph import Network
from pmsm.study.demo import environment

RESULTS = Path(__file__).parent.parent / "results" / "zoo_time.jsonl"
LONGEST = 500
"""Steps after which a network counts as not settled."""


def main() -> None:
    """Every network, one line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="*", metavar="PATTERN", help="names, as in a shell: 'timm:*'")
    parser.add_argument("--resume", action="store_true", help="only what has no line yet")
    parser.add_argument("--limit", type=float, default=600, help="seconds for one network")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    present = {line["name"] for line in zoo.lines(options.results)} if options.resume else set()
    for name in zoo.NETWORKS:
        if fnmatch(name, options.only) and name not in present:
            row = isolated(name, options.limit)
            print(told(row), flush=True)
            zoo.write(row, options.results)


def isolated(name: str, limit: float) -> dict[str, Any]:
    """The line of one network from a process of its own."""
    receiver, sender = get_context("spawn").Pipe(duplex=False)
    process = get_context("spawn").Process(target=_send, args=(sender, name))
    process.start()
    sender.close()
    try:
        if receiver.poll(limit):
            return receiver.recv()
        return {"recipe": "zoo_time", "name": name, "full": False, "unfinished": f"more than {limit:.0f} s"}
    except EOFError:
        return {"recipe": "zoo_time", "name": name, "full": False, "unfinished": "the process ended"}
    finally:
        process.kill()


def _send(sender: Connection, name: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    entry = zoo.NETWORKS[name]
    ann = zoo.randomized(entry.build(False))
    x = entry.example(ann, False)
    row: dict[str, Any] = {"recipe": "zoo_time", "name": name, "full": False, "method": repr(zoo.METHOD)}
    try:
        qann = pmsm.calibrate(pmsm.quantize(ann, zoo.METHOD, x), [x])
        row |= {"tracking": tracking(qann, x), "schedules": schedules(qann, x), "binary": binary(ann, x)}
    except PMSMError as error:
        row["refused"] = f"{type(error).__name__}: {error}".partition(" It happens at")[0][:200]
    sender.send(row | {"environment": environment(0)})


def tracking(qann: Network, x: Tensor) -> dict[str, dict[str, Any]]:
    """Per burst limit: the step after which all is silent, and whether the output is the QANN's."""
    with torch.no_grad():
        wanted = qann(x)
    found: dict[str, dict[str, Any]] = {}
    for burst in (1, 2, None):
        snn = pmsm.convert(qann, mode="tracking", burst=burst)
        at_once = True
        with pmsm.running(snn, record="spikes") as step:
            while step.t < LONGEST:
                output = step(x)
                at_once = at_once and equal(output, wanted)
                if sum(spikes.total for spikes in step.spikes.values()) == 0:
                    break
            settled = step.t - 1 if step.t < LONGEST else None
        name = "unlimited" if burst is None else str(burst)
        found[name] = {"settled": settled, "equal": equal(output, wanted), "at_every_step": at_once}
    return found


def schedules(qann: Network, x: Tensor) -> bool | None:
    """Whether layer-wise and step-wise runs agree in every bit; None where only one is possible."""
    snn = pmsm.convert(qann)
    if not snn.meta["batch_first"]:
        return None
    x = torch.cat([x, x.flip(0)])
    a, b = (pmsm.simulate(snn, x, 2, schedule=schedule) for schedule in ("steps", "layers"))
    spikes = all(
        torch.equal(s.positive, b.spikes[n].positive) and torch.equal(s.negative, b.spikes[n].negative)
        for n, s in a.spikes.items()
    )
    return spikes and equal(a.outputs, b.outputs)


def binary(ann: torch.nn.Module, x: Tensor) -> bool | str:
    """Whether the unrolled network sends the same counts, in float64; or why there is none."""
    x = x.double() if x.is_floating_point() else x
    try:
        qann = pmsm.calibrate(pmsm.quantize(ann.double(), zoo.METHOD, x), [x])
        plain, unrolled = pmsm.convert(qann), pmsm.convert(qann, unroll=True)
    except ConversionError as error:
        return str(error)[:120]
    a, b = (pmsm.simulate(snn, x, 2, record="counts") for snn in (plain, unrolled))
    return all(torch.equal(spikes.counts, b.spikes[name].counts) for name, spikes in a.spikes.items())


def equal(a: Any, b: Any) -> bool:
    """Whether two pytrees hold the same tensors, bit for bit."""
    pairs = zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True)
    return all(torch.equal(p, q) for p, q in pairs if isinstance(p, Tensor))


def told(row: dict[str, Any]) -> str:
    """The line as a person reads it."""
    if reason := row.get("refused") or row.get("unfinished"):
        return f"{row['name']:38s} {reason}"
    settled = {
        burst: f"{found['settled']}{'' if found['equal'] else ' DIFFERS'}"
        for burst, found in row["tracking"].items()
    }
    return f"{row['name']:38s} settled {settled} schedules {row['schedules']} binary {row['binary']}"


if __name__ == "__main__":
    main()
