import pytest
import torch
from torch import nn

from pmsm.ann.evaluate import evaluate
from pmsm.errors import TrainingError


def weights(ann):
    return torch.cat([value.double().flatten() for value in ann.state_dict().values()])


def test_evaluate_counts_and_restores_every_mode(ann, batches):
    ann.train()
    ann[1].eval()
    before, modes = weights(ann), [module.training for module in ann.modules()]
    accuracy = evaluate(ann, iter(batches))
    assert [module.training for module in ann.modules()] == modes
    assert torch.equal(weights(ann), before)
    ann.eval()
    assert accuracy == 100 * sum((ann(x).argmax(1) == y).sum().item() for x, y in batches) / 48


def test_evaluate_refuses_nothing_and_nan(ann, batches):
    with pytest.raises(TrainingError, match="evaluate got no batch"):
        evaluate(ann, [])
    with pytest.raises(TrainingError, match="batches is None, which gives no batches"):
        evaluate(ann, None)
    ann[1].running_var.fill_(float("nan"))
    with pytest.raises(TrainingError, match="answers batch 0 with NaN"):
        evaluate(ann, batches)


def test_the_likeliest_class_of_soft_labels_counts(ann, batches):
    soft = [(x, (nn.functional.one_hot(y, 4) * 0.7 + 0.075).float()) for x, y in batches]
    assert evaluate(ann, soft) == evaluate(ann, batches)
