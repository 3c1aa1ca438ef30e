"""`pmsm export`: a network as a file for other tools."""

from pathlib import Path
from typing import Annotated

import typer

from pmsm.cli.app import Json, Threads, command, find_modules, tell, use_threads, working


@command
def export(
    source: Annotated[Path, typer.Argument(help="The folder of a run, or a file that pmsm.save wrote.")],
    to: Annotated[
        str,
        typer.Option(help="safetensors, npz, c, nir, onnx (8-bit kernels) or pt2 (torch.export)."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The new file. Default: beside FILE, net.* in a folder.")
    ] = None,
    bits: Annotated[int, typer.Option(min=2, max=8, help="Of a weight with its sign.")] = 8,
    own_steps: Annotated[
        bool,
        typer.Option(
            "--own-steps", help="Each channel of a residual sum keeps its step; 8-bit kernels lose some."
        ),
    ] = False,
    floating: Annotated[
        bool, typer.Option("--float", help="onnx in float32, unrounded: any network that converts.")
    ] = False,
    state: Annotated[
        bool, typer.Option("--state", help="onnx, pt2: one timestep, its state going in and out, for any T.")
    ] = False,
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """Write the network of a run, or a saved one, for pmsm.load, NumPy, C, NIR, ONNX runtimes or
    torch.export.

    Example: pmsm export runs/mine --to onnx
    """
    from pmsm.study.export import export as write

    use_threads(threads)
    find_modules()
    with working("export"):
        row = write(source, to, out, bits=bits, aligned=not own_steps, floating=floating, state=state)
    text = f"{row['file']}: {row['bytes']:,} bytes"
    if "agreement" in row:
        text += (
            f"\n{row['agreement']:.1f} % of {row['samples']} test samples get the same answer as from the run"
        )
    tell(row, json, text)
