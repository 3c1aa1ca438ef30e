"""The Hugging Face Hub without a network: a folder, its card, and what cannot be reached."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from torch import nn

import pmsm
from pmsm.errors import CheckpointError
from pmsm.methods import PMSM
from pmsm.study.hub import from_pretrained, push_to_hub, save_pretrained

huggingface_hub = pytest.importorskip("huggingface_hub", reason="needs the extra hub")


@pytest.fixture
def network():
    """A spiking network, and a batch for it."""
    x = torch.randn(4, 6)
    ann = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    return pmsm.convert(pmsm.calibrate(pmsm.quantize(ann, PMSM(levels=5), x), x)), x


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's API as an upload asks for; keeps the files of the commit."""

    received: dict[str, bytes]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = f"http://127.0.0.1:{self.server.server_address[1]}/user/name"
        answer = {"url": address, "errors": [], "warnings": []}
        if "/preupload/" in self.path:
            plain = {"uploadMode": "regular", "shouldIgnore": False}
            answer = {"files": [{"path": file["path"], **plain} for file in json.loads(body)["files"]]}
        elif "/commit/" in self.path:
            entries = [json.loads(line) for line in body.splitlines()]
            files = [entry["value"] for entry in entries if entry["key"] == "file"]
            self.received |= {file["path"]: base64.b64decode(file["content"]) for file in files}
            answer = {"commitUrl": f"{address}/commit/1", "commitOid": "1", "success": True}
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[tuple[str, dict[str, bytes]]]:
    """The address of a Hub on this machine, and the files that it is sent."""
    handler = type("Handler", (Hub,), {"received": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler.received  # pyright: ignore[reportAttributeAccessIssue]
    server.shutdown()
    server.server_close()


def test_a_folder_gives_back_the_network_bit_for_bit(network, tmp_path):
    snn, x = network
    save_pretrained(snn, tmp_path)
    again = from_pretrained(tmp_path)
    assert torch.equal(pmsm.simulate(again, x, 4).outputs, pmsm.simulate(snn, x, 4).outputs)
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "config.json", "network.safetensors"}


def test_the_card_holds_the_measured_table_and_what_the_hub_wants_to_know(network, tmp_path):
    snn, x = network
    measured = [{"T": 1, "accuracy (%)": 97.5}, {"T": 4, "accuracy (%)": 98.0}]
    save_pretrained(snn, tmp_path, measured=measured, energy=pmsm.measure(snn, x))
    card = huggingface_hub.ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "pmsm"
    assert "spiking-neural-network" in card.data.tags
    assert "| T | accuracy (%) |\n|---|---|\n| 1 | 97.5 |\n| 4 | 98.0 |" in card.text
    assert "SOPs" in card.text
    assert "PMSM(levels=5)" in card.text


def test_a_damaged_file_of_a_folder_is_refused(network, tmp_path):
    save_pretrained(network[0], tmp_path)
    (tmp_path / "network.safetensors").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match="cannot load"):
        from_pretrained(tmp_path)


def test_without_a_network_the_hub_says_so_itself(network):
    with pytest.raises(huggingface_hub.errors.OfflineModeIsEnabled):
        push_to_hub(network[0], "user/name")
    with pytest.raises(huggingface_hub.errors.LocalEntryNotFoundError):
        from_pretrained("user/name")


def test_an_upload_sends_the_file_and_its_card(network, hub, tmp_path):
    """In a process of its own: huggingface_hub reads the address of the Hub when it is imported."""
    snn, x = network
    address, received = hub
    pmsm.save(snn, tmp_path / "net")
    code = """
import sys, pmsm
from pmsm.study.hub import push_to_hub
print(push_to_hub(pmsm.load(sys.argv[1]), "user/name", token=False, measured=[{"T": 1, "%": 97.5}]))
"""
    environment = os.environ | {
        "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "net")], capture_output=True, text=True, env=environment,
        check=False,
    )  # fmt: skip
    assert done.stdout.strip() == f"{address}/user/name/commit/1", done.stderr
    assert b"| 1 | 97.5 |" in received["README.md"]
    (tmp_path / "received").write_bytes(received["network.safetensors"])
    again = pmsm.load(tmp_path / "received")
    assert torch.equal(pmsm.simulate(again, x, 4).outputs, pmsm.simulate(snn, x, 4).outputs)
