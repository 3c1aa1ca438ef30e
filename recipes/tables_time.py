"""The tables of results that are about time: accuracy over T, early exit, events, video, cost of T."""

from collections.abc import Iterable
from statistics import mean, median

from tables_format import markdown, rows, spread


def trained_tables() -> Iterable[str]:
    """Networks with more on board than the demo's: pretrained ResNets, a vision transformer."""
    found = rows("vit_fashion.jsonl") + rows("recipes.jsonl")
    if not found:
        return
    found = [{"method": "pmsm", **row} for row in found]
    columns = ("network", "data", "images", "method", "levels", "epochs", "seed")
    timesteps = sorted({t for row in found for t in row["timesteps"]})
    head = ["network", "data", "test images", "method", "levels", "QAT epochs", "seed", "float"]
    head += [f"T={t}" for t in timesteps]
    table = []
    for row in sorted(found, key=lambda r: tuple(r[key] for key in columns)):
        notes = f" ({row['note'].partition(' where')[0]})" if row.get("note") else ""
        cells = [f"{row[key]}{notes if key == 'data' else ''}" for key in columns]
        accuracy = dict(zip(row["timesteps"], row["accuracy"], strict=True))
        table.append([*cells, f"{row['float_accuracy']:.2f}", *(_cell(accuracy, t) for t in timesteps)])
        spikes = dict(zip(row["timesteps"], row["spikes_per_neuron"], strict=True))
        table.append(
            ["&nbsp;&nbsp;spikes per neuron", *[""] * len(columns), *(_cell(spikes, t) for t in timesteps)]
        )
    exact = [row for row in found if row["codes_compared"]]
    worst = min(min(row["accuracy"]) - row["accuracy"][0] for row in exact)
    yield f"""## Trained networks over time

`pmsm train recipes/NAME.py` (published weights, fine-tuned, or from scratch) and `recipes/vit_fashion.py`
(attention; from scratch): accuracy in %. QAT epochs 0: calibrated only. PMSM's lowest accuracy at any T is
{worst:+.2f} pp from that at T=1; {sum(row["codes_different"] for row in exact)} of
{sum(row["codes_compared"] for row in exact):,} codes differed from the quantized networks' at T=1.

{markdown(head, table)}"""


def _cell(values: dict[int, float], t: int) -> str:
    """The value after t steps, if it was measured."""
    return f"{values[t]:.2f}" if t in values else ""


def early_exit_table() -> Iterable[str]:
    """Mean T against accuracy."""
    found = rows("early_exit.jsonl")
    if not found:
        return
    head = [
        "levels",
        "float",
        "T=1",
        "full T=8",
        "stopping",
        "mean T",
        "until",
        "spikes per neuron, full / stopping",
    ]
    table = [
        [
            str(row["levels"]), f"{row['float_accuracy']:.2f}", f"{row['at_t1']:.2f}",
            f"{row['full']['accuracy']:.2f}", f"{row['early']['accuracy']:.2f}",
            f"{row['early']['mean_timesteps']:.2f}", " / ".join(f"{u:g}" for u in sorted(set(row["until"]))),
            f"{row['full']['spikes_per_neuron']:.2f} / {row['early']['spikes_per_neuron']:.2f}",
        ]
        for row in found
    ]  # fmt: skip
    yield f"""## Stopping when sure

`recipes/early_exit.py`: pretrained ResNet-20 on CIFAR-10, calibrated only, {found[0]["images"]:,} test
images, accuracy in %. Each tenth of the pictures stops at the confidence that the other nine chose,
without labels: the largest with which they stop after at most 1.3 steps on average.

{markdown(head, table)}"""


def events_table() -> Iterable[str]:
    """Streams of events."""
    found = rows("nmnist.jsonl")
    if not found:
        return
    head = ["T", "float, mean frame", "QANN, mean frame", "QANN, averaged over frames", "SNN on the stream",
            "SNN, tracking", "spikes per event: frames / stream / tracking"]  # fmt: skip
    table = []
    for timesteps in sorted({row["timesteps"] for row in found}):
        here = [row for row in found if row["timesteps"] == timesteps]
        last = {k: [row[k]["accuracy"][-1] for row in here] for k in ("frames", "stream", "tracking")}
        spikes = " / ".join(
            f"{mean(row[k]['spikes_per_event'] for row in here):.0f}"
            for k in ("frames", "stream", "tracking")
        )
        table.append([
            str(timesteps), spread([row["float_accuracy"] for row in here]),
            spread([row["qann_accuracy"] for row in here]),
            *(spread(last[k]) for k in ("frames", "stream", "tracking")), spikes,
        ])  # fmt: skip
    yield f"""## N-MNIST, from the events

`recipes/nmnist.py`: the 200 + {found[0]["recordings"]} real recordings of the sample, SmallResNet,
{found[0]["levels"]} levels, {len({row["seed"] for row in found})} seeds, accuracy in % on
{found[0]["recordings"]} recordings (one recording is one point: differences of a few points are noise).
Learning curves are in results/nmnist.jsonl. Averaging decisions over frames beats deciding on the mean
frame here, with or without spikes: the recordings show the digit in three movements, and the mean frame
superimposes them.

{markdown(head, table)}"""


def video_table() -> Iterable[str]:
    """Tracking mode on still and moving scenes."""
    found = rows("moving_digit.jsonl")
    if not found:
        return
    head = [
        "the digit moves",
        "tracking, spikes per neuron and frame",
        "T=1 anew on each frame",
        "ratio",
        "read-outs equal",
    ]
    table = [
        [
            name, spread([row["videos"][name]["later_tracking"] for row in found]),
            spread([row["videos"][name]["later_anew"] for row in found]),
            spread([row["videos"][name]["ratio"] for row in found]),
            "all" if all(row["videos"][name]["equal"] for row in found) else "NOT all",
        ]
        for name in found[0]["videos"]
    ]  # fmt: skip
    yield f"""## Video in tracking mode

`recipes/moving_digit.py`: {found[0]["samples"]} videos of {found[0]["frames"]} frames, {len(found)}
seed(s), QAT at {found[0]["levels"]} levels ({spread([row["qann_accuracy"] for row in found])} %). Frames
behind the first; read-outs are compared bit for bit with the quantized network on each frame.

{markdown(head, table)}"""


def timesteps_tables() -> Iterable[str]:
    """Time and memory against T."""
    found = rows("timesteps.jsonl")
    if not found:
        return
    row = found[-1]
    environment = row["environment"]
    schedules = [
        [str(line["samples"]), str(line["timesteps"]), f"{line['steps_over_layers']:.2f}"]
        for line in row["schedules"]
    ]
    growth = "; ".join(f"{line['schedule']} {line['ratio']:.2f}" for line in row["growth"])
    memory = [
        [line["schedule"], str(line["timesteps"]), f"{line['tensors_mib']:.1f}", f"{line['process_mib']:.0f}"]
        for line in row["memory"]
    ]
    yield f"""## What timesteps cost

`benchmarks/timesteps.py`: {row["network"]}, one thread of {environment["processor"]}, n = {row["n"]}
interleaved rounds. Time at T=32 over time at T=8: {growth} (linear: 4).

{markdown(["N", "T", "time step-wise / layer-wise"], schedules)}
Memory at N = {row["memory"][0]["samples"]}: the most that tensors held, and the peak of the process, MiB.

{markdown(["schedule", "T", "tensors", "process"], memory)}"""


def zoo_time_table() -> Iterable[str]:
    """The laws of time on the architectures of the zoo."""
    found = rows("zoo_time.jsonl")
    if not found:
        return
    done = [row for row in found if "tracking" in row]
    table = []
    for row in done:
        settled = [
            f"{row['tracking'][m]['settled']}{'' if row['tracking'][m]['equal'] else ' (differs)'}"
            for m in ("1", "2", "unlimited")
        ]
        schedule = {True: "equal", False: "DIFFER", None: "only step-wise"}[row["schedules"]]
        binary = {True: "equal", False: "DIFFER"}.get(row["binary"], "refused")
        table.append([row["name"], *settled, schedule, binary])
    exact = sum(all(t["equal"] for t in row["tracking"].values()) for row in done)
    steps = [row["tracking"]["1"]["settled"] for row in done if row["tracking"]["1"]["settled"] is not None]
    yield f"""## The laws of time on published architectures

`recipes/zoo_time.py`: random weights, small forms, 9 levels. Steps until tracking mode is silent, for at
most 1, 2 and any number of spikes per neuron and step; {exact} of {len(done)} are then the quantized
network bit for bit at each limit (median {median(steps):.0f} steps with one spike). Layer-wise against
step-wise runs, bit for bit; counts of the binary (unrolled) network in float64. {len(found) - len(done)}
did not convert, see the table above.

{markdown(["network", "m = 1", "m = 2", "any m", "schedules", "binary"], table)}"""


def time_tables() -> list[str]:
    """Every table, in the order of the file."""
    parts = (trained_tables, early_exit_table, events_table, video_table, timesteps_tables, zoo_time_table)
    return [text for part in parts for text in part()]
