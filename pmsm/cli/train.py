"""`pmsm train`: a float network, then its quantized network, into a folder; by a recipe, or by options."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from pmsm.cli.app import Json, Threads, Tracked, command, find_modules, note, tell, use_threads
from pmsm.errors import SettingsError


@command
def train(
    recipe: Annotated[
        Path | None, typer.Argument(help="File with RECIPE = Recipe(...); it decides all but data and seed.")
    ] = None,
    data: Annotated[
        str, typer.Option(help="Folder of images, or events: nmnist:DIR, dvs128gesture:DIR, shd:FILE, ...")
    ] = "",
    model: Annotated[
        str | None, typer.Option(help="small, timm:<name>, torchvision:<name>, <module>:<function>, ...")
    ] = None,
    timesteps: Annotated[
        int | None, typer.Option(min=1, help="Frames that a recording is cut into. Default: 8.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="pmsm, qcfs or stbif. Default: the recipe's, pmsm.")
    ] = None,
    levels: Annotated[int | None, typer.Option(help="Codes per site. Default: the recipe's, 9.")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Of the float network; QAT takes half as many. Default: 20.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples per step. Default: 64.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Folder of a recipe's float weights.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and augmentation.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints and run.json. Default: in runs/.")
    ] = None,
    results: Annotated[
        Path, typer.Option(help="File that a recipe's line of results is appended to.")
    ] = Path("results/recipes.jsonl"),
    device: Annotated[str, typer.Option(help="Of a recipe: cpu, cuda, auto.")] = "auto",
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Two steps of a recipe and a few pictures; no line of results.")
    ] = False,
    threads: Threads = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoints in --out.")] = False,
    json: Json = False,
) -> None:
    """Train a float network, then its quantized network, on images or on recordings of events.

    Examples: pmsm train recipes/resnet20_cifar10.py --data DIR --weights DIR;
    pmsm train --data nmnist:N-MNIST --timesteps 8 --out runs/nmnist
    """
    use_threads(threads)
    find_modules()
    mine = {"model": model, "timesteps": timesteps, "epochs": epochs, "batch_size": batch_size}
    shared = {"method": method, "levels": levels}
    if recipe is None:
        _refuse({"weights": weights is not None, "smoke": smoke}, "a recipe's")
        row, out = _by_options(data, {**mine, **shared}, seed, out, resume)
    else:
        _refuse({name: value is not None for name, value in mine.items()}, "not a recipe's, which decides it")
        row, out = _by_recipe(recipe, shared, data, weights, seed, out, results, device, smoke, resume)
    if not row:  # another process of the same run tells
        return
    where = shlex.quote(str(out))
    text = (
        f"{row['data']}: float {row['float_accuracy']:.2f} %, quantized {row['qann_accuracy']:.2f} %\n"
        f"Go on with: pmsm convert {where}; pmsm evaluate {where}; pmsm report {where}"
    )
    tell(row, json, text)


def _by_options(
    data: str, given: dict[str, Any], seed: int, out: Path | None, resume: bool
) -> tuple[dict, Path]:
    from pmsm.study.experiment import Experiment, run_experiment

    out = Path("runs/train") if out is None else out
    words = {"model": "network"}  # what an experiment calls it
    chosen = {words.get(name, name): value for name, value in given.items() if value is not None}
    return run_experiment(Experiment(data, seed=seed, **chosen), out, note, resume=resume, watch=Tracked), out


def _by_recipe(
    path: Path, given: dict[str, Any], data: str, weights: Path | None, seed: int, out: Path | None,
    results: Path, device: str, smoke: bool, resume: bool,
) -> tuple[dict, Path]:  # fmt: skip
    from pmsm.study.recipe import read_recipe
    from pmsm.study.recipe_run import Order, run_recipe

    recipe = read_recipe(path).with_options(**given)
    if not data:
        raise SettingsError(f"the recipe {path.stem} needs its data: pmsm train {path} --data FOLDER.")
    name = f"{path.stem}-{recipe.method}-{recipe.levels}-{seed}" + "-smoke" * smoke
    out = Path("runs") / name if out is None else out
    order = Order(path.stem, Path(data), out, weights, results, seed, resume, smoke, device)
    return run_recipe(recipe, order, note, Tracked), out


def _refuse(given: dict[str, bool], whose: str) -> None:
    """Options that mean nothing here."""
    wrong = [f"--{name.replace('_', '-')}" for name, there in given.items() if there]
    if wrong:
        raise SettingsError(
            f"{', '.join(wrong)}: {whose}. Write pmsm train RECIPE --data FOLDER [--weights FOLDER] "
            f"[--smoke], or without a recipe pmsm train --data FOLDER [--model SOURCE] [--epochs N]."
        )
