"""Every recipe runs from end to end on a few pictures, as `pmsm train RECIPE --smoke` does."""

import gzip
import io
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from pmsm.ann.models import resnet20
from pmsm.cli import app
from pmsm.errors import CheckpointError, DataError, SettingsError
from pmsm.methods.base import Quantizer
from pmsm.study.experiment import evaluate_over_time, load_experiment, prove
from pmsm.study.recipe import Phase, Recipe, read_recipe
from pmsm.study.recipe_parts import Stages, fill, float_network, load_float, load_sets
from pmsm.study.recipe_run import Order, run_recipe
from pmsm.study.run_record import record_of_run

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = sorted(path.stem for path in RECIPES.glob("*.py") if "\nRECIPE = " in path.read_text())
FASHION = (9, 2, 1, 1, 6, 1, 4, 6, 5, 7)  # the first test labels, by which the set is known
RNG = np.random.default_rng(0)


def write_cifar(folder: Path, label: str) -> None:
    """A dozen pictures of each half."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder.mkdir()
    for half in ("train", "test"):
        rows = []
        for pixels in RNG.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            rows.append({"bytes": buffer.getvalue(), "path": None})
        kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
        table = arrow.table({"img": arrow.array(rows, kind), label: [row % 10 for row in range(12)]})
        parquet.write_table(table, folder / f"{half}.parquet")


def write_fashion(folder: Path) -> None:
    """The same in IDX files."""
    folder.mkdir()
    for half in ("train", "t10k"):
        pixels = RNG.integers(0, 256, (12, 28, 28), dtype=np.uint8)
        header = np.array([0x803, 12, 28, 28], ">i4").tobytes()
        (folder / f"{half}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pixels.tobytes()))
        labels = np.array([*FASHION, 0, 1], np.uint8).tobytes()
        header = np.array([0x801, 12], ">i4").tobytes()
        (folder / f"{half}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + labels))


def write_imagenet(folder: Path) -> None:
    """Three pictures of two classes in each half."""
    for half in ("train", "val"):
        for wnid in ("n01440764", "n01443537"):
            (folder / half / wnid).mkdir(parents=True)
            for number in range(3):
                picture = Image.fromarray(RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8))
                picture.save(folder / half / wnid / f"{number}.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with a little of every set."""
    folder = tmp_path_factory.mktemp("data")
    before, os.environ["PMSM_CACHE"] = os.environ.get("PMSM_CACHE"), str(folder / "cache")
    write_cifar(folder / "cifar10", "label")
    write_cifar(folder / "cifar100", "fine_label")
    write_fashion(folder / "fashion-mnist")
    write_imagenet(folder / "imagenet")
    yield folder
    os.environ.pop("PMSM_CACHE")
    os.environ |= {} if before is None else {"PMSM_CACHE": before}


@pytest.fixture
def weights(tmp_path, data):
    """A folder with the float weights of a recipe, drawn at random."""

    def written(recipe: Recipe) -> Path:
        if recipe.weights:
            network = float_network(replace(recipe, size=None), load_sets(recipe, data, smoke=True), seed=1)
            save_file(network.state_dict(), tmp_path / recipe.weights)
        return tmp_path

    return written


def test_the_recipes_are_found():
    assert "resnet20_cifar10" in NAMES


@pytest.fixture
def short(tmp_path, monkeypatch, data):
    """A recipe of a vision transformer with one of its blocks and few levels: the whole takes minutes."""
    monkeypatch.syspath_prepend(tmp_path)

    def shortened(recipe: Recipe) -> Recipe:
        recipe = replace(recipe, levels=3, progressive=((0, 5), (1, 3)))
        if recipe.network == "vit_tiny_patch4_32":
            return replace(recipe, network_options=(*recipe.network_options, ("depth", 1)))
        classes = load_sets(recipe, data).train.class_count
        (tmp_path / f"short{classes}.py").write_text(
            "from pmsm.ann.models.vit import VisionTransformer\n"
            f"def vit(): return VisionTransformer(224, 16, 384, 1, 6, {classes})\n"
        )
        return replace(recipe, network=f"short{classes}:vit")

    return shortened


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_runs_in_two_steps_and_writes_no_line(name, data, weights, short, tmp_path):
    recipe = read_recipe(RECIPES / f"{name}.py")
    if recipe.network.startswith("vit"):
        recipe = short(recipe)
    results = tmp_path / "results.jsonl"
    order = Order(name, data, tmp_path / "run", weights(recipe), results, smoke=True)
    line = run_recipe(recipe, order)
    assert line["codes_different"] == 0
    assert line["codes_compared"] > 0
    assert line["accuracy"][0] == line["qann_accuracy"]
    assert len(line["curve"]) == max(1, len(recipe.progressive[-2:]))
    assert not results.exists()
    assert recipe.budget


SMALL = Recipe(
    data="fashion-mnist", network="small_vgg", pretraining=Phase(2, 0.05, batch_size=4, augment="shift"),
    qat=Phase(4, 0.02, batch_size=4, augment="shift", ema=0.9), progressive=((0, 17), (2, 5)), levels=5,
    distill=0.5, timesteps=(1, 2), budget="none",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A whole run, its line and its folder."""
    out = tmp_path_factory.mktemp("run")
    line = run_recipe(SMALL, Order("small", data, out, results=out / "results" / "lines.jsonl"))
    return out, line


def test_a_run_leaves_one_line_that_says_what_made_it(finished):
    out, line = finished
    assert json.loads((out / "results" / "lines.jsonl").read_text()) == json.loads(json.dumps(line))
    assert line["recipe"] == "small"
    assert line["data"] == "Fashion-MNIST"
    assert (len(line["float_curve"]), len(line["curve"])) == (2, 4)
    assert line["settings"]["progressive"] == ((0, 17), (2, 5))
    assert {"commit", "device", "seconds", "environment", "spikes_per_neuron"} <= line.keys()


def test_a_run_with_a_recipe_is_converted_and_evaluated_as_any_other(finished):
    out, line = finished
    experiment, source, qann = load_experiment(out)
    assert experiment.levels == 5
    assert prove(qann, source).different == 0
    found = evaluate_over_time(qann, source, 2)
    assert found["accuracy"] == pytest.approx(line["accuracy"])
    assert found["spikes_per_neuron"] == pytest.approx(line["spikes_per_neuron"])


def test_the_report_of_a_recipe_tells_its_operators_and_what_it_was_before_training(finished, data):
    out, _ = finished
    record = record_of_run(out)
    assert [m["name"] for m in record["methods"]] == ["PMSM, calibrated only", "PMSM, after QAT"]
    before, after = ({site["name"]: site["scale"] for site in m["sites"]} for m in record["methods"])
    assert before.keys() == after.keys()
    assert before != after
    assert {o["kind"] for o in record["operators"]} >= {"Conv2d", "MaxPool2d", "Linear"}
    assert record["command"].startswith(f"pmsm train recipes/small.py --data {data} --method pmsm --levels 5")


def test_a_run_is_a_function_of_recipe_data_and_seed_and_resumes_to_it(finished, data, tmp_path):
    class Stopped(Exception):
        pass

    def stop(told: str) -> None:
        if told.startswith("float network"):
            raise Stopped

    order = Order("small", data, tmp_path)
    with pytest.raises(Stopped):
        run_recipe(SMALL, order, stop)
    run_recipe(SMALL, replace(order, resume=True))
    one, other = (load_file(folder / "qann.safetensors") for folder in (finished[0], tmp_path))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_stages_bring_every_site_to_the_levels_of_the_epoch(data):
    sets = load_sets(SMALL, data)
    from pmsm.qann.quantize import quantize

    example = next(iter(sets.calibration(SMALL)))[0][:2]
    qann = quantize(float_network(SMALL, sets, 0).eval(), SMALL.build_method(), example)
    stages = Stages(SMALL, sets.calibration(SMALL))
    sites = [module for module in qann.modules() if isinstance(module, Quantizer)]
    for epoch, levels in [(0, 17), (1, 17), (2, 5), (3, 5)]:
        stages(epoch, qann)
        assert {site.levels for site in sites} == {levels}
    with torch.no_grad():
        sites[0].rho.fill_(0.5)
    stages(3, qann)
    assert (sites[0].rho == 0.5).all(), "the same levels leave what was learned"


def test_of_several_processes_the_first_one_measures_and_writes(data, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    told = []
    assert run_recipe(SMALL, Order("small", data, tmp_path, smoke=True), told.append) == {}
    assert told == []
    assert not (tmp_path / "run.json").exists()


def test_qcfs_takes_the_same_path_and_promises_nothing_at_one_step(data, tmp_path):
    line = run_recipe(SMALL.with_options(method="qcfs"), Order("small", data, tmp_path, smoke=True))
    assert (line["method"], line["codes_compared"]) == ("qcfs", None)


def test_weights_of_other_classes_load_but_for_the_new_head(tmp_path):
    network, path = resnet20(classes=100), tmp_path / "w.safetensors"
    given = {k: v for k, v in resnet20().state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(given, path)
    head = network.linear.weight.clone()
    load_float(path, network, new_head="linear")
    assert torch.equal(network.conv1.weight, given["conv1.weight"])
    assert torch.equal(network.linear.weight, head)
    with pytest.raises(
        CheckpointError, match=r"another network than CifarResNet: linear\.bias, linear\.weight"
    ):
        load_float(path, network)


def test_what_a_recipe_lacks_is_told(data, tmp_path):
    recipe = read_recipe(RECIPES / "resnet20_cifar10.py")
    order = Order("x", data, tmp_path, smoke=True)
    with pytest.raises(SettingsError, match="--weights FOLDER"):
        run_recipe(recipe, order)
    with pytest.raises(CheckpointError, match=r"cannot read the weights .*akamaster_resnet20"):
        run_recipe(recipe, replace(order, weights=tmp_path))
    with pytest.raises(DataError, match=r"the recipe is for CIFAR-10, and .* holds CIFAR-100"):
        run_recipe(recipe, replace(order, data=data / "cifar100", weights=tmp_path))
    with pytest.raises(SettingsError, match=r"no network 'magic' in pmsm\.ann\.models"):
        run_recipe(replace(SMALL, network="magic"), order)
    fill(SMALL, resnet20(), None)


def test_the_command_runs_a_recipe_and_refuses_what_it_decides(data, tmp_path):
    runner, file = CliRunner(), str(RECIPES / "small_vgg_fashion.py")
    options = ["--data", str(data), "--out", str(tmp_path / "run"), "--smoke", "--levels", "5", "--json"]
    told = runner.invoke(app, ["train", file, *options])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["levels"] == 5
    told = runner.invoke(app, ["evaluate", str(tmp_path / "run"), "--json"])
    assert told.exit_code == 0, told.output
    for wrong, text in [
        ([file, "--epochs", "3"], "--epochs: not a recipe's"),
        ([file], "needs its data"),
        (["--smoke"], "--smoke: a recipe's"),
        ([str(tmp_path / "none.py"), "--data", "x"], "no recipe"),
    ]:
        told = runner.invoke(app, ["train", *wrong])
        assert told.exit_code == 1
        assert text in told.stderr
