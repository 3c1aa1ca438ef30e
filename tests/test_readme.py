"""What the README shows is what happens."""

import re
from pathlib import Path

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
