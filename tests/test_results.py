"""The page of results says what the result files say."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_page_of_results_is_current(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "recipes")
    page = runpy.run_path(str(ROOT / "recipes" / "tables.py"))["page"]()
    assert (ROOT / "docs" / "results.md").read_text() == page, "run .venv/bin/python recipes/tables.py"
