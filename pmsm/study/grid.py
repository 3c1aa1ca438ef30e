"""A table of texts, and the ways to write one: plain, Markdown, CSV, or for a rich console."""

import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pmsm.errors import import_extra

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Grid:
    """A table of texts: first `words` columns of words, then columns of numbers."""

    columns: tuple[str, ...]
    words: int
    rows: list[tuple[str, ...]]


def plain(grid: Grid) -> str:
    """Columns of equal width."""
    lines = []
    table = [grid.columns, *grid.rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        aligned = [
            f"{cell:{'<' if i < grid.words else '>'}{width}}"
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)


def markdown(grid: Grid) -> str:
    """A table of GitHub's Markdown."""
    rule = ["---"] * grid.words + ["---:"] * (len(grid.columns) - grid.words)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (grid.columns, rule, *grid.rows))


def rich_table(grid: Grid) -> "Table":
    """For a rich console."""
    text = import_extra("rich.text", "report").Text
    table = import_extra("rich.table", "report").Table()
    for i, column in enumerate(grid.columns):
        table.add_column(column, justify="left" if i < grid.words else "right", overflow="fold")
    for cells in grid.rows:
        table.add_row(*map(text, cells))
    return table


def comma_separated(grid: Grid) -> str:
    """A header and a line per row (RFC 4180, lines end with a line feed)."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([grid.columns, *grid.rows])
    return buffer.getvalue()
