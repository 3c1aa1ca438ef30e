"""What one sees of a training run while it goes on."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pmsm.ann.schedule import Settings

Report = Callable[..., None]


def _silent(**_: float) -> None:
    pass


@contextmanager
def progress_bar(show: bool | None, settings: Settings) -> Iterator[Report]:
    """A bar on stderr with epoch, running loss, validation accuracy and time left, or nothing.

    Args:
        show: None shows it where stderr is a terminal.
    """
    if not (sys.stderr.isatty() if show is None else show):
        yield _silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[loss]}{task.fields[valid]}"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("train", total=settings.epochs * settings.batches, loss="", valid="")

        def report(
            epoch: int = 0, batch: int = 0, loss: float | None = None, valid: float | None = None
        ) -> None:
            """Move the bar."""
            if valid is not None:
                bar.update(task, valid=f"  valid {valid:.2f} %")
            if loss is not None:
                done = epoch * settings.batches + batch + 1
                text = f"epoch {epoch + 1}/{settings.epochs}"
                bar.update(task, completed=done, description=text, loss=f"loss {loss:.4f}")

        yield report
