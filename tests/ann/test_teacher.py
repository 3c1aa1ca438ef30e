import copy
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pmsm.ann.teacher import distillation, fingerprint
from pmsm.ann.train import train
from pmsm.errors import CheckpointError, TrainingError

DRAW = torch.Generator().manual_seed(0)
X, Y = torch.randn(32, 12, generator=DRAW), torch.randint(0, 4, (32,), generator=DRAW)
BATCHES = [(X[:16], Y[:16]), (X[16:], Y[16:])]


def network(seed=0, classes=4):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(12, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, classes))


def trained(**settings):
    ann = network()
    history = train(ann, BATCHES, **{"epochs": 2, "lr": 0.05, "precision": "fp32"} | settings)
    return ann, history


def test_the_divergence_is_that_of_the_softened_answers():
    student, teacher = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    expected = 9 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(distillation(student, teacher, 3.0), expected)


def test_the_loss_is_shared_between_teacher_and_labels():
    teacher, ann = network(seed=1).eval(), network().eval()
    ann[1].p = 0.0
    logits = ann(X)
    soft, hard = distillation(logits, teacher(X), 2.0), F.cross_entropy(logits, Y)
    history = train(ann, [(X, Y)], epochs=1, lr=0.05, precision="fp32",
                    teacher=teacher, distill=0.25, temperature=2.0)  # fmt: skip
    assert history.epochs[0].loss == pytest.approx((0.25 * soft + 0.75 * hard).item(), rel=1e-6)


def test_the_teacher_answers_in_eval_mode_and_stays_as_it_was():
    teacher = network(seed=1).train()
    before = copy.deepcopy(teacher.state_dict())
    first, _ = trained(teacher=teacher)
    assert all(module.training for module in teacher.modules())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    again, _ = trained(teacher=teacher.eval())
    assert torch.equal(first[3].weight, again[3].weight)


def test_a_student_alone_with_its_teacher_learns_what_it_says():
    teacher, ann = network(seed=1).eval(), network()
    ann[1].p = 0.0
    train(ann, BATCHES, epochs=200, lr=0.2, weight_decay=0.0, precision="fp32", teacher=teacher, distill=1.0)
    assert (ann(X).argmax(1) == teacher(X).argmax(1)).float().mean() > 0.9


def test_one_changed_bit_of_the_teacher_changes_its_fingerprint():
    teacher = network()
    told = fingerprint(teacher)
    assert re.fullmatch("[0-9a-f]{16}", told)
    assert fingerprint(copy.deepcopy(teacher)) == told
    with torch.no_grad():
        teacher[3].bias[0] = torch.nextafter(teacher[3].bias[0], torch.tensor(9.0))
    assert fingerprint(teacher) != told


def test_another_teacher_is_refused_on_resuming(tmp_path):
    path = tmp_path / "run.ckpt"
    trained(teacher=network(seed=1), checkpoint=path)
    with pytest.raises(CheckpointError, match=r"teacher='[0-9a-f]{16}' there and '[0-9a-f]{16}' here"):
        trained(teacher=network(seed=2), checkpoint=path, resume=True)
    with pytest.raises(CheckpointError, match=r"distill=0\.9 there and 0\.5 here"):
        trained(teacher=network(seed=1), distill=0.5, checkpoint=path, resume=True)


@pytest.mark.parametrize(
    "teacher, text",
    [
        (nn.ReLU(), "teacher: ReLU has no parameters"),
        ("ann", "teacher: the network is a str"),
        (network(classes=5), r"the teacher answers batch 0 with \(16, 5\), the network with \(16, 4\)"),
        (nn.Linear(7, 4), "teacher: the network cannot take batch 0"),
        (nn.Linear(12, 4, device="meta"), "teacher: .* meta device"),
    ],
    ids=["no parameters", "no network", "classes", "shape", "no values"],
)
def test_what_cannot_teach_is_refused(teacher, text):
    with pytest.raises(TrainingError, match=text):
        trained(teacher=teacher)


def test_a_teacher_that_is_the_student_is_refused():
    ann = network()
    with pytest.raises(TrainingError, match=r"shares parameters .*copy\.deepcopy"):
        train(ann, BATCHES, teacher=ann)


@pytest.mark.parametrize("alone", [{"distill": 0.5}, {"temperature": 2.0}])
def test_distilling_needs_a_teacher(alone):
    with pytest.raises(TrainingError, match="teacher=ann"):
        trained(**alone)
