import pytest
import torch
from torch import nn

from pmsm.ann.optimizer import build_optimizer, layer_shares
from pmsm.ann.schedule import Settings
from pmsm.ann.train import train
from pmsm.errors import TrainingError

SETTINGS = {
    "epochs": 1, "batches": 1, "lr": 0.5, "optimizer": "sgd", "weight_decay": 0.1, "momentum": 0.0,
    "label_smoothing": 0.0, "warmup_epochs": 0.0, "seed": 0, "precision": "fp32", "channels_last": False,
    "compile": False,
}  # fmt: skip


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 4, bias=False)
        self.blocks = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
        self.head = nn.Linear(4, 2, bias=False)

    def forward(self, x):
        return self.head(self.blocks(self.embed(x)))


def test_one_share_makes_the_two_groups_that_decay_and_do_not():
    groups = build_optimizer(Tower(), Settings(**SETTINGS)).param_groups
    assert [(len(g["params"]), g["weight_decay"], g["share"]) for g in groups] == [
        (4, 0.1, 1.0),
        (0, 0.0, 1.0),
    ]


def test_each_block_learns_at_its_share_of_the_rate():
    tower, start, x, y = Tower(), Tower(), torch.randn(2, 3), torch.tensor([0, 1])
    start.load_state_dict(tower.state_dict())
    nn.functional.cross_entropy(start(x), y).backward()
    train(
        tower, [(x, y)], epochs=1, lr=0.5, momentum=0.0, weight_decay=0.0, precision="fp32", layer_decay=0.5
    )
    for name, share in [("embed", 1 / 8), ("blocks.0", 1 / 4), ("blocks.1", 1 / 2), ("head", 1)]:
        before = start.get_submodule(name).weight
        assert torch.equal(tower.get_submodule(name).weight, before - 0.5 * share * before.grad)


def test_names_of_other_libraries_tell_their_blocks():
    names = ["bert.embeddings.w", "bert.encoder.layer.0.w", "bert.encoder.layer.1.w", "classifier.w"]
    assert list(layer_shares(names, 0.1).values()) == pytest.approx([1e-3, 1e-2, 1e-1, 1])
    names = ["encoder.layers.0.w", "norm.w"]
    assert list(layer_shares(names, 0.5).values()) == [0.5, 1.0]


def test_a_network_without_blocks_is_refused():
    with pytest.raises(
        TrainingError, match=r"layer_decay=0\.5 needs numbered blocks.*'weight'.*layer_decay=1"
    ):
        train(nn.Linear(3, 2), [(torch.zeros(1, 3), torch.tensor([0]))], layer_decay=0.5)
