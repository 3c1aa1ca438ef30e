"""`pmsm convert`, `evaluate` and `measure`: what can be asked of the folder of a finished run."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from pmsm.cli.app import Json, RunFolder, Threads, Tracked, command, find_modules, tell, use_threads, working

Mode = Annotated[
    str | None, typer.Option(help="integrate or tracking. Default: that of the method's own neuron.")
]


@command
def convert(
    run: RunFolder,
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """Convert the network of a run, and prove on test samples that it is equal at T=1.

    Example: pmsm convert runs/nmnist
    """
    from pmsm.study.experiment import load_experiment, prove

    use_threads(threads)
    find_modules()
    with working("convert and compare"):
        _, source, qann = load_experiment(run)
        found = prove(qann, source)
    row = {"max_difference": found.max_difference, "codes": found.codes, "different": found.different}
    tell(row, json, str(found))


@command
def evaluate(
    run: RunFolder,
    timesteps: Annotated[
        int | None, typer.Option(min=1, help="Steps; for events at most the frames. Default: as trained.")
    ] = None,
    mode: Mode = None,
    burst: Annotated[int | None, typer.Option(help="Most spikes per step in tracking mode.")] = None,
    reset_each_frame: Annotated[
        bool, typer.Option("--reset-each-frame", help="Forget all potentials at each frame of events.")
    ] = False,
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """Accuracy and spikes of the spiking network after each timestep, on the test samples of a run.

    Example: pmsm evaluate runs/nmnist --timesteps 8
    """
    from json import dumps

    from pmsm.errors import DataError
    from pmsm.files import write_atomic
    from pmsm.study.entries import EVALUATION
    from pmsm.study.experiment import evaluate_over_time, load_experiment, told_over_time

    use_threads(threads)
    find_modules()
    experiment, source, qann = load_experiment(run)
    steps = experiment.timesteps if timesteps is None else timesteps
    watched = replace(source, test=Tracked(source.test, "evaluate"))
    row = evaluate_over_time(qann, watched, steps, mode=mode, burst=burst, reset_each_frame=reset_each_frame)
    if mode is None and burst is None and not reset_each_frame:
        write_atomic(run / EVALUATION, dumps(row), DataError)
    tell(row, json, told_over_time(row))


@command
def measure(
    run: RunFolder,
    timesteps: Annotated[
        int | None, typer.Option(min=1, help="Steps of an image; events take one per frame. Default: 1.")
    ] = None,
    technology: Annotated[
        str, typer.Option(help="What an operation costs, see docs/energy.md.")
    ] = "45nm-fp32",
    convention: Annotated[str, typer.Option(help="unary, events or graded.")] = "unary",
    memory: Annotated[str | None, typer.Option(help="Charge memory as well: sram-8k, ..., dram.")] = None,
    mode: Mode = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(help="Another run, at the smallest T within a point of accuracy; may be repeated."),
    ] = None,
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """Count spikes, synaptic operations and energy on the test samples of a run, beside the dense networks.

    Example: pmsm measure runs/mine --technology 45nm-int8 --beside runs/qcfs
    """
    from pmsm.errors import DataError
    from pmsm.files import write_atomic
    from pmsm.snn.convert import convert
    from pmsm.study.energy.measure import measure
    from pmsm.study.entries import MEASUREMENT
    from pmsm.study.experiment import load_experiment

    use_threads(threads)
    find_modules()
    _, source, qann = load_experiment(run)
    stream = source.events is not None
    batches = Tracked(source.test, "measure")
    found = measure(
        convert(qann, mode=mode), batches, timesteps or 1, stream=stream, technology=technology,
        convention=convention, memory=memory, baselines=_beside(run, beside or [], timesteps or 1),
    )  # fmt: skip
    if mode is None:
        write_atomic(run / MEASUREMENT.format(found.timesteps), found.as_json(), DataError)
    typer.echo(found.as_json() if json else str(found))


def _beside(run: Path, others: list[Path], timesteps: int) -> dict[str, tuple[Any, int]]:
    """The networks of other runs, by name, each with its T."""
    from pmsm.study.rival import rival, standing

    if not others:
        return {}
    own = standing(run, timesteps, Tracked)
    found = [rival(own, other, Tracked) for other in others]
    return {name: (snn, steps) for name, snn, steps in found}
