"""torchvision beside any build of torch; networks by name."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from pmsm.ann.models import torchvision
from pmsm.ann.models.zoo import build, input_shape
from pmsm.errors import MissingExtraError


@pytest.mark.skipif(find_spec("torchvision") is None, reason="needs the extra zoo")
def test_torchvision_imports_once_and_its_networks_run():
    module = torchvision()
    assert torchvision() is module
    assert module.models.resnet18().eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)


def test_a_missing_torchvision_is_an_error_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)  # what an import then finds: nothing
    with pytest.raises(MissingExtraError, match=r"pip install 'pmsm\[zoo\]'"):
        torchvision()


@pytest.mark.skipif(find_spec("torchvision") is None, reason="needs the extra zoo")
def test_torchvision_imports_in_a_fresh_interpreter_without_a_warning():
    code = "from pmsm.ann.models import torchvision; torchvision().models.resnet18"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(find_spec("timm") is None, reason="needs the extra zoo")
def test_networks_of_the_zoos_are_built_by_name_and_tell_their_input():
    ann = build("timm:test_vit")
    assert input_shape(ann) == (3, 160, 160)
    assert ann.eval()(torch.zeros(1, 3, 160, 160)).shape == (1, 1000)
    assert type(build("torchvision:resnet18")) is torchvision().models.ResNet
    assert input_shape(build("torchvision:resnet18")) == (3, 224, 224)


OWN = """
from torch import nn
net = nn.Linear(1, 2)
class Net(nn.Linear):
    def __init__(self): super().__init__(2, 3)
    @staticmethod
    def wide(): return nn.Linear(3, 4)
def sized(width): return nn.Linear(width, 1)
def number(): return 3
"""


@pytest.fixture
def own(monkeypatch, tmp_path):
    """A package of a user's, with a module `nets` and one that lacks a package."""
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "nets.py").write_text(OWN)
    (tmp_path / "own_package" / "lacking.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.startswith("own_package")]:
        del sys.modules[name]


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(("name", "features"), [("net", 2), ("Net", 3), ("Net.wide", 4)])
def test_a_network_of_the_users_is_a_module_or_what_makes_one(name, features):
    network = build(f"own_package.nets:{name}")
    assert isinstance(network, nn.Linear)
    assert network.out_features == features


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("resnet18", r"unknown network 'resnet18'\. Write timm:<name>, torchvision:<name> or <module>"),
        ("torchvision:", r"Write timm:<name>"),
        ("torchvision:resnet81", r"torchvision has no 'resnet81'\. Close names: .*resnet18"),
        (
            "timm:vit_smal_patch16_224",
            r"timm has no 'vit_smal_patch16_224'\. Close names: .*vit_small_patch16",
        ),
        ("no_such_module:build", r"no module 'no_such_module' in the working directory"),
        ("own_package.nothing:build", r"no module 'own_package.nothing'"),
        ("own_package.nets:nothing", r"own_package.nets has no 'nothing'"),
        ("own_package.nets:sized", r"gives function, not an nn.Module\. Name a network, or .*def build\(\)"),
        ("own_package.nets:number", r"gives int, not an nn.Module"),
    ],
)
def test_an_unknown_network_is_an_error_that_says_what_there_is(source, text):
    if find_spec("timm") is None and source.startswith(("timm", "torchvision")):
        pytest.skip("needs the extra zoo")
    with pytest.raises(ValueError, match=text):
        build(source)


@pytest.mark.usefixtures("own")
def test_a_module_of_the_users_that_lacks_a_package_says_which():
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        build("own_package.lacking:build")


@pytest.mark.skipif(find_spec("torchvision") is None, reason="needs the extra zoo")
def test_a_missing_timm_is_an_error_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"'timm' is not installed.*pip install 'pmsm\[zoo\]'"):
        build("timm:vit_small_patch16_224")
