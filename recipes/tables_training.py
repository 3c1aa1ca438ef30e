"""Tables of quantization-aware training: what it is sensitive to."""

from collections.abc import Iterator
from statistics import mean

from tables_format import markdown, rows, spread

from pmsm.methods import METHODS


def training_tables() -> Iterator[str]:
    """Every table of training, where its lines exist."""
    if runs := rows("insensitivity.jsonl"):
        yield insensitivity_table(runs)


def insensitivity_table(runs: list[dict]) -> str:
    """Accuracy after QAT against the first step and the learning rate."""
    first, tables, ranges = runs[0], [], []
    factors = sorted({run["factor"] for run in runs} - {"published"})
    head = ["method", "learning rate", *(f"step x{factor:g}" for factor in factors), "published step"]
    for levels in sorted({run["levels"] for run in runs}):
        table = []
        for method in dict.fromkeys(run["method"] for run in runs):
            here = [run for run in runs if (run["method"], run["levels"]) == (method, levels)]
            label = METHODS[method].label
            ranges.append(f"{label} at {levels} levels {_range(here):.2f}")
            for rate in sorted({run["rate"] for run in here}):
                row = [run for run in here if run["rate"] == rate]
                cells = [[r["accuracy"] for r in row if r["factor"] == f] for f in (*factors, "published")]
                table.append([label, f"x{rate:g}", *map(spread, cells)])
        tables.append(f"{levels} levels:\n\n{markdown(head, table)}")
    seeds, floats = len({run["seed"] for run in runs}), sorted({run["float_accuracy"] for run in runs})
    text = f"""## Do the first step and the learning rate matter?

`recipes/insensitivity.py`: {first["data"].removesuffix(" train")}, {first["images"]:,} training pictures,
{first["network"]}, {seeds} seed(s), QAT of {first["epochs"]} epochs from a float network of
{first["float_epochs"]} ({spread(floats)} %). First steps and learning rate are the demo's times a factor;
QCFS starts from a calibrated lambda, and once from its published one, 8. Accuracy of the quantized network in
%; that of QCFS is what its spiking network reaches after many steps. Points between the best and the worst
cell, published step left aside: {", ".join(ranges)}.
"""
    return "\n".join([text, *tables])


def _range(runs: list[dict]) -> float:
    """Best less worst mean over seeds, of the grid of one method."""
    cells: dict[tuple, list[float]] = {}
    for run in runs:
        if run["factor"] != "published":
            cells.setdefault((run["factor"], run["rate"]), []).append(run["accuracy"])
    means = [mean(values) for values in cells.values()]
    return max(means) - min(means)
