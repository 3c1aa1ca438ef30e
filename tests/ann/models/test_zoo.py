"""torchvision beside any build of torch."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from pmsm.ann.models import torchvision
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
