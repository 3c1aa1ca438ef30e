"""Tables of what is chosen and what it costs: levels under a budget, the cost of measuring."""

from tables_format import markdown, ratios, rows


def study_tables() -> list[str]:
    """All of them."""
    return [allocate_table(rows("allocate.jsonl")), measure_table(rows("measure.jsonl"))]


def allocate_table(runs: list[dict]) -> str:
    """Levels chosen per site against equal levels, at the energy that equal levels need."""
    if not runs:
        return ""
    names = ("equal levels", "output", "entropy")
    table = []
    for network in dict.fromkeys(run["network"] for run in runs):
        here = [run for run in runs if run["network"] == network]
        for budget in dict.fromkeys(run["budget_levels"] for run in here):
            group = {run["criterion"]: run for run in here if run["budget_levels"] == budget}
            equal = group["equal levels"]
            cells = [
                f"{run['accuracy'][0]:.2f} ({run['energy_nj'][0] / equal['energy_nj'][0]:.3f})" if run else ""
                for run in map(group.get, names)
            ]
            shown = network.partition("(")[0]
            table.append([shown, equal["data"], f"{equal['images']:,}", f"{equal['float_accuracy']:.2f}",
                          f"{budget}", f"{equal['energy_nj'][0]:,.0f}", *cells])  # fmt: skip
    first = runs[0]
    head = ["network", "data", "test pictures", "float", "budget: equal levels", "nJ", *names]
    return f"""## Levels chosen per site, at equal energy

`recipes/allocate.py`: `pmsm.allocate` without training, rule {first["rule"]}, T=1. Accuracy in %, in brackets
the energy over that of equal levels (45nm-fp32, 256 test pictures; the budget is kept on the 64 calibration
pictures that it is counted on). "output" weights the effective bits of each site by its measured effect on
the output; "entropy" maximizes the plain sum of the entropies. One calibration set: no spread over seeds.

{markdown(head, table)}"""


def measure_table(runs: list[dict]) -> str:
    """What `measure` costs."""
    if not runs:
        return ""
    first = runs[0]
    table = [
        [run["network"], f"{run['timesteps']}", *(f"{r['median']:.2f}" for r in run["ratios"].values())]
        for run in runs
    ]
    worst = ratios([r["median"] for run in runs for r in run["ratios"].values()])
    return f"""## What measuring costs

`benchmarks/measure.py`: time of `pmsm.measure` over that of the plain run of the same spiking network, batch
{first["batch"]}, n = {first["n"]} interleaved rounds, one thread of {first["environment"]["processor"]};
medians. Over all: {worst}.

{markdown(["network", "T", *first["ratios"]], table)}"""
