"""What a recipe may say, and how it is read, changed and written down."""

import json
from dataclasses import asdict

import pytest

from pmsm.errors import SettingsError
from pmsm.methods import PMSM, QCFS
from pmsm.study.recipe import Phase, Recipe, read_recipe, recipe_of

STAGES = ((0, 33), (6, 17), (12, 9))
RECIPE = Recipe(
    data="cifar10", network="resnet20", weights="w.safetensors", qat=Phase(epochs=18, lr=0.01),
    network_options=(("in_channels", 3),), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2),
    progressive=STAGES, distill=0.5,
)  # fmt: skip


def test_a_recipe_survives_json():
    assert recipe_of(json.loads(json.dumps(asdict(RECIPE)))) == RECIPE


@pytest.mark.parametrize(
    "levels, stages",
    [(5, ((0, 33), (6, 17), (12, 5))), (9, STAGES), (17, ((0, 33), (6, 17))), (33, ((0, 33),))],
)
def test_other_levels_end_the_stages(levels, stages):
    changed = RECIPE.with_options(levels=levels)
    assert (changed.levels, changed.progressive) == (levels, stages)
    assert changed.build_method() == PMSM(levels=levels)


def test_the_method_is_an_option():
    assert RECIPE.with_options(method="qcfs").build_method() == QCFS(levels=9)
    assert RECIPE.with_options(method="qcfs").build_method(17) == QCFS(levels=17)


def test_a_smoke_run_keeps_the_path_and_not_its_length():
    smoke = RECIPE.smoke()
    assert smoke.qat is not None
    assert smoke.qat.epochs == 2
    assert smoke.progressive == ((0, 17), (1, 9))
    assert (smoke.network, smoke.distill, smoke.weights) == ("resnet20", 0.5, "w.safetensors")


def test_a_phase_gives_train_all_but_what_makes_batches():
    given = Phase(epochs=3, lr=0.1, ema=0.9, augment="shift").arguments()
    assert given["ema"] == 0.9
    assert {"batch_size", "augment"}.isdisjoint(given)


@pytest.mark.parametrize(
    "wrong, text",
    [
        ({"data": "mnist"}, "needs data out of cifar10, .* got 'mnist'"),
        ({"method": "magic"}, "needs method out of pmsm, .* got 'magic'"),
        ({"network": "own:net", "network_options": (("depth", 2),)}, "'own:net' is none"),
        ({"weights": ""}, r"weights='file\.safetensors', or pretraining=Phase"),
        ({"timesteps": ()}, "rising timesteps >= 1"),
        ({"timesteps": (2, 1)}, "rising timesteps >= 1"),
        ({"progressive": ((1, 33), (6, 9))}, "stages .* start at epoch 0"),
        ({"progressive": ((0, 17), (6, 33), (7, 9))}, "fall in levels to 9"),
        ({"progressive": ((0, 17), (6, 5))}, "fall in levels to 9"),
        ({"progressive": ((0, 17), (18, 9))}, "epochs below 18"),
        ({"qat": None}, "epochs below 0"),
    ],
    ids=str,
)
def test_what_cannot_be_run_is_refused(wrong, text):
    given = {name: getattr(RECIPE, name) for name in ("data", "network", "weights", "qat", "progressive")}
    with pytest.raises(SettingsError, match=text):
        Recipe(**given | wrong)


def test_a_file_without_a_recipe_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"no recipe .*recipes/resnet20_cifar10\.py"):
        read_recipe(tmp_path / "none.py")
    (tmp_path / "other.py").write_text("RECIPE = 3")
    with pytest.raises(SettingsError, match=r"defines no RECIPE\. Write: from pmsm\.study\.recipe import"):
        read_recipe(tmp_path / "other.py")
