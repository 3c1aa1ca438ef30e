"""The report needs nothing else, says only what the record says, and refuses half a record."""

import copy
import io
import json
import math
import re
import subprocess
from html.parser import HTMLParser
from shutil import which

import pytest
from rich.console import Console

from pmsm.errors import PMSMError
from pmsm.study.report import summary, write_report

STEPS = [1, 2, 4, 8, 16, 32]
EXACT = {"max_difference": 0.0, "codes": 1555560, "different": 0}


def site(name: str, levels: int, spread: float) -> dict:
    half = (levels - 1) // 2
    weights = {k: math.exp(-0.5 * (k / spread) ** 2) for k in range(-half, half + 1)}
    shares = {str(k): weight / sum(weights.values()) for k, weight in weights.items()}
    entropy = -sum(share * math.log2(share) for share in shares.values())
    return {
        "name": name, "shape": [16, 8, 8], "scale": 0.31, "quant_min": -half, "quant_max": half,
        "entropy_bits": entropy, "effective_bits": 2.5, "max_bits": math.log2(levels), "histogram": shares,
        "silent": shares["0"], "saturated": shares[str(half)],
    }  # fmt: skip


def method(
    name: str, kind: str, accuracy: list, *, epochs: int, verify: dict | None, spread: float, **sizes
) -> dict:
    levels = sizes.get("levels", 9)
    return {
        "name": name, "method": f"{kind}(levels={levels})", "qann_accuracy": accuracy[0],
        "accuracy": accuracy, "spikes_per_neuron": [0.75 * t for t in STEPS], "epochs": epochs,
        "seconds": 0.4, "verify": verify, "energy": [energy(t, sizes.get("sites", 3)) for t in STEPS],
        "sites": [site(f"stage{i}.relu", levels, spread) for i in range(sizes.get("sites", 3))],
    }  # fmt: skip


def energy(t: int, operators: int) -> dict:
    row = {"timesteps": t, "technology": "45nm-fp32", "convention": "unary", "samples": 64,
           "energy_nj": 375.4 * t, "half_width_nj": 5.5, "synops": 1000.0 * t}  # fmt: skip
    costs = {"reads": "spikes", "synops": 10.0, "energy_nj": 3.0, "float_nj": 14.0, "int8_nj": 0.7}
    parts = [{"name": f"conv{i}", "kind": "Conv2d"} | costs for i in range(operators)]
    parts.append(
        {"name": "relu", "kind": "Neuron"} | costs | {"reads": "neurons", "float_nj": 0.0, "int8_nj": 0.0}
    )
    beside = [
        {
            "name": "float ANN",
            "technology": "45nm-fp32",
            "energy_nj": 1931.5,
            "ratio": 5.15,
            "break_even": None,
        },
        {"name": "int8 QANN", "technology": "45nm-int8", "energy_nj": 96.5, "ratio": 0.26, "break_even": 0.0},
    ]
    return row | ({"operators": parts, "beside": beside} if t == 1 else {})


def run_record(**sizes) -> dict:
    unsigned = [61.4, 81.1, 93.3, 96.7, 97.5, 97.8]
    calibrated, trained = [97.2, 97.8, 98.3, 98.6, 98.9, 98.9], [98.6, 98.6, 98.9, 98.9, 98.6, 98.9]
    return {
        "format": "pmsm-run", "version": 1, "title": "Digits: from float to spikes",
        "data": {"name": "digits", "train": 1437, "test": 360, "shape": [1, 8, 8], "classes": 10},
        "network": {"name": "SmallResNet", "parameters": 78042, "sites": 3, "neurons": 4321},
        "float": {"accuracy": 98.9, "epochs": 12, "seconds": 8.1},
        "timesteps": STEPS,
        "methods": [
            method("PMSM, calibrated only", "PMSM", calibrated, epochs=0, verify=EXACT, spread=1.4, **sizes),
            method("PMSM, trained", "PMSM", trained, epochs=6, verify=EXACT, spread=1.9, **sizes),
            method("QCFS-IF", "QCFS", unsigned, epochs=6, verify=None, spread=2.0, **sizes),
        ],
        "operators": [
            {"name": "conv", "kind": "Conv2d", "fate": "analog", "macs": 1000},
            {"name": "relu", "kind": "PMSM", "fate": "site", "macs": None},
        ],
        "raster": {"timesteps": 8, "sample": "first test sample",
                   "layers": [{"name": "relu", "neurons": 500, "counts": [[1, 0, -2, 0, 3, 0, 0, 1]] * 12}]
                   * sizes.get("sites", 3)},
        "environment": {"pmsm": "0.1.0", "torch": "2.9.0", "threads": 1, "seed": 0},
        "command": "pmsm demo --levels 9", "commit": "abc123", "date": "2025-11-02",
    }  # fmt: skip


@pytest.fixture
def record() -> dict:
    return run_record()


@pytest.fixture
def page(tmp_path):
    return lambda record: write_report(record, tmp_path / "report.html").read_text("utf-8")


class Elements(HTMLParser):
    """Every start tag with its attributes, and all text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_loads_nothing(record, page):
    html = page(record)
    elements = Elements(html)
    names = {tag for tag, _ in elements.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "image"}
    assert not [attrs for _, attrs in elements.tags if "src" in attrs or "srcset" in attrs]
    targets = [v for _, attrs in elements.tags for k, v in attrs.items() if k in ("href", "xlink:href")]
    assert [target for target in targets if not target.startswith("#")] == [
        "https://arxiv.org/abs/2508.14520"
    ]
    assert re.findall(r"@import|url\((?!#)", html) == []


def test_fifty_sites_of_33_levels_stay_under_2_mb(page):
    assert len(page(run_record(sites=50, levels=33)).encode()) < 2_000_000


def test_equal_records_give_equal_bytes(record, page):
    assert page(record) == page(json.loads(json.dumps(record)))


def test_the_record_is_left_as_it_was(record, page):
    before = copy.deepcopy(record)
    page(record)
    assert record == before


def test_the_answer_comes_first(record, page):
    text = Elements(page(record)).text
    assert "Converted, exactly." in text
    assert "max |SNN − QANN| 0 of 1,555,560 codes differ 0 accuracy, float → spiking 98.9 → 98.6 %" in text
    assert text.index("Converted, exactly.") < text.index("Accuracy and spikes")


@pytest.mark.parametrize(
    ("verify", "answer"),
    [
        ({"max_difference": 0.5, "codes": 10, "different": 3}, "Not exact."),
        ({"max_difference": 1e-7, "codes": 10, "different": 0}, "Not exact."),
        ({"max_difference": None, "codes": 10, "different": 0}, "Not exact."),
        ({"max_difference": 0.0, "codes": 0, "different": 0}, "Not known."),
        (None, "Converted, not compared."),
    ],
)
def test_the_page_claims_exactness_only_when_codes_were_compared_and_none_differs(
    record, page, verify, answer
):
    record["methods"] = [record["methods"][1] | {"verify": verify, "sites": None}]
    html = page(record)
    assert answer in html
    assert "Converted, exactly" not in html


def test_the_page_leads_with_the_first_trained_pmsm_and_compares_it_with_the_calibrated_one(record, page):
    text = Elements(page(record)).text
    assert "PMSM, trained, at T = 1: how often a neuron is silent" in text
    assert re.search(r"Training changed it by \+0\.\d\d bits per site on average", text)


def test_every_text_of_the_record_is_escaped(record, page):
    attack = "<script>alert(1)</script>"
    record |= {"title": attack, "command": attack, "commit": attack, "date": attack}
    record["environment"][attack] = attack
    record["methods"][1] |= {"name": attack + '" onload="', "method": "PMSM" + attack}
    record["methods"][1]["sites"][0]["name"] = attack
    html = page(record)
    elements = Elements(html)
    assert "script" not in {tag for tag, _ in elements.tags}
    assert not [attrs for _, attrs in elements.tags if "onload" in attrs]
    assert elements.text.count(attack) > 10


@pytest.mark.parametrize("missing", [math.nan, None])
def test_a_number_that_is_not_known_is_a_dash(record, page, missing):
    record["methods"] = [record["methods"][1] | {"qann_accuracy": missing, "sites": None}]
    record["methods"][0]["accuracy"][0] = missing
    text = Elements(page(record)).text
    assert "98.9 → \N{EN DASH} %" in text
    assert "nan" not in text.lower()


def test_optional_parts_may_be_missing(record, page):
    record["methods"] = record["methods"][:1]
    del record["methods"][0]["verify"], record["methods"][0]["sites"], record["commit"], record["date"]
    del record["methods"][0]["energy"], record["operators"], record["raster"]
    text = Elements(page(record)).text
    assert "What was converted" not in text
    assert "Spikes of one sample" not in text
    assert "nJ per sample" not in text
    assert "Spikes are not energy" in text
    assert "Entropy kept" not in text
    assert "Spike counts" not in text
    assert "Step and split" not in text


def test_energy_stands_beside_the_float_and_the_8_bit_network_with_its_interval(record, page):
    text = Elements(page(record)).text
    assert "PMSM, trained at T = 1: 375.4 ± 5.5 nJ per sample (mean of 64 samples" in text
    assert "float ANN 45nm-fp32 1,931.5 5.15 \N{EN DASH}" in text
    assert "int8 QANN 45nm-int8 96.5 0.26 never" in text
    assert "An estimate from counts, not a measurement of a chip." in text


def test_what_was_converted_is_told_by_fate_and_operator_by_operator(record, page):
    text = Elements(page(record)).text
    assert (
        "What became of the 2 operators of the network: spiking neurons 1 linear, on analog values 1" in text
    )
    assert "conv Conv2d analog 1,000 relu PMSM site \N{EN DASH}" in text


def test_sites_without_histograms_keep_their_table(record, page):
    for one in record["methods"]:
        for each in one["sites"]:
            del each["histogram"], each["silent"]
    text = Elements(page(record)).text
    assert "Spike counts" not in text
    assert "Step and split" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("format"), "'format' must be 'pmsm-run', got None"),
        (lambda r: r.update(version=2), "'version' must be 1, got 2"),
        (lambda r: r.pop("float"), "'float' is missing"),
        (lambda r: r["data"].pop("test"), "'data.test' is missing"),
        (lambda r: r["methods"][1].pop("accuracy"), "'methods[1].accuracy' is missing"),
        (lambda r: r["methods"][0]["sites"][2].pop("scale"), "'methods[0].sites[2].scale' is missing"),
        (lambda r: r["methods"][0]["accuracy"].pop(), "'methods[0].accuracy' holds 5 values for 6 timesteps"),
        (lambda r: r["float"].update(accuracy="98"), "'float.accuracy' must be a number, got '98'"),
        (lambda r: r["network"].update(sites=True), "'network.sites' must be a whole number, got True"),
        (lambda r: r.update(title=3), "'title' must be a text, got 3"),
        (lambda r: r.update(methods={}), "'methods' must be a list, got dict"),
        (lambda r: r.update(data=[]), "'data' must be an object, got list"),
        (
            lambda r: r["methods"][0]["sites"][0].update(histogram={"many": 1.0}),
            "'methods[0].sites[0].histogram' has the key 'many', which is no spike count",
        ),
        (lambda r: r.update(methods=[]), "'methods' is empty"),
        (lambda r: r["methods"][0]["energy"][0].pop("synops"), "'methods[0].energy[0].synops' is missing"),
        (lambda r: r["raster"]["layers"][0].update(counts=[["a"]]),
         "'raster.layers[0].counts[0][0]' must be a whole number, got 'a'"),
        (lambda r: r.update(timesteps=[4, 2]), "'timesteps' must be positive and ascending, got [4, 2]"),
    ],
)  # fmt: skip
def test_a_malformed_record_is_refused_by_the_key_at_fault(record, tmp_path, change, message):
    change(record)
    with pytest.raises(PMSMError, match=re.escape(message)) as caught:
        write_report(record, tmp_path / "report.html")
    assert "pmsm demo" in str(caught.value)
    with pytest.raises(PMSMError, match=re.escape(message)):
        summary(record)
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_is_no_object_is_refused(tmp_path):
    with pytest.raises(PMSMError, match="it must be an object, got list"):
        write_report([], tmp_path / "report.html")  # type: ignore[arg-type]


def test_the_summary_reads_as_it_did(record):
    record["methods"][2]["accuracy"][5] = math.nan
    record["methods"][2]["name"] = "[red]QCFS-IF"
    console = Console(width=110, file=io.StringIO(), record=True, color_system=None)
    console.print(summary(record))
    lines = [line.rstrip() for line in console.export_text().strip().splitlines()]
    assert lines == SUMMARY.strip().splitlines()


SUMMARY = """
accuracy (%)

  method                  (Q)ANN    T=1    T=2    T=4    T=8   T=16   T=32
 ──────────────────────────────────────────────────────────────────────────
  float network             98.9
  PMSM, calibrated only     97.2   97.2   97.8   98.3   98.6   98.9   98.9
  PMSM, trained             98.6   98.6   98.6   98.9   98.9   98.6   98.9
  [red]QCFS-IF              61.4   61.4   81.1   93.3   96.7   97.5      –

spikes per neuron (sum of |k| over the T steps)

  method                   T=1    T=2    T=4    T=8    T=16    T=32
 ───────────────────────────────────────────────────────────────────
  PMSM, calibrated only   0.75   1.50   3.00   6.00   12.00   24.00
  PMSM, trained           0.75   1.50   3.00   6.00   12.00   24.00
  [red]QCFS-IF            0.75   1.50   3.00   6.00   12.00   24.00
"""


# ----------------------------------------------------------------------------------------------------------
# In a browser
# ----------------------------------------------------------------------------------------------------------

BROWSER = which("chromium") or which("chromium-browser") or which("google-chrome")
# The page in a frame of a phone's width: a headless window cannot be that narrow.
FRAME = """<body><iframe id="page" src="report.html" width="{width}" height="800"></iframe><p id="told"></p>
<script>
page.onload = () => {{
  const inside = page.contentDocument, root = inside.documentElement;
  const style = page.contentWindow.getComputedStyle(inside.body);
  const shown = [...inside.querySelectorAll("figure svg")].filter(s => s.getBoundingClientRect().width > 0);
  told.textContent = "TOLD" + JSON.stringify({{
    overflow: root.scrollWidth - root.clientWidth, paper: style.backgroundColor, ink: style.color,
    drawings: shown.length, narrow: shown.every(s => s.closest(".narrow")),
  }}) + "END";
}};
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="needs a Chromium")
@pytest.mark.parametrize("width, dark", [(390, False), (390, True), (1000, False), (1000, True)])
def test_a_browser_shows_the_page_without_a_complaint(record, tmp_path, width, dark):
    write_report(record, tmp_path / "report.html")
    (tmp_path / "frame.html").write_text(FRAME.format(width=width))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom",
               "--enable-logging=stderr", "--window-size=1200,900", "--virtual-time-budget=3000",
               f"--user-data-dir={tmp_path / 'profile'}",
               f"--blink-settings=preferredColorScheme={0 if dark else 1}"]  # fmt: skip
    done = subprocess.run(
        [str(BROWSER), *options, (tmp_path / "frame.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    told = re.search("TOLD(.*)END", done.stdout)
    assert told is not None, done.stderr
    found = json.loads(told[1])
    assert "CONSOLE" not in done.stderr
    assert found["overflow"] <= 0  # nothing wider than the screen, tables scroll by themselves
    assert found["drawings"] == 5
    assert found["narrow"] == (width < 640)
    light, black = "rgb(255, 255, 255)", "rgb(20, 23, 27)"
    assert found["paper"] == (black if dark else light)
    assert found["ink"] != found["paper"]
