"""What every command shares: the application, how a command ends, options that mean the same everywhere."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Turn a trained PyTorch network into a spiking network that is exact at the first timestep.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

INTERRUPTED = 130  # the shell's exit status for Ctrl-C

RunFolder = Annotated[Path, typer.Argument(help="Folder of a run: of `pmsm train`, `pmsm calibrate`, ...")]
Model = Annotated[
    str, typer.Option(help="small, timm:<name>, torchvision:<name>, or <module>:<function that makes it>.")
]
Data = Annotated[
    str,
    typer.Option(
        help="Folder of images, or events: nmnist:DIR, dvs128gesture:DIR, shd:FILE, ... "
        "Default: scikit-learn's digits."
    ),
]
Levels = Annotated[int, typer.Option(help="Codes per site.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of torch; on a busy machine one is the fastest.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for a program.")]


@contextmanager
def _heeding_ctrl_c() -> Iterator[None]:
    """Ctrl-C ends what runs inside, at its end at the latest: a compiler's callback may swallow it."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, as under nohup
        yield
        return
    heard: list[int] = []

    def stop(number: int, frame: Any) -> None:
        heard.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)
    try:
        yield
        if heard:
            raise KeyboardInterrupt
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A command: known errors end it with their text and status 1, Ctrl-C with the way on and status 130."""

    @wraps(function)  # its docstring too: that is what --help prints
    def run(*args: Any, **kwargs: Any) -> None:
        """`function` with its errors told."""
        try:
            with _heeding_ctrl_c():
                function(*args, **kwargs)
        except KeyboardInterrupt:
            resumes = "resume" in signature(function).parameters
            kept = " Finished epochs are kept; the same command with --resume goes on from there."
            typer.echo("Stopped." + kept * resumes, err=True)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if type(error).__module__ != "pmsm.errors":  # ours, without importing torch for a mere --help
                raise
            typer.echo(f"pmsm: {error}", err=True)
            raise typer.Exit(1) from None

    app.command()(run)
    return run


def use_threads(threads: int) -> None:
    """Let torch use so many threads."""
    import torch

    torch.set_num_threads(threads)


def find_modules() -> None:
    """Let a module in the working directory be found, as `python -m` finds it."""
    sys.path.insert(0, str(Path.cwd()))


class Tracked:
    """Batches with a progress bar on stderr, where that is a terminal; elsewhere just the batches."""

    def __init__(self, batches: Any, label: str):
        self.batches, self.label = batches, label

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        from rich.console import Console
        from rich.progress import track

        console = Console(stderr=True)
        yield from track(
            self.batches, self.label, total=len(self.batches), console=console, transient=True,
            disable=not console.is_terminal,
        )  # fmt: skip


@contextmanager
def working(label: str) -> Iterator[None]:
    """A moving bar on stderr while something of unknown length goes on, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task(label, total=None)
        yield


def note(text: str) -> None:
    """What goes on, for a person at a terminal; nothing where the output is piped."""
    if sys.stderr.isatty():
        typer.echo(text, err=True)


def tell(row: dict[str, Any], json: bool, text: str) -> None:
    """The result for a person, or for a program."""
    from json import dumps

    typer.echo(dumps(row) if json else text)
