"""Published CIFAR-10 weights of ResNet-20 to 56, and the pictures as they expect them: for the recipes that
train nothing. No recipe itself.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file

from pmsm.ann.data import Images, cifar10
from pmsm.ann.models import CifarResNet, resnet20, resnet32, resnet44, resnet56

SOURCE = "akamaster/pytorch_resnet_cifar10"
NETWORKS = {build.__name__: build for build in (resnet20, resnet32, resnet44, resnet56)}


def arguments(text: str | None, results: Path) -> argparse.ArgumentParser:
    """--data, --weights and --results; more may be added."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10")
    parser.add_argument("--weights", type=Path, required=True, help="folder of akamaster_resnet*.safetensors")
    parser.add_argument("--results", type=Path, default=results)
    return parser


def network(name: str, weights: Path) -> CifarResNet:
    """One of `NETWORKS` with its weights, in evaluation mode."""
    ann = NETWORKS[name]()
    ann.load_state_dict(load_file(_file(name, weights)), strict=True)
    return ann.eval()


def pictures(folder: Path, weights: Path, name: str = "resnet20") -> tuple[Images, Images]:
    """Training and test pictures of CIFAR-10, normalized by the constants in the metadata of the weights."""
    with safe_open(_file(name, weights), "pt") as file:
        mean, std = (tuple(map(float, file.metadata()[key].split(","))) for key in ("mean", "std"))
    train, test = (replace(images, mean=mean, std=std) for images in cifar10(folder))
    return train, test


def _file(name: str, weights: Path) -> Path:
    return weights / f"akamaster_{name}_cifar10.safetensors"
