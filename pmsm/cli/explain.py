"""`pmsm explain`: what would become of a network."""

from typing import Annotated

import typer

from pmsm.cli.app import Json, Levels, command, find_modules, working
from pmsm.errors import SettingsError


@command
def explain(
    model: Annotated[
        str, typer.Argument(help="timm:<name>, torchvision:<name>, or <module>:<function that makes it>.")
    ],
    shape: Annotated[
        str | None, typer.Option(help="One sample, e.g. 3,32,32. Default: timm's, else 3,224,224.")
    ] = None,
    levels: Levels = 9,
    json: Json = False,
) -> None:
    """Tell what would become of each operator of a network, and its cost; status 1 if one has no rule.

    Example: pmsm explain timm:vit_small_patch16_224
    """
    import torch
    from rich.console import Console

    from pmsm.ann.models.zoo import build, input_shape
    from pmsm.methods import PMSM
    from pmsm.study.explain import explain

    torch.set_num_threads(1)  # a few forward passes; on a busy machine more threads take ten times as long
    method = PMSM(levels=levels)
    sizes = None if shape is None else _shape(shape)
    find_modules()
    with working("explain"):
        network = build(model)
        example = torch.randn(1, *(sizes or input_shape(network)))
        explanation = explain(network, example, method)
    console, table = Console(highlight=False), explanation.table()
    wanted = console.measure(table, options=console.options.update(max_width=1000)).maximum
    if json:
        typer.echo(explanation.as_json())
    elif console.is_terminal and wanted <= console.width:
        console.print(table)
        console.print(explanation.summary())
    else:  # a file, or a window in which the table would break its words
        typer.echo(str(explanation))
    if not explanation.supported:
        raise typer.Exit(1)


def _shape(text: str) -> tuple[int, ...]:
    """ "3,32,32" as numbers."""
    sizes = text.replace(" ", "").split(",")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise SettingsError(
            f"--shape needs whole numbers >= 1 with commas between, got {text!r}. Write 3,224,224."
        )
    return tuple(map(int, sizes))
