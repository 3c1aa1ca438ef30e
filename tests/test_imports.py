"""The house: imports point one way, and the command line starts without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "pmsm"
ORDER = ["graph", "methods", "qann", "snn", "study", "cli"]  # a file imports what stands in front of it
EVERYWHERE = {"errors", "files"}  # import nothing of ours but each other
FILES = sorted(path for path in HOUSE.rglob("*.py") if path != HOUSE / "__init__.py")


def room(path: Path) -> str:
    """The first part of the name behind `pmsm`: a folder, or a file beside the folders."""
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports, wherever in it, each `from a import b` as a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {path}"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms(path: Path) -> set[str]:
    """The rooms of ours that a file imports from, its own excepted."""
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("pmsm.")}
    return ours - {room(path)}


def names(path: Path) -> str:
    return str(path.relative_to(HOUSE))


def test_every_file_stands_in_a_known_room():
    assert {room(path) for path in FILES} == {*ORDER, *EVERYWHERE, "ann"}


@pytest.mark.parametrize("path", FILES, ids=names)
def test_imports_point_one_way(path):
    here = room(path)
    in_front = set(ORDER[: ORDER.index(here)]) if here in ORDER else set()
    float_side = {"ann"} if here in ("study", "cli") else set()
    assert rooms(path) <= EVERYWHERE | in_front | float_side


@pytest.mark.parametrize("path", FILES, ids=names)
def test_only_the_graph_knows_torch_fx(path):
    fx = {name for name in imported(path) if name == "torch.fx" or name.startswith("torch.fx.")}
    assert not fx or room(path) == "graph"


@pytest.mark.parametrize("module", ["pmsm", "pmsm.cli", "pmsm.errors", "pmsm.files"])
def test_torch_is_not_loaded_before_it_is_needed(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_optional_packages_are_not_loaded_by_the_verbs():
    heavy = [
        "accelerate",
        "torchvision",
        "pyarrow",
        "sklearn",
        "matplotlib",
        "jinja2",
        "rich",
        "h5py",
        "lz4",
        "zstandard",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "nir",
    ]
    code = (
        "import sys, pmsm; [getattr(pmsm, name) for name in pmsm.__all__]; "
        f"sys.exit(str([name for name in {heavy} if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stderr.strip() == "[]"


def test_the_table_of_contents_names_what_exists():
    import pmsm

    assert sorted(pmsm.__all__) == sorted(pmsm._HOME)
    for name in pmsm.__all__:
        assert getattr(pmsm, name) is not None
    with pytest.raises(AttributeError, match="module 'pmsm' has no attribute 'nothing'"):
        pmsm.nothing  # noqa: B018
