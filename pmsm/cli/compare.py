"""`pmsm compare`: methods x levels x T in one table."""

from pathlib import Path
from typing import Annotated

import typer

from pmsm.cli.app import Json, command


@command
def compare(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(help="Results (.jsonl), records (.json), folders of runs or of results, checkpoints."),
    ] = None,
    published: Annotated[
        bool,
        typer.Option("--published/--measured-only", help="Set published figures on the same data beside."),
    ] = True,
    timesteps: Annotated[list[int] | None, typer.Option(min=1, help="Only this T; may be repeated.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="Only this data set; may be repeated.")] = None,
    out: Annotated[
        list[Path] | None,
        typer.Option(help="Write to FILE.md, .csv, .json, .txt, or plot to .svg; repeatable."),
    ] = None,
    json: Json = False,
) -> None:
    """One table of accuracy, spikes and energy, measured beside published, and a plot of what accuracy costs.

    Example: pmsm compare results runs/mine --data CIFAR-10 --out table.md --out pareto.svg
    """
    from rich.console import Console

    from pmsm.errors import DataError, SettingsError
    from pmsm.files import write_atomic
    from pmsm.study.compare import FORMATS
    from pmsm.study.compare import compare as compared

    files = out or []
    if odd := [str(path) for path in files if path.suffix not in FORMATS]:
        raise SettingsError(f"--out takes files that end in {', '.join(FORMATS)}, got {', '.join(odd)}.")
    found = compared(sources or [], published=published, timesteps=timesteps or None, data=data or None)
    for path in files:
        write_atomic(path, FORMATS[path.suffix](found), DataError)
    console = Console(highlight=False)
    if json:
        typer.echo(found.as_json())
    elif console.is_terminal:
        console.print(found.table())
        console.print(found.remarks())
    else:
        typer.echo(str(found))
