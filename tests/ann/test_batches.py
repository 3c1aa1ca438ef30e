import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pmsm.ann.batches import check_finite, check_network, check_reiterable, count_batches, logits_of, place
from pmsm.errors import TrainingError

CPU = torch.device("cpu")
X, Y = torch.zeros(4, 3), torch.tensor([0, 1, 2, 1])


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield X[0], 0


def test_batches_are_counted_before_they_are_read():
    assert count_batches([(X, Y)] * 3, "train") == 3
    assert count_batches(DataLoader(TensorDataset(X, Y), batch_size=3), "train") == 2


@pytest.mark.parametrize("one_shot", [iter([(X, Y)]), zip([X], [Y], strict=True), ((X, Y) for _ in range(1))])
def test_a_one_shot_iterator_is_refused_with_the_remedy(one_shot):
    with pytest.raises(TrainingError, match=r"valid is a one-shot .* list\(valid\)"):
        check_reiterable(one_shot, "valid")


def test_batches_without_a_length_are_refused():
    with pytest.raises(TrainingError, match=r"train \(DataLoader\) has no len\(\)"):
        count_batches(DataLoader(Endless(), batch_size=2), "train")


def test_an_empty_set_is_refused():
    with pytest.raises(TrainingError, match="train is empty"):
        count_batches([], "train")


@pytest.mark.parametrize(
    "batch", [X, (X,), {"x": X, "y": Y}, (X, [0, 1, 2, 1])], ids=["x", "(x,)", "dict", "list"]
)
def test_what_is_no_pair_of_tensors_is_refused(batch):
    with pytest.raises(TrainingError, match=r"batch 7 is a .*, not a pair of tensors \(x, y\)"):
        place(batch, 7, CPU)


@pytest.mark.parametrize(
    "y", [Y[:3], Y.float(), nn.functional.one_hot(Y), Y[:0]], ids=["short", "float", "2d", "none"]
)
def test_labels_that_are_no_class_indices_are_refused(y):
    with pytest.raises(TrainingError, match=r"batch 7 has x \(4, 3\) and y .*y\.argmax\(1\)"):
        place((X, y), 7, CPU)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_batch_with_a_bad_number_is_named(bad):
    x = X.clone()
    x[2, 1] = bad
    with pytest.raises(TrainingError, match="batch 7 holds NaN or infinity in x"):
        place((x, Y), 7, CPU)


def test_bytes_pass_as_inputs_and_as_labels():
    x, y = place((X.to(torch.uint8), Y.to(torch.uint8)), 0, CPU)
    assert x.dtype == torch.uint8
    assert y.dtype == torch.int64


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_outside_the_logits_is_named(label):
    y = torch.tensor([0, 1, 2, label])
    with pytest.raises(TrainingError, match=r"batch 7 has labels from .*, but the network has 3 logits"):
        logits_of(nn.Linear(3, 3), X, y, 7)


def test_a_wrong_shape_is_told_with_the_words_of_torch():
    with pytest.raises(TrainingError, match=r"batch 7 of shape \(4, 3\) and torch.float32: mat1 and mat2"):
        logits_of(nn.Linear(5, 3), X, Y, 7)


def test_a_batch_of_one_that_batchnorm_refuses_is_told():
    with pytest.raises(TrainingError, match="more than 1 value per channel"):
        logits_of(nn.BatchNorm1d(3), X[:1], Y[:1], 7)


@pytest.mark.parametrize("network", [nn.Identity(), nn.LSTM(3, 3)], ids=["[N, C, L]", "tuple"])
def test_an_answer_that_is_no_logits_is_refused(network):
    with pytest.raises(TrainingError, match=r"needed are logits \[N, classes\]"):
        logits_of(network, X[:, :, None].expand(4, 3, 3), Y, 7)


def test_a_network_without_parameters_is_refused():
    with pytest.raises(TrainingError, match="Flatten has no parameters"):
        check_network(nn.Flatten())


def test_a_bad_parameter_is_named():
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with torch.no_grad():
        network[1].bias[0] = float("inf")
    with pytest.raises(TrainingError, match=r"'1\.bias' holds NaN or infinity before training. Load"):
        check_finite(network, "before training", "Load whole weights.")
