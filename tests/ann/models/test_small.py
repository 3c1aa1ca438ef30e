"""The small residual network."""

import pytest
import torch
from torch.nn import functional as F

from pmsm.ann.data import Batches, digits
from pmsm.ann.models import SmallResNet


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)], ids=str)
def test_every_size_in_use_gives_one_score_for_each_class(shape):
    model = SmallResNet(shape[0], 7).eval()
    assert model(torch.zeros(2, *shape)).shape == (2, 7)


def test_it_learns_the_digits_within_seconds():
    pytest.importorskip("sklearn")
    train, test = digits()
    model, batches = SmallResNet(1, 10), Batches(train, 64, shuffle=True, drop_last=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10 * len(batches))
    for epoch in range(10):
        batches.set_epoch(epoch)
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        correct = sum(int((model(x).argmax(1) == y).sum()) for x, y in Batches(test, 355))
    assert correct / len(test) >= 0.97  # 0.989 when written; four images of slack for other machines' sums
