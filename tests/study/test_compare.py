"""One table of methods x levels x T: what it holds, how runs are pooled, and every form to the letter."""

import csv
import io
import json
import re
import textwrap

import pytest
from rich.console import Console

from pmsm.errors import CheckpointError, DataError
from pmsm.study.compare import FORMATS, Spread, compare
from pmsm.study.entries import Entry, read_entries
from pmsm.study.published import PUBLISHED

LINE = {
    "recipe": "cifar_resnet", "network": "resnet20", "method": "pmsm", "levels": 9, "epochs": 6, "seed": 0,
    "data": "CIFAR-10", "images": 10000, "float_accuracy": 91.73, "timesteps": [1, 2],
    "accuracy": [90.19, 90.84], "spikes_per_neuron": [1.2327, 2.5005], "energy_nj": [33493.8, 69002.1],
}  # fmt: skip
SEEDS = [LINE, LINE | {"seed": 1, "accuracy": [90.01, 91.0]}, LINE | {"seed": 2, "accuracy": [90.4, 90.9]}]
NO_TIME = {"recipe": "zoo", "name": "timm:vit", "levels": 9}


@pytest.fixture
def results(tmp_path):
    def write(*lines: dict, name: str = "results.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return write


# ruff: noqa: E501 -- tables, as they are printed
PLAIN = """
    data      network    method           from                                               levels  T            accuracy (%)  n  float (%)  spikes/neuron        nJ  samples
    CIFAR-10  ResNet-20  PMSM, after QAT  measured: cifar_resnet                                  9  1  90.19 (90.01 to 90.40)  3      91.73           1.23  33,493.8   10,000
    CIFAR-10  ResNet-20  PMSM, after QAT  measured: cifar_resnet                                  9  2  90.90 (90.84 to 91.00)  3      91.73           2.50  69,002.1   10,000
    CIFAR-10  ResNet-20  QCFS             published: Bu et al., ICLR 2022, arXiv:2303.04347          2                   73.20
    CIFAR-10  VGG-16     CS-QCFS          published: Yang et al., CS-QCFS, Neural Networks           1                   95.86
    CIFAR-10  VGG-16     QCFS             published: Bu et al., ICLR 2022, arXiv:2303.04347          2                   91.18
    CIFAR-10  ViT-S      PMSM             published: arXiv:2508.14520, abstract                      1                   98.50

    Accuracy: top-1; over n runs the median (lowest to highest). Spikes per neuron: |k| summed over the T steps. nJ: per sample, priced at 45nm-fp32. Published figures are their authors', not measured here; networks of one name may differ. Without accuracy over T, left out: zoo (1).
"""

MARKDOWN = """
| data | network | method | from | levels | T | accuracy (%) | n | float (%) | spikes/neuron | nJ | samples |
| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| CIFAR-10 | ResNet-20 | PMSM, after QAT | measured: cifar_resnet | 9 | 1 | 90.19 (90.01 to 90.40) | 3 | 91.73 | 1.23 | 33,493.8 | 10,000 |
"""

CSV = """
data,network,method,levels,timesteps,runs,samples,technology,accuracy_median,accuracy_lowest,accuracy_highest,float_accuracy_median,float_accuracy_lowest,float_accuracy_highest,spikes_per_neuron_median,spikes_per_neuron_lowest,spikes_per_neuron_highest,energy_nj_median,energy_nj_lowest,energy_nj_highest,published,sources,note
CIFAR-10,ResNet-20,"PMSM, after QAT",9,1,3,10000,45nm-fp32,90.19,90.01,90.4,91.73,91.73,91.73,1.2327,1.2327,1.2327,33493.8,33493.8,33493.8,False,cifar_resnet,
"""


def test_the_table_to_the_letter(results):
    assert str(compare([results(*SEEDS, NO_TIME)])) == textwrap.dedent(PLAIN).strip()


def test_the_table_of_markdown(results):
    found = compare([results(*SEEDS)], published=False, timesteps=[1])
    assert found.markdown() == MARKDOWN.strip() + f"\n\n{found.remarks()}\n"


def test_the_table_with_commas(results):
    found = compare([results(*SEEDS)], published=False, timesteps=[1]).csv()
    assert found == CSV.lstrip()
    assert len({len(row) for row in csv.reader(io.StringIO(found))}) == 1


def test_json_holds_numbers_in_full(results):
    told = json.loads(compare([results(*SEEDS, NO_TIME)], timesteps=[1], data=["CIFAR-10"]).as_json())
    assert told["rows"][0]["accuracy"] == {"median": 90.19, "lowest": 90.01, "highest": 90.4}
    assert [row["published"] for row in told["rows"]] == [False, True, True]
    assert told["passed_over"] == {"zoo": 1}


def test_a_rich_table_holds_every_cell(results):
    found = compare([results(*SEEDS)])
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(found.table())
    text = console.export_text()
    assert all(cell in text for row in found.grid().rows for cell in row)


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_is_text(results, suffix):
    assert "CIFAR-10" in FORMATS[suffix](compare([results(*SEEDS)]))


def test_a_run_made_again_replaces_its_line_and_is_not_counted_twice(results):
    row, *_ = compare([results(LINE, LINE | {"accuracy": [80.0, 81.0]})], published=False).rows
    assert (row.runs, row.accuracy) == (1, Spread(80.0, 80.0, 80.0))


def test_other_samples_prices_and_levels_are_rows_of_their_own(results):
    lines = [LINE, LINE | {"images": 2000}, LINE | {"technology": "45nm-int8"}, LINE | {"levels": 5}]
    assert len(compare([results(*lines)], published=False, timesteps=[1]).rows) == 4


@pytest.mark.parametrize(
    ("line", "method"),
    [
        ({"method": "pmsm", "epochs": 3}, "PMSM, after QAT"),
        ({"method": "qcfs", "epochs": 3}, "QCFS-IF, after QAT"),
        ({"epochs": 0}, "PMSM, calibrated only"),
        ({"rule": "mse"}, "PMSM, calibrated only, rule mse"),
        ({"method": "PMSM, allocated by output"}, "PMSM, allocated by output"),
        ({"method": "PMSM(levels=5)"}, "PMSM, calibrated only"),
    ],
)
def test_the_method_is_named_with_its_training(results, line, method):
    kept = {k: v for k, v in LINE.items() if k not in ("method", "epochs")}
    assert {row.method for row in compare([results(kept | line)], published=False).rows} == {method}


def test_published_figures_stand_beside_the_same_data_or_alone(results):
    assert {row.data for row in compare([results(LINE | {"data": "digits"})]).rows} == {"digits"}
    alone = compare([])
    assert len(alone.rows) == len(PUBLISHED)
    assert all(row.published for row in alone.rows)
    assert "spends 4 more timesteps that T does not count" in str(alone)


def test_every_published_figure_has_a_source_and_was_reached_at_one_or_two_steps():
    for entry in PUBLISHED:
        assert entry.published
        assert re.search(r"arXiv:\d{4}\.\d{5}|Neural Networks", entry.source)
        assert entry.timesteps in (1, 2)
        assert entry.energy_nj is None


def test_entries_may_be_given_themselves():
    entry = Entry("digits", "Net", "mine", 5, 1, 97.0, "here")
    assert compare([entry]).rows[0].accuracy.median == 97.0


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "line 1 of .* is no JSON"), ("[1]", "line 1 of .* must be a JSON object, got list"),
     (json.dumps(NO_TIME), "there is nothing to compare")],
)  # fmt: skip
def test_a_bad_file_is_named(tmp_path, text, message):
    path = tmp_path / "results.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        compare([path])


@pytest.mark.parametrize("name", ["nowhere", "net.onnx", "none.jsonl"])
def test_a_missing_or_foreign_source_is_refused(tmp_path, name):
    with pytest.raises(DataError, match=r"cannot (compare|read) .*"):
        compare([tmp_path / name])


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"nothing to compare in .*pmsm demo --out"):
        compare([tmp_path])


def run_folder(folder, *, evaluated: bool = True):
    folder.mkdir()
    run = {"experiment": {"network": "small", "method": "pmsm", "levels": 9, "seed": 3}, "data": "digits",
           "float_accuracy": 99.0, "qann_curve": [{}, {}]}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "qann.safetensors").touch()
    if evaluated:
        evaluation = {"accuracy": [97.0, 98.0], "spikes_per_neuron": [1.0, 2.0], "samples": 355}
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
        measured = {
            "prices": {"technology": {"name": "45nm-fp32"}},
            "totals": {"energy_pj": {"mean": 5000.0}},
        }
        (folder / "measurement-T2.json").write_text(json.dumps(measured))
    return folder


@pytest.mark.parametrize("name", ["", "run.json", "qann.safetensors"])
def test_the_folder_of_a_run_or_its_checkpoint_is_a_source(tmp_path, name):
    folder = run_folder(tmp_path / "mine")
    first, second = compare([folder / name]).rows
    assert (first.method, first.accuracy.median, first.samples) == ("PMSM, after QAT", 97.0, 355)
    assert (first.energy_nj, second.energy_nj) == (None, Spread(5.0, 5.0, 5.0))
    assert first.origin == "measured: mine"


def test_a_run_that_has_evaluated_itself_needs_no_evaluation(tmp_path):
    folder = run_folder(tmp_path / "mine", evaluated=False)
    (folder / "run.json").write_text(json.dumps(LINE))
    assert [row.accuracy.median for row in compare([folder], published=False).rows] == LINE["accuracy"]


def test_a_folder_of_runs_and_results_is_read_as_a_whole(tmp_path, results):
    results(LINE)
    run_folder(tmp_path / "mine")
    assert {entry.source for entry in read_entries([tmp_path]).entries} == {"cifar_resnet", "mine"}


def test_a_run_that_was_not_evaluated_says_what_to_do(tmp_path):
    folder = run_folder(tmp_path / "mine", evaluated=False)
    with pytest.raises(CheckpointError, match=r"was not evaluated. Do it: pmsm evaluate .*mine"):
        compare([folder])
