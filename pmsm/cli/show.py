"""`pmsm show`."""

from pathlib import Path
from typing import Annotated

import typer

from pmsm.cli.app import Json, command, tell, working


@command
def show(
    file: Annotated[Path, typer.Argument(help="A file that pmsm.save, pmsm.export or pmsm.train wrote.")],
    json: Json = False,
) -> None:
    """Tell what a saved network is: inputs, sites, operators, versions; status 1 if the file is not sound.

    Example: pmsm show net.safetensors
    """
    from pmsm.study.show import show, told

    with working("check"):
        found = show(file)
    tell(found, json, told(found))
