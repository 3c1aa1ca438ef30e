"""The Hugging Face Hub without a network: a folder, its card, and what cannot be reached."""

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
