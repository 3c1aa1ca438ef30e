"""`pmsm train`: a float network, then its quantized network, into a folder."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from pmsm.cli.app import Json, Threads, command, tell, use_threads


@command
def train(
    data: Annotated[
        str, typer.Option(help="Folder of images, or events: nmnist:DIR, dvs128gesture:DIR, shd:FILE, ...")
    ] = "",
    network: Annotated[str, typer.Option(help="small, timm:<name>, <module>:<function>, ...")] = "small",
    timesteps: Annotated[int, typer.Option(min=1, help="Frames that a recording is cut into.")] = 8,
    method: Annotated[str, typer.Option(help="pmsm or qcfs.")] = "pmsm",
    levels: Annotated[int, typer.Option(help="Codes per site.")] = 9,
    epochs: Annotated[
        int, typer.Option(min=1, help="Epochs of the float network; QAT takes half as many.")
    ] = 20,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per step.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and augmentation.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and run.json.")] = Path("runs/train"),
    threads: Threads = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoints in --out.")] = False,
    json: Json = False,
) -> None:
    """Train a float network, then its quantized network, on images or on recordings of events.

    Example: pmsm train --data nmnist:N-MNIST --timesteps 8 --out runs/nmnist
    """
    from pmsm.study.experiment import Experiment, run_experiment

    use_threads(threads)
    experiment = Experiment(data, network, timesteps, method, levels, epochs, batch_size, seed)
    row = run_experiment(experiment, out, (lambda line: None) if json else typer.echo, resume=resume)
    tell(
        row, json, f"Go on with: pmsm convert {shlex.quote(str(out))}; pmsm evaluate {shlex.quote(str(out))}"
    )
