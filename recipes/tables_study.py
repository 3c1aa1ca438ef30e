"""Tables of what is chosen and what it costs: levels under a budget, the cost of measuring."""

from tables_format import markdown, rows


def study_tables() -> list[str]:
    """All of them."""
    return [allocate_table(rows("allocate.jsonl")), measure_table(rows("measure.jsonl"))]


def allocate_table(runs: list[dict]) -> str:
    """Levels chosen per site against equal levels, at the energy that equal levels need."""
    if not runs:
        return ""
    table = []
    for network in dict.fromkeys(run["network"] for run in runs):
        here = [run for run in runs if run["network"] == network]
        for budget in dict.fromkeys(run["budget_levels"] for run in here):
            group = {run["criterion"]: run for run in here if run["budget_levels"] == budget}
            equal = group["equal levels"]
            cells = [_gained(group.get(way), equal) for way in ("equal steps", "output", "entropy")]
            table.append([network.partition("(")[0], equal["data"], f"{equal['images']:,}",
                          f"{equal['float_accuracy']:.2f}", f"{budget}", f"{equal['energy_nj'][0]:,.0f}",
                          f"{equal['accuracy'][0]:.2f}", *cells])  # fmt: skip
    first = runs[0]
    ways = ("equal levels", "equal steps, more codes", "chosen, by output", "chosen, by entropy")
    head = ["network", "data", "test pictures", "float", "levels", "nJ", *ways]
    return f"""## Levels chosen per site, at equal energy

`recipes/allocate.py`: `pmsm.allocate` without training, rule {first["rule"]}, T=1, under the energy that
equal levels need. Accuracy in %; behind it the gain over equal levels in points, +- the standard error of
that difference picture by picture, and in brackets the energy over that of equal levels (45nm-fp32, 256 test
pictures; the budget is kept on the calibration pictures). "Equal steps": every site keeps the step of equal
levels and gets as many codes as clip next to nothing. One calibration set.

{markdown(head, table)}"""


def _gained(run: dict | None, equal: dict) -> str:
    if run is None:
        return ""
    energy = run["energy_nj"][0] / equal["energy_nj"][0]
    return f"{run['accuracy'][0]:.2f}, {run['gained']:+.2f} +- {run['standard_error']:.2f} ({energy:.3f})"


def measure_table(runs: list[dict]) -> str:
    """What `measure` costs."""
    if not runs:
        return ""
    first = runs[0]
    table = [
        [run["network"], f"{run['batch']}", f"{run['timesteps']}",
         *(f"{r['median']:.2f} ({r['quartiles'][0]:.2f} to {r['quartiles'][1]:.2f})"
           for r in run["ratios"].values())]
        for run in runs
    ]  # fmt: skip
    return f"""## What measuring costs

`benchmarks/measure.py`: processor time of `pmsm.measure` over that of the plain run of the same spiking
network, n = {first["n"]} interleaved rounds, one thread of {first["environment"]["processor"]}; median
(quartiles). "One batch" holds what is done once per call, "per batch" is each further one.

{markdown(["network", "batch", "T", *first["ratios"]], table)}"""
