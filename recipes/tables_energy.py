"""Tables of the energy of trained networks: PMSM at T=1 beside QCFS-IF over T and the dense networks."""

from statistics import mean

from tables_format import markdown, rows, spread

CONVENTIONS = ("unary", "events", "graded")
DENSE = {"float ANN": "45nm-fp32", "int8 QANN": "45nm-int8"}
NAMES = {"small_vgg": "A trained small VGG", "resnet20": "The pretrained ResNet-20, calibrated only"}


def energy_tables() -> list[str]:
    """A section per network."""
    runs = rows("energy.jsonl")
    return [_section([r for r in runs if r["network"] == name]) for name in NAMES if _any(runs, name)]


def _any(runs: list[dict], network: str) -> bool:
    return any(run["network"] == network for run in runs)


def _section(runs: list[dict]) -> str:
    first = runs[0]
    own = [name for name in dict.fromkeys(r["method"] for r in runs) if name.startswith("PMSM")]
    seeds = sorted({r["seed"] for r in runs})
    trained = (
        f"{first['float_epochs']} epochs in float, then {first['qat_epochs']} of QAT for every method alike; "
        f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}."
        if first["qat_epochs"]
        else "Weights of others, steps from 1,024 training pictures, no training."
    )
    return f"""## Energy: {NAMES[first["network"]]}, {first["data"]}

`recipes/energy.py`: {first["network"]}, {first["neurons"]:,} neurons, {first["macs"]:,} MACs.
{trained}
Float network {spread(sorted({r["float_accuracy"] for r in runs}))} %. Accuracy in % on
{first["images"]:,} test pictures, nJ per picture on {first["priced"]} of them, with neuron updates, without
memory.

{_over_time(runs, own)}
Columns "x" are the nJ of the row over those of PMSM at T=1, 45nm-fp32, in the conventions unary / events /
graded; rows "QANN" the quantized network itself, which has no T.
{_verdict(runs, own)}

{_dense(runs, own)}
{_same_prices(runs, own)}
What the float network (at 45nm-fp32) and the 8-bit one (at 45nm-int8) need, over what PMSM needs at T=1 at
the same prices, in the conventions unary / events / graded; above 1 PMSM is the cheaper one. Second table:
the network without spikes over PMSM, both at the prices of the column, unary; memory as if nothing were
reused.
"""


def _over_time(runs: list[dict], own: list[str]) -> str:
    """Method and T against accuracy, energy and its ratio to each of `own`."""
    table = []
    for name in dict.fromkeys(r["method"] for r in runs):
        here = [r for r in runs if r["method"] == name]
        for t in sorted(set.intersection(*(set(r["timesteps"]) for r in here))):
            at = [r["timesteps"].index(t) for r in here]
            accuracy = [r["accuracy"][i] for r, i in zip(here, at, strict=True)]
            spikes = mean(r["spikes_per_neuron"][i] for r, i in zip(here, at, strict=True))
            energy = mean(r["energy_nj"][i] for r, i in zip(here, at, strict=True))
            ratios = [_ratios(here, at, [_of(runs, other, r["seed"]) for r in here]) for other in own]
            table.append([name, f"{t}", spread(accuracy), f"{spikes:.2f}", f"{energy:,.0f}", *ratios])
        if len(here[0]["timesteps"]) > 1:  # what a rate code tends to
            table.append([name, "QANN", spread([r["qann_accuracy"] for r in here]), *[""] * (2 + len(own))])
    head = ["method", "T", "accuracy", "spikes per neuron", "nJ", *(f"x {name[6:]}" for name in own)]
    return markdown(head, table)


def _of(runs: list[dict], method: str, seed: int) -> dict:
    return next(r for r in runs if (r["method"], r["seed"]) == (method, seed))


def _ratios(here: list[dict], at: list[int], others: list[dict]) -> str:
    """Mean over seeds, for each convention."""
    return " / ".join(
        f"{mean(_nj(r, c, i) / _nj(o, c, 0) for r, i, o in zip(here, at, others, strict=True)):.2f}"
        for c in CONVENTIONS
    )


def _nj(run: dict, convention: str, index: int, technology: str = "45nm-fp32") -> float:
    return run["energies_nj"][technology][convention][index]


def _verdict(runs: list[dict], own: list[str]) -> str:
    """At which T a rival comes within a point, and what that is worth; a seed each."""
    told = []
    for name in dict.fromkeys(r["method"] for r in runs if "within_a_point" in r):
        for other in own:
            cells = [_reached(run, _of(runs, other, run["seed"])) for run in runs if run["method"] == name]
            told.append(f"- {name}, against {other}: {'; '.join(cells)}")
    if not told:
        return ""
    return "\n".join(["", "Smallest T, up to 32, within a point of the accuracy at T=1, by seed:", "", *told])


def _reached(run: dict, other: dict) -> str:
    t = run["within_a_point"].get(other["method"])
    if not t:
        return "never"
    ratio = run["energy_nj"][run["timesteps"].index(t)] / other["energy_nj"][0]
    return f"T={t}, at {ratio:.1f} times its energy"


def _dense(runs: list[dict], own: list[str]) -> str:
    table = []
    for name in own:
        here = [r for r in runs if r["method"] == name]
        table.append([name, *(_against(here, dense, at) for dense, at in DENSE.items())])
    return markdown(["", *(f"{dense} / PMSM" for dense in DENSE)], table)


def _against(here: list[dict], dense: str, technology: str) -> str:
    """Mean over seeds, for each convention."""
    return " / ".join(
        f"{mean(r['beside_nj'][dense] / _nj(r, c, 0, technology) for r in here):.2f}" for c in CONVENTIONS
    )


def _same_prices(runs: list[dict], own: list[str]) -> str:
    """The dense network over PMSM for each technology, without memory and with it."""
    prices = list(runs[0]["dense_over_this"])
    table = []
    for name in own:
        here = [r["dense_over_this"] for r in runs if r["method"] == name]
        table.append([name, *(f"{mean(r[price] for r in here):.2f}" for price in prices)])
    return markdown(["", *prices], table)
