"""Soft labels, accumulation, clipping, changes between epochs; resuming with all of them at once."""

import pytest
import torch
from torch import nn

import pmsm
from pmsm.ann.train import evaluate, train
from pmsm.errors import TrainingError

DRAW = torch.Generator().manual_seed(0)
X, Y = torch.randn(48, 3, 6, 6, generator=DRAW), torch.randint(0, 4, (48,), generator=DRAW)
BATCHES = [(X[i : i + 16], Y[i : i + 16]) for i in (0, 16, 32)]
SOFT = [(x, nn.functional.one_hot(y, 4).float()) for x, y in BATCHES]


def network(norm=True, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 36, 4))


def trained(batches=BATCHES, ann=None, **settings):
    ann = network() if ann is None else ann
    history = train(ann, batches, **{"epochs": 3, "lr": 0.05, "precision": "fp32"} | settings)
    return ann, history


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_soft_labels_that_are_certain_teach_what_the_classes_do():
    (soft, told), (hard, known) = trained(SOFT), trained()
    # Probabilities are multiplied and summed where class indices are looked up: float32 roundings.
    torch.testing.assert_close(soft[4].weight, hard[4].weight, rtol=1e-5, atol=1e-6)
    assert [row.accuracy for row in told.epochs] == [row.accuracy for row in known.epochs]
    assert evaluate(soft, SOFT) == evaluate(soft, BATCHES)


@pytest.mark.parametrize(
    "y, text",
    [
        (SOFT[0][1] * 2, r"rows are not probabilities.*sum to 1.*softmax\(1\)"),
        (SOFT[0][1] - 0.25, r"rows are not probabilities"),
        (
            SOFT[0][1][:, :3].softmax(1),
            r"soft labels of 3 classes, but the network has 4 logits.*num_classes=3",
        ),
        (torch.full((16, 4), torch.nan), r"rows are not probabilities"),
    ],
    ids=["sum", "negative", "classes", "nan"],
)
def test_soft_labels_that_cannot_be_meant_are_refused(y, text):
    with pytest.raises(TrainingError, match=text):
        trained([(X[:16], y)])


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_batches_learn_as_one_of_their_size(parts):
    small = [(x[i::parts], y[i::parts]) for x, y in BATCHES for i in range(parts)]
    whole, known = trained(ann=network(norm=False))
    ann, told = trained(small, network(norm=False), accumulate=parts)
    # The sum over a batch is taken in parts: nine updates keep within a few float32 roundings.
    torch.testing.assert_close(ann[4].weight, whole[4].weight, rtol=1e-4, atol=1e-6)
    assert [row.lr for row in told.epochs] == [row.lr for row in known.epochs]


def test_the_last_update_of_an_epoch_takes_the_batches_that_are_left():
    ann, _ = trained(ann=network(norm=False), accumulate=2, epochs=1, momentum=0.0, weight_decay=0.0, lr=0.1)
    expected = network(norm=False)
    for group, rate in [(BATCHES[:2], 0.1), (BATCHES[2:], 0.05)]:
        expected.zero_grad()
        for x, y in group:
            (nn.functional.cross_entropy(expected(x), y) / len(group)).backward()
        with torch.no_grad():
            for parameter in expected.parameters():
                parameter -= rate * parameter.grad
    torch.testing.assert_close(ann[4].weight, expected[4].weight, rtol=1e-5, atol=1e-7)


def test_fewer_batches_than_promised_are_not_lost():
    class Promising(list):
        def __len__(self):
            return 4

    ann, _ = trained(Promising(BATCHES), accumulate=4, epochs=1)
    assert not same(ann, network())


def test_a_clipped_step_is_no_longer_than_the_rate_allows():
    start = network(norm=False)
    plain = {"epochs": 1, "momentum": 0.0, "weight_decay": 0.0, "lr": 1.0}
    ann, _ = trained(BATCHES[:1], network(norm=False), clip_norm=0.01, **plain)
    step = [a - b for a, b in zip(ann.parameters(), start.parameters(), strict=True)]
    length = torch.cat([part.detach().flatten() for part in step]).norm()
    # Differences of weights of size 0.1 round at 1e-8, and torch divides by norm + 1e-6.
    assert length == pytest.approx(0.01, rel=1e-3)
    unclipped, _ = trained(BATCHES[:1], network(norm=False), clip_norm=1e9, **plain)
    assert same(unclipped, trained(BATCHES[:1], network(norm=False), **plain)[0])


def test_on_epoch_is_told_each_epoch_and_the_last_finished_one_before_resuming(tmp_path):
    seen = []

    def record(epoch, ann):
        seen.append(epoch)
        if seen == [0, 1, 2]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(checkpoint=tmp_path / "run.ckpt", on_epoch=record)
    trained(checkpoint=tmp_path / "run.ckpt", resume=True, on_epoch=record)
    assert seen == [0, 1, 2, 1, 2]


def test_parameters_may_change_in_place_between_epochs_and_not_be_exchanged():
    def exchange(epoch, ann):
        ann[4] = nn.Linear(8 * 36, 4)

    with pytest.raises(TrainingError, match=r"on_epoch exchanged parameters.*before epoch 1.*copy_"):
        trained(on_epoch=exchange)


def test_what_on_epoch_draws_changes_nothing_of_what_training_draws():
    def shuffled():
        data = torch.utils.data.TensorDataset(X, Y)
        return torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)

    drawn, _ = trained(shuffled(), on_epoch=lambda epoch, ann: torch.randn(3))
    assert same(drawn, trained(shuffled())[0])


def fewer_levels(epoch, qann):
    """Nine levels, then five."""
    for module in qann.modules():
        if isinstance(module, pmsm.qann.quantize.Quantizer):
            module.method = pmsm.PMSM(levels=9 if epoch < 1 else 5)
    if epoch < 2:
        pmsm.calibrate(qann, BATCHES)


def quantized():
    return pmsm.calibrate(pmsm.quantize(network(), pmsm.PMSM(9), X[:2]), BATCHES)


@pytest.mark.parametrize("stop", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_everything_at_once_resumes_bit_for_bit(tmp_path, precision, stop):
    settings = {
        "accumulate": 2, "clip_norm": 1.0, "ema": 0.9, "teacher": network(seed=1), "precision": precision,
        "valid": BATCHES, "on_epoch": fewer_levels,
    }  # fmt: skip

    def interrupted(epoch, qann):
        if epoch == stop:
            raise KeyboardInterrupt
        fewer_levels(epoch, qann)

    whole, history = trained(SOFT, quantized(), **settings)
    path = tmp_path / "run.ckpt"
    with pytest.raises(KeyboardInterrupt):
        trained(SOFT, quantized(), checkpoint=path, **settings | {"on_epoch": interrupted})
    resumed, again = trained(SOFT, quantized(), checkpoint=path, resume=True, **settings)
    assert same(resumed, whole)
    assert [(row.loss, row.valid_accuracy) for row in again.epochs] == [
        (row.loss, row.valid_accuracy) for row in history.epochs
    ]
    kept = quantized()
    fewer_levels(1, kept)
    pmsm.ann.checkpoint.load_weights(path, kept)
    assert same(kept, whole)
