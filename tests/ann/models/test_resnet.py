"""The ResNets for CIFAR, and that published weights fit them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pmsm.ann.data import Images
from pmsm.ann.data.cifar import CIFAR10
from pmsm.ann.data.images import normalize
from pmsm.ann.data.pictures import decode_picture
from pmsm.ann.models import resnet20, resnet32, resnet44, resnet56
from pmsm.ann.models.resnet import SubsampleShortcut

# Millions of parameters, arXiv:1512.03385, table 6.
NETWORKS = [(resnet20, 20, 0.27), (resnet32, 32, 0.46), (resnet44, 44, 0.66), (resnet56, 56, 0.85)]


@pytest.fixture(scope="module")
def pictures():
    """A cache over the tests of this file."""
    return {}


def first_test_images(shared_data, pictures, count=200) -> Images:
    """The first test images of CIFAR-10, decoded alone: the whole set would take half a minute."""
    parquet = pytest.importorskip("pyarrow.parquet")
    if not pictures:
        path = shared_data / "cifar10" / "test.parquet"
        with parquet.ParquetFile(path) as file:
            rows = next(file.iter_batches(count, columns=["img", "label"])).to_pylist()
        pixels = torch.from_numpy(
            np.stack([decode_picture(row["img"]["bytes"], "test", (32, 32)) for row in rows])
        )
        labels = torch.tensor([row["label"] for row in rows])
        pictures["first"] = Images(
            pixels, labels, CIFAR10.classes, CIFAR10.mean, CIFAR10.std, "CIFAR-10 test"
        )
    return pictures["first"]


@pytest.mark.parametrize("build, depth, millions", NETWORKS)
def test_depth_and_parameters_are_those_of_the_paper(build, depth, millions):
    model = build()
    layers = [name for name, weight in model.named_parameters() if weight.dim() > 1]
    assert len(layers) == depth
    assert sum(weight.numel() for weight in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_the_shortcut_takes_every_second_pixel_and_pads_channels_on_both_sides():
    x = torch.arange(2 * 4 * 4.0).view(1, 2, 4, 4)
    y = SubsampleShortcut(2)(x)
    assert y.shape == (1, 4, 2, 2)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert not y[:, [0, 3]].any()


def test_number_of_classes_and_channels_can_be_chosen():
    assert resnet20(100, 1).eval()(torch.zeros(2, 1, 28, 28)).shape == (2, 100)


@pytest.mark.parametrize("build, depth, millions", NETWORKS)
def test_published_weights_load_strictly_and_classify(build, depth, millions, shared_data, pictures):
    images = first_test_images(shared_data, pictures)
    path = shared_data / "weights" / f"akamaster_resnet{depth}_cifar10.safetensors"
    with safe_open(path, "pt") as file:
        constants = {key: tuple(map(float, file.metadata()[key].split(","))) for key in ("mean", "std")}
    images = replace(images, **constants)
    model = build().eval()
    model.load_state_dict(load_file(path), strict=True)
    with torch.no_grad():
        code = model(normalize(images.images, images.mean, images.std)).argmax(1)
    accuracy = (code == images.labels).float().mean()
    assert accuracy >= 0.86  # 91.7 to 93.4 % on all 10,000; three standard deviations of 200 images are 6 %
