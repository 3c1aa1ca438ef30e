"""What the tables of results share: the lines of a file, numbers over seeds, Markdown."""

import json
from pathlib import Path
from statistics import mean, median

RESULTS = Path(__file__).parent.parent / "results"


def rows(name: str) -> list[dict]:
    """The lines of one results file; none where it does not exist."""
    path = RESULTS / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def ratios(values: list[float]) -> str:
    """Median and range of ratios over processes."""
    return f"{median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def spread(values: list[float]) -> str:
    """Mean and range over seeds."""
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def markdown(head: list[str], table: list[list[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *table]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
