"""`pmsm export`."""

from pathlib import Path
from typing import Annotated

import typer

from pmsm.cli.app import Json, Threads, command, tell, use_threads


@command
def export(
    file: Annotated[Path, typer.Argument(help="A file that pmsm.save wrote, of a quantized network.")],
    to: Annotated[str, typer.Option(help="npz, c, nir, onnx (8-bit kernels) or pt2 (torch.export).")],
    out: Annotated[Path | None, typer.Option(help="The new file. Default: beside FILE.")] = None,
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
    """Write a saved network for other tools: NumPy, C, ONNX runtimes, torch.export, NIR.

    Example: pmsm export net.safetensors --to onnx
    """
    from pmsm.study.export import export as exported
    from pmsm.study.export import told

    use_threads(threads)
    path = exported(file, to, out, bits=bits, aligned=not own_steps, floating=floating, state=state)
    row = told(path)
    tell(row, json, f"{path}: {row['bytes']:,} bytes")
