"""The command line: one command per verb, thin; torch is loaded only when a command needs it."""

import shlex
import sys
from collections.abc import Callable
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import typer

from pmsm.errors import SettingsError

app = typer.Typer(
    help="Turn a trained PyTorch network into a spiking network that is exact at the first timestep.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

INTERRUPTED = 130  # the shell's exit status for Ctrl-C


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """A command: known errors end it with their text and status 1, Ctrl-C with the way on and status 130."""

    @wraps(function)  # its docstring too: that is what --help prints
    def run(*args: Any, **kwargs: Any) -> None:
        """`function` with its errors told."""
        try:
            function(*args, **kwargs)
        except KeyboardInterrupt:
            resumes = "resume" in signature(function).parameters
            kept = " Finished epochs are kept; the same command with --resume goes on from there."
            typer.echo("Stopped." + kept * resumes, err=True)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if type(error).__module__ != "pmsm.errors":  # ours, without importing torch for a mere --help
                raise
            typer.echo(f"pmsm: {error}", err=True)
            raise typer.Exit(1) from None

    app.command()(run)
    return run


@_command
def demo(
    data: Annotated[
        Path | None, typer.Option(help="Folder with Fashion-MNIST (idx) or CIFAR (parquet). Default: digits.")
    ] = None,
    levels: Annotated[int, typer.Option(help="Codes per site.")] = 9,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of the float network; QAT takes half as many.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, record.json, report.html.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(help="Seed of weights, order and augmentation.")] = 0,
    threads: Annotated[
        int, typer.Option(min=1, help="Threads of torch; on a busy machine one is the fastest.")
    ] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoints in --out.")] = False,
) -> None:
    """Train, quantize, convert and prove a small network on real images, with a baseline beside it.

    Example: pmsm demo --data fashion-mnist --levels 9 --out runs/fashion
    """
    import torch
    from rich.console import Console

    from pmsm.study.demo import Demo, run_demo
    from pmsm.study.report import summary

    torch.set_num_threads(threads)
    console = Console(highlight=False)
    settings = Demo(data, levels, epochs, out, seed, resume)
    record = run_demo(
        settings, shlex.join(["pmsm", *sys.argv[1:]]), lambda line: console.print(line, soft_wrap=True)
    )
    console.print(summary(record))
    console.print(f"Report: {out / 'report.html'}   Checkpoints and record: {out}/", soft_wrap=True)


@_command
def explain(
    source: Annotated[
        str, typer.Argument(help="timm:<name>, torchvision:<name>, or <module>:<function that makes it>.")
    ],
    shape: Annotated[
        str | None, typer.Option(help="One sample, e.g. 3,32,32. Default: timm's, else 3,224,224.")
    ] = None,
    levels: Annotated[int, typer.Option(help="Codes per site.")] = 9,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
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
    sys.path.insert(0, str(Path.cwd()))  # a module of the user's, as `python -m` finds it
    network = build(source)
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


@_command
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
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoints in --out.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Train a float network, then its quantized network, on images or on recordings of events.

    Example: pmsm train --data nmnist:N-MNIST --timesteps 8 --out runs/nmnist
    """
    from pmsm.study.experiment import Experiment, run_experiment

    _use_threads(threads)
    experiment = Experiment(data, network, timesteps, method, levels, epochs, batch_size, seed)
    row = run_experiment(experiment, out, (lambda line: None) if json else typer.echo, resume=resume)
    _tell(
        row, json, f"Go on with: pmsm convert {shlex.quote(str(out))}; pmsm evaluate {shlex.quote(str(out))}"
    )


@_command
def convert(
    run: Annotated[Path, typer.Argument(help="Folder of a finished `pmsm train`.")],
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a line.")] = False,
) -> None:
    """Convert the network of a run, and prove on test samples that it is equal at T=1.

    Example: pmsm convert runs/nmnist
    """
    from pmsm.study.experiment import load_experiment, prove

    _use_threads(threads)
    _, source, qann = load_experiment(run)
    found = prove(qann, source)
    row = {"max_difference": found.max_difference, "codes": found.codes, "different": found.different}
    _tell(row, json, str(found))


@_command
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a finished `pmsm train`.")],
    timesteps: Annotated[
        int | None, typer.Option(min=1, help="Steps; for events at most the frames. Default: as trained.")
    ] = None,
    mode: Annotated[str, typer.Option(help="integrate or tracking.")] = "integrate",
    burst: Annotated[int | None, typer.Option(help="Most spikes per step in tracking mode.")] = None,
    reset_each_frame: Annotated[
        bool, typer.Option("--reset-each-frame", help="Forget all potentials at each frame of events.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Accuracy and spikes of the spiking network after each timestep, on the test samples of a run.

    Example: pmsm evaluate runs/nmnist --timesteps 8
    """
    from pmsm.study.experiment import evaluate_over_time, load_experiment

    _use_threads(threads)
    experiment, source, qann = load_experiment(run)
    steps = experiment.timesteps if timesteps is None else timesteps
    row = evaluate_over_time(qann, source, steps, mode=mode, burst=burst, reset_each_frame=reset_each_frame)
    lines = [
        f"T={t:<3d} accuracy {accuracy:6.2f} %   spikes per neuron {spikes:7.3f}"
        for t, (accuracy, spikes) in enumerate(zip(row["accuracy"], row["spikes_per_neuron"], strict=True), 1)
    ]
    if "spikes_per_event" in row:
        lines.append(f"spikes per event {row['spikes_per_event']:.2f}")
    _tell(row, json, "\n".join(lines))


@_command
def measure(
    run: Annotated[Path, typer.Argument(help="Folder of a finished `pmsm train`.")],
    timesteps: Annotated[
        int | None, typer.Option(min=1, help="Steps of an image; events take one per frame. Default: 1.")
    ] = None,
    technology: Annotated[
        str, typer.Option(help="What an operation costs, see docs/energy.md.")
    ] = "45nm-fp32",
    convention: Annotated[str, typer.Option(help="unary, events or graded.")] = "unary",
    memory: Annotated[str | None, typer.Option(help="Charge memory as well: sram-8k, ..., dram.")] = None,
    mode: Annotated[str, typer.Option(help="integrate or tracking.")] = "integrate",
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Count spikes, synaptic operations and energy on the test samples of a run, beside the dense networks.

    Example: pmsm measure runs/nmnist --technology 45nm-int8
    """
    from pmsm.snn.convert import convert
    from pmsm.study.energy.measure import measure
    from pmsm.study.experiment import load_experiment

    _use_threads(threads)
    _, source, qann = load_experiment(run)
    stream = source.events is not None
    found = measure(
        convert(qann, mode=mode), source.test, timesteps or 1, stream=stream, technology=technology,
        convention=convention, memory=memory,
    )  # fmt: skip
    typer.echo(found.as_json() if json else str(found))


def _use_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _tell(row: dict[str, Any], json: bool, text: str) -> None:
    """The result for a person, or for a program."""
    from json import dumps

    typer.echo(dumps(row) if json else text)


def _shape(text: str) -> tuple[int, ...]:
    """ "3,32,32" as numbers."""
    sizes = text.replace(" ", "").split(",")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise SettingsError(
            f"--shape needs whole numbers >= 1 with commas between, got {text!r}. Write 3,224,224."
        )
    return tuple(map(int, sizes))


def main() -> None:
    """Run the command line."""
    app()
