import copy
import functools
import importlib

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pmsm.ann.train import train
from pmsm.errors import TrainingError

torch.set_num_threads(1)
DRAW = torch.Generator().manual_seed(0)
X, Y = torch.randn(48, 3, 6, 6, generator=DRAW), torch.randint(0, 4, (48,), generator=DRAW)
BATCHES = [(X[i : i + 16], Y[i : i + 16]) for i in (0, 16, 32)]


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        features = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
        return nn.Sequential(*features, nn.Flatten(), nn.Dropout(0.2), nn.Linear(8 * 36, 4))


# torch.compile imports parts of torch that still use the deprecated torch.jit.
torch_uses_jit = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


def weights(ann):
    return torch.cat([value.double().flatten() for value in ann.state_dict().values()])


def trained(batches=BATCHES, ann=None, **settings):
    ann = network() if ann is None else ann
    train(ann, batches, **{"epochs": 2, "lr": 0.05, "precision": "fp32"} | settings)
    return weights(ann)


@pytest.mark.parametrize("optimizer, lr", [("sgd", 0.05), ("adamw", 0.005)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loop_learns_labels_by_heart(optimizer, lr, precision):
    ann = network()
    history = train(ann, BATCHES, BATCHES, epochs=25, lr=lr, optimizer=optimizer, precision=precision)
    assert history.accuracy == 100.0
    assert history.epochs[-1].loss < history.epochs[0].loss
    assert not any(module.training for module in ann.modules())


def test_the_seed_decides_every_draw_and_the_callers_stay_untouched():
    loader = DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = trained(loader)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(trained(loader), first)
    assert not torch.equal(trained(loader, seed=1), first)


def test_validation_does_not_change_what_is_learned():
    valid = DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True)  # draws from the global generator
    assert torch.equal(trained(valid=valid), trained())


def test_one_sgd_step_is_the_equation_and_exempts_what_a_module_names():
    class Line(nn.Module):
        no_decay = ("rho",)

        def __init__(self):
            super().__init__()
            self.weight, self.rho = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))

        def forward(self, x):
            return x * (self.weight + self.rho)

    line, x, y = Line(), torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([0, 1])
    expected = Line()
    nn.functional.cross_entropy(expected(x), y).backward()
    train(line, [(x, y)], epochs=1, lr=0.25, momentum=0.0, weight_decay=0.5, precision="fp32")
    assert torch.equal(line.weight, 1 - 0.25 * (expected.weight.grad + 0.5))
    assert torch.equal(line.rho, 1 - 0.25 * expected.rho.grad)


def test_frozen_parameters_stay_and_a_wholly_frozen_network_is_refused():
    ann = network()
    ann[0].requires_grad_(False)
    before = ann[0].weight.clone()
    trained(ann=ann)
    assert torch.equal(ann[0].weight, before)
    with pytest.raises(TrainingError, match=r"network\.requires_grad_\(True\)"):
        trained(ann=network().requires_grad_(False))


def test_channels_last_leaves_contiguous_weights():
    ann = network()
    trained(ann=ann, channels_last=True, precision="bf16")
    assert all(parameter.is_contiguous() for parameter in ann.parameters())
    # Sums in another order: 6 steps of lr 0.05 keep them within a few float32 roundings of the sums.
    torch.testing.assert_close(trained(channels_last=True), trained(), rtol=1e-4, atol=1e-4)


def test_set_epoch_is_told_the_epoch():
    class Shards(list):
        seen = ()

        def set_epoch(self, epoch):
            self.seen += (epoch,)

    shards = Shards(BATCHES)
    trained(shards, epochs=3)
    assert shards.seen == (0, 1, 2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_network_trains_inside_no_grad_and_inside_autocast_as_outside(precision):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        inside = trained(precision=precision)
    assert torch.equal(inside, trained(precision=precision))


def test_a_network_trains_inside_inference_mode_as_outside_but_is_not_built_there():
    ann = network()
    with torch.inference_mode():
        train(ann, BATCHES, epochs=2, lr=0.05, precision="fp32")
    assert torch.equal(weights(ann), trained())
    with torch.inference_mode():
        ann = network()
    with pytest.raises(TrainingError, match=r"built inside torch\.inference_mode\(\).*outside"):
        trained(ann=ann)


def test_one_class_is_refused():
    with pytest.raises(TrainingError, match=r"every label is 0: with one class there is nothing to learn"):
        trained([(x, torch.zeros_like(y)) for x, y in BATCHES])


def test_a_length_that_promises_too_much_is_refused():
    class Hollow:
        def __len__(self):
            return 3

        def __iter__(self):
            return iter(())

    with pytest.raises(TrainingError, match="train gave no batch in epoch 1"):
        trained(Hollow())


def test_divergence_names_the_place_and_leaves_finite_weights():
    ann = network()
    ann[5].weight.data *= 1e38
    with pytest.raises(TrainingError, match=r"the loss is .* in epoch 1, batch 0, .* lower lr \(now 0.05\)"):
        trained(ann=ann)
    assert all(parameter.isfinite().all() for parameter in ann.parameters())


def test_weights_that_overflow_in_a_step_are_named_with_the_remedy():
    with pytest.raises(
        TrainingError, match=r"parameter '.*' holds NaN or infinity .* lower lr \(now 1e\+38\)"
    ):
        trained(lr=1e38, weight_decay=1e5, label_smoothing=0.1)


def test_a_bad_initial_weight_is_refused():
    ann = network()
    ann[5].bias.data[1] = float("nan")
    with pytest.raises(TrainingError, match=r"parameter '5\.bias' holds NaN or infinity before training"):
        trained(ann=ann)


def test_a_one_shot_iterator_is_refused_for_both_sets():
    with pytest.raises(TrainingError, match="train is a one-shot"):
        trained(iter(BATCHES))
    with pytest.raises(TrainingError, match="valid is a one-shot"):
        trained(valid=iter(BATCHES))


def test_resume_needs_a_file_to_resume_from():
    with pytest.raises(TrainingError, match="checkpoint="):
        trained(resume=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": "3"},
        {"epochs": 2.5},
        {"epochs": 0},
        {"lr": float("nan")},
        {"lr": -0.1},
        {"lr": "x"},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"weight_decay": -1e-4},
        {"optimizer": "adam"},
        {"optimizer": ["sgd"]},
        {"optimizer": torch.optim.SGD},
        {"precision": "fp8"},
        {"precision": torch.bfloat16},
        {"seed": True},
        {"channels_last": "yes"},
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused_before_anything_is_learned(wrong):
    ann, name = network(), next(iter(wrong))
    before = weights(ann)
    with pytest.raises(TrainingError, match=rf"train needs .*{name}.*; got {name}=.*Write train\(.*{name}="):
        trained(ann=ann, **wrong)
    assert torch.equal(weights(ann), before)


@pytest.mark.parametrize(
    "x, y, text",
    [
        (X, Y.float(), r"torch\.float32; needed are .* y\.long\(\)"),
        (X, Y + 1, r"labels from 1 to 4, but the network has 4 logits .*num_classes=5"),
        (X, Y - 1, r"labels from -1 to 2, but the network has 4 logits"),
        (X.double(), Y, r"torch\.float64: .*x\.float\(\)"),
        (X.numpy(), Y.numpy(), r"is a tuple \(ndarray, ndarray\), not a pair of tensors"),
        (X, None, r"is a tuple \(Tensor, NoneType\), not a pair of tensors"),
    ],
    ids=["float labels", "high label", "low label", "double", "numpy", "no labels"],
)
def test_a_batch_that_does_not_fit_is_refused_and_one_for_validation_is_told_apart(x, y, text):
    with pytest.raises(TrainingError, match=f"^(the network cannot take )?batch 0 .*{text}"):
        trained([(x, y)])
    with pytest.raises(TrainingError, match=f"^validation after epoch 1: .*batch 0 .*{text}"):
        trained(valid=[(x, y)])


@pytest.mark.parametrize(
    "answer, text",
    [
        (lambda y: (y, y), r"with tuple; needed are logits \[N, classes\]"),
        (lambda y: y[:, 0], r"with \(16,\) of torch.float32; needed are logits \[N, classes\]"),
        (lambda y: y.argmax(1, keepdim=True), r"of torch.int64; needed are logits"),
        (lambda y: y.detach(), r"depends on no parameter that requires a gradient.*detach\(\)"),
    ],
    ids=["tuple", "[N]", "classes", "detached"],
)
def test_an_answer_that_cannot_be_learned_from_is_refused(answer, text):
    class Answers(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = network()

        def forward(self, x):
            return answer(self.body(x))

    with pytest.raises(TrainingError, match=text):
        trained(ann=Answers())


def test_a_checkpoint_that_is_a_folder_is_refused_before_the_first_epoch(tmp_path):
    ann = network()
    before = weights(ann)
    with pytest.raises(TrainingError, match=r"cannot be a file: it is a folder.*checkpoint='run\.ckpt'"):
        trained(ann=ann, checkpoint=tmp_path)
    assert torch.equal(weights(ann), before)


def test_the_bar_shows_epoch_loss_and_accuracy_on_stderr_only(capfd):
    trained(valid=BATCHES, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "epoch 2/2" in err
    assert "loss" in err
    assert "valid" in err
    trained(progress=False)
    assert capfd.readouterr() == ("", "")


@torch_uses_jit
def test_a_compiled_forward_keeps_the_names_and_learns_the_same(monkeypatch):
    # aot_eager: all of torch.compile but the C++ compiler, which takes half a minute to start.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    ann = network()
    ann[4].p = 0.0  # dropout draws in another order when compiled
    other = copy.deepcopy(ann)
    compiled, eager = trained(ann=ann, compile=True, valid=BATCHES), trained(ann=other, valid=BATCHES)
    assert ann.state_dict().keys() == other.state_dict().keys()
    # Decomposed sums round differently: 6 steps keep within a few float32 roundings of the sums.
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)


@torch_uses_jit
def test_a_missing_compiler_is_told_with_the_remedy():
    torch.compiler.reset()
    config = importlib.import_module("torch._inductor.config")
    broken = config.patch({"cpp.cxx": (None, "/no/such/compiler"), "force_disable_caches": True})
    with broken, pytest.raises(TrainingError, match=r"torch\.compile failed on batch 0 .* compile=False"):
        trained(compile=True)
