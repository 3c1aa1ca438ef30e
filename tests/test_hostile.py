"""Hostile files: refused with this library's own words, or read to the very network that was written.

A few hundred of the thousands that recipes/hostile_files.py reads within limits of memory and time.
"""

import os
import random
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.fixture(scope="module")
def recipe():
    """The recipe, its audit hook left out: Python knows no way to take one back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(RECIPES)
        return runpy.run_path(str(RECIPES / "hostile_files.py"))


@pytest.mark.parametrize("name", ["checkpoint"])
def test_a_hostile_file_is_refused_or_harmless(recipe, name, tmp_path, monkeypatch):
    kind, rng = recipe["KINDS"][name], random.Random(0)
    paths = kind.sound(tmp_path)
    sound = {path: kind.read(path) for path in paths}
    monkeypatch.chdir(tmp_path)
    bad = []
    for mutation in list(kind.mutations) * 12:
        origin = rng.choice(paths)
        (tmp_path / "hostile").write_bytes(kind.mutations[mutation](origin.read_bytes(), rng))
        result = recipe["outcome"](kind, mutation, tmp_path / "hostile", sound[origin])
        bad += [(mutation, result)] * (result not in recipe["GOOD"])
    assert not bad


def test_the_watch_sees_what_a_pickle_would_do(tmp_path):
    """A negative control: a reader that unpickles is found out."""
    code = """
import pickle, runpy, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
recipe = runpy.run_path(sys.argv[1] + "/hostile_files.py")
kind = recipe["Kind"](None, lambda path: pickle.loads(path.read_bytes()), None, {}, frozenset())
sys.addaudithook(recipe["watch"])
print(recipe["outcome"](kind, "pickle_instead", Path("payload"), None))
"""
    (tmp_path / "payload").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    done = subprocess.run(
        [sys.executable, "-c", code, str(RECIPES)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(RECIPES.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "EXECUTED" in done.stdout
    assert "os.system" in done.stdout
