"""The command line: one command per verb, thin; torch is loaded only when a command needs it."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Turn a trained PyTorch network into a spiking network that is exact at the first timestep.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

INTERRUPTED = 130  # the shell's exit status for Ctrl-C


@app.callback()
def _root() -> None:
    """Keep `pmsm demo` a command of its own while it is the only one."""


@app.command()
def demo(
    data: Annotated[
        Path | None, typer.Option(help="Folder with Fashion-MNIST (idx) or CIFAR (parquet). Default: digits.")
    ] = None,
    levels: Annotated[int, typer.Option(help="Codes per site.")] = 9,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of the float network; QAT takes half as many.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, record.json, report.html.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(help="Seed of weights, order and augmentation.")] = 0,
    threads: Annotated[
        int, typer.Option(min=1, help="Threads of torch; on a busy machine one is the fastest.")
    ] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoints in --out.")] = False,
) -> None:
    """Train, quantize, convert and prove a small network on real images, with a baseline beside it.

    Example: pmsm demo --data fashion-mnist --levels 9 --out runs/fashion
    """
    import torch
    from rich.console import Console

    from pmsm.study.demo import Demo, run_demo
    from pmsm.study.report import summary

    torch.set_num_threads(threads)
    console = Console(highlight=False)
    settings = Demo(data, levels, epochs, out, seed, resume)
    record = run_demo(settings, _command(), lambda line: console.print(line, soft_wrap=True))
    console.print(summary(record))
    console.print(f"Report: {out / 'report.html'}   Checkpoints and record: {out}/", soft_wrap=True)


def _command() -> str:
    return shlex.join(["pmsm", *sys.argv[1:]])


def main() -> None:
    """Run the command line; errors of this library end it with their text and exit status 1, Ctrl-C with
    130.
    """
    try:
        app()
    except KeyboardInterrupt:
        _say("Stopped. Finished epochs are kept; the same command with --resume goes on from there.")
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        if type(error).__module__ != "pmsm.errors" and not isinstance(error, ValueError):
            raise
        _say(f"pmsm: {error}")
        raise SystemExit(1) from None


def _say(text: str) -> None:
    typer.echo(text, err=True)
