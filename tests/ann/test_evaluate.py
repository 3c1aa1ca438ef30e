import copy

import pytest
import torch
from torch import nn

from pmsm.ann.evaluate import evaluate
from pmsm.errors import TrainingError

DRAW = torch.Generator().manual_seed(0)
X, Y = torch.randn(48, 3, 6, 6, generator=DRAW), torch.randint(0, 4, (48,), generator=DRAW)
BATCHES = [(X[i : i + 16], Y[i : i + 16]) for i in (0, 16, 32)]


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4)
        )


def weights(ann):
    return torch.cat([value.double().flatten() for value in ann.state_dict().values()])


def test_evaluate_counts_and_restores_every_mode():
    ann = network()
    ann.train()
    ann[1].eval()
    before, modes = weights(ann), [module.training for module in ann.modules()]
    accuracy = evaluate(ann, iter(BATCHES))
    assert [module.training for module in ann.modules()] == modes
    assert torch.equal(weights(ann), before)
    assert accuracy == 100 * (copy.deepcopy(ann).eval()(X).argmax(1) == Y).sum().item() / 48


def test_evaluate_refuses_nothing_and_nan():
    with pytest.raises(TrainingError, match="evaluate got no batch"):
        evaluate(network(), [])
    with pytest.raises(TrainingError, match="batches is None, which gives no batches"):
        evaluate(network(), None)
    ann = network()
    ann[1].running_var.fill_(float("nan"))
    with pytest.raises(TrainingError, match="answers batch 0 with NaN"):
        evaluate(ann, BATCHES)


def test_the_likeliest_class_of_soft_labels_counts():
    soft = [(x, (nn.functional.one_hot(y, 4) * 0.7 + 0.075).float()) for x, y in BATCHES]
    assert evaluate(network(), soft) == evaluate(network(), BATCHES)
