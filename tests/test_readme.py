"""What the README shows is what happens."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parent.parent / "README.md"


def test_the_python_of_the_readme_runs(capsys):
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert code is not None
    names: dict = {}
    exec(
        compile(code[1].replace("epochs=10", "epochs=1").replace("epochs=5", "epochs=1"), "README", "exec"),
        names,
    )
    assert "T=1: max |SNN - QANN| = 0" in capsys.readouterr().out
    assert torch.equal(names["run"].outputs[-1], names["run"].output)


ROOT = README.parent
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page):
    text = page.read_text()
    links = re.findall(r"\]\(([^)#\s]+)", text) + re.findall(r'src="([^"]+)"', text)
    near = [link for link in links if "://" not in link]
    assert [link for link in near if not (page.parent / link).exists()] == []


def test_the_example_report_and_its_pictures_are_small_and_load_nothing():
    example = (ROOT / "docs" / "example-report.html").read_text()
    assert len(example.encode()) < 2_000_000
    assert not re.search(r'<script|src="|@import|url\((?!#)', example)
    assert "Converted, exactly." in example
    for picture in (ROOT / "docs" / "images").iterdir():
        assert picture.stat().st_size < 200_000
