"""`pmsm demo`: the whole path on a small network."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from pmsm.cli.app import Json, Levels, Threads, Tracked, command, tell, use_threads


@command
def demo(
    data: Annotated[
        Path | None, typer.Option(help="Folder with Fashion-MNIST (idx) or CIFAR (parquet). Default: digits.")
    ] = None,
    levels: Levels = 9,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of the float network; QAT takes half as many.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, record.json, report.html.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(help="Seed of weights, order and augmentation.")] = 0,
    threads: Threads = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoints in --out.")] = False,
    json: Json = False,
) -> None:
    """Train, quantize, convert and prove a small network on real images, with a baseline beside it.

    Example: pmsm demo --data fashion-mnist --levels 9 --out runs/fashion
    """
    from rich.console import Console

    from pmsm.study.demo import Demo, run_demo
    from pmsm.study.report import summary

    use_threads(threads)
    console = Console(highlight=False)
    settings = Demo(data, levels, epochs, out, seed, resume)
    command_line = shlex.join(["pmsm", *sys.argv[1:]])

    def say(line: str) -> None:
        if not json:
            console.print(line, soft_wrap=True)

    record = run_demo(settings, command_line, say, Tracked)
    if json:
        tell(record, json, "")
        return
    console.print(summary(record))
    console.print(f"Report: {out / 'report.html'}   Checkpoints and record: {out}/", soft_wrap=True)
