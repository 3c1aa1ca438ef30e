"""`pmsm export`: the network of a run as a file to ship."""

from pathlib import Path
from typing import Annotated

import typer

from pmsm.cli.app import Json, RunFolder, Threads, command, find_modules, tell, use_threads, working


@command
def export(
    run: RunFolder,
    to: Annotated[
        Path,
        typer.Option(
            help="The file; .safetensors: spiking network, .npz: whole numbers, .onnx: 8-bit kernels."
        ),
    ] = Path("net.safetensors"),
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """Write the network of a run to a file for pmsm.load, for NumPy or for ONNX runtimes.

    Example: pmsm export runs/mine --to net.onnx
    """
    from pmsm.study.exported import export_run

    use_threads(threads)
    find_modules()
    with working("export"):
        row = export_run(run, to)
    text = (
        f"{row['file']}: {row['bytes']:,} bytes, {row['form']}\n"
        f"{row['agreement']:.1f} % of {row['samples']} test samples get the same answer as from the run"
    )
    tell(row, json, text)
