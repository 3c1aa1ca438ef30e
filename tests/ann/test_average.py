import copy

import pytest
import torch
from torch import nn

from pmsm.ann.average import Average
from pmsm.ann.train import evaluate, train


def test_the_average_is_the_equation_of_its_decay():
    line = nn.Linear(1, 1, bias=False)
    average, expected = Average(line, 0.5), line.weight.detach().clone()
    for updates, value in enumerate([1.0, -2.0, 4.0]):
        nn.init.constant_(line.weight, value)
        average.update(updates)
        decay = min(0.5, (1 + updates) / (10 + updates))
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(average.averages[0], expected)  # lerp rounds once more


def test_statistics_of_batchnorm_are_averaged_and_other_buffers_are_not(ann):
    ann.register_buffer("mask", torch.full((2,), -torch.inf))
    assert Average(ann, 0.9).names == [
        "0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias", "1.running_mean", "1.running_var"
    ]  # fmt: skip


def test_inside_the_network_holds_the_average_and_outside_its_own(ann):
    average, start = Average(ann, 0.9), ann[4].weight.detach().clone()
    nn.init.zeros_(ann[4].weight)
    with average.in_place():
        assert torch.equal(ann[4].weight, start)
    assert not ann[4].weight.any()


def test_what_is_set_anew_starts_its_average_anew(ann):
    average, start = Average(ann, 0.9), ann[0].weight.detach().clone()
    with average.restarting():
        nn.init.ones_(ann[4].weight)
    assert torch.equal(average.tensors()["4.weight"], torch.ones(4, 128))
    assert torch.equal(average.tensors()["0.weight"], start)


def test_the_average_is_validated_and_kept_and_changes_nothing_of_what_is_learned(ann, batches):
    raw = copy.deepcopy(ann)
    history = train(ann, batches, batches, epochs=2, lr=0.05, precision="fp32", ema=0.9)
    plain = train(raw, batches, epochs=2, lr=0.05, precision="fp32")
    assert [row.loss for row in history.epochs] == [row.loss for row in plain.epochs]
    assert not torch.equal(ann[4].weight, raw[4].weight)
    assert history.accuracy == evaluate(ann, batches)


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_average_follows_weights_whose_memory_format_changes(ann, channels_last):
    average = Average(ann, 0.5)
    if channels_last:
        ann.to(memory_format=torch.channels_last)
    nn.init.ones_(ann[0].weight)
    average.update(10**6)
    ann.to(memory_format=torch.contiguous_format)
    assert not torch.equal(average.tensors()["0.weight"], ann[0].weight)
    for _ in range(60):
        average.update(10**6)
    assert torch.equal(average.tensors()["0.weight"], torch.ones(8, 3, 3, 3))
