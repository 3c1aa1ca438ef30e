"""`pmsm calibrate`: a trained network of the user's, quantized and calibrated into the folder of a run."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from pmsm.cli.app import (
    Data,
    Json,
    Levels,
    Model,
    Threads,
    Tracked,
    command,
    find_modules,
    note,
    tell,
    use_threads,
)


@command
def calibrate(
    model: Model = "small",
    weights: Annotated[
        Path | None, typer.Option(help="Its state dict, a safetensors file, unless the function loads it.")
    ] = None,
    data: Data = "",
    method: Annotated[str, typer.Option(help="pmsm, qcfs or stbif.")] = "pmsm",
    levels: Levels = 9,
    rule: Annotated[
        str | None, typer.Option(help="entropy, mse, percentile or kl. Default: the best known.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint and run.json.")] = Path(
        "runs/calibrate"
    ),
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """Quantize and calibrate a trained network, without training: minutes, and a run like any other.

    Example: pmsm calibrate --model mypkg.mymodule:build --weights net.safetensors --data cifar10
    """
    from pmsm.study.calibrated import run_calibration
    from pmsm.study.experiment import Experiment

    use_threads(threads)
    find_modules()
    experiment = Experiment(data, model, method=method, levels=levels)
    row = run_calibration(experiment, out, weights=weights, rule=rule, say=note, watch=Tracked)
    folder = shlex.quote(str(out))
    text = (
        f"{row['data']}: float {row['float_accuracy']:.2f} %, quantized {row['qann_accuracy']:.2f} %\n"
        f"Go on with: pmsm convert {folder}; pmsm evaluate {folder}; pmsm report {folder}"
    )
    tell(row, json, text)
