import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pmsm.ann.batches import (
    check_finite,
    check_iterable,
    check_network,
    check_path,
    check_reiterable,
    count_batches,
    logits_of,
    place,
)
from pmsm.errors import SettingsError, TrainingError

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


@pytest.mark.parametrize(
    "nothing", [None, 3, "data/", X, nn.Linear], ids=["None", "int", "str", "x", "class"]
)
def test_what_gives_no_batches_is_refused_with_the_remedy(nothing):
    with pytest.raises(TrainingError, match=r"valid is .*, which gives no batches.*\[\(x, y\)\]"):
        check_iterable(nothing, "valid")


def test_anything_that_python_can_iterate_may_be_batches():
    class Indexed:
        """Iterated by whole numbers from 0, as a data set is."""

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return [(X, Y)] * 2 if index < 2 else [][index]

    assert count_batches(Indexed(), "train") == 2


def test_batches_without_a_length_are_refused():
    with pytest.raises(TrainingError, match=r"train \(DataLoader\) has no len\(\)"):
        count_batches(DataLoader(Endless(), batch_size=2), "train")


def test_an_empty_set_is_refused():
    with pytest.raises(TrainingError, match="train is empty"):
        count_batches([], "train")
    with pytest.raises(TrainingError, match="valid is empty"):
        check_reiterable([], "valid")


@pytest.mark.parametrize(
    "batch, given",
    [
        (X, "a Tensor"),
        (7, "an int"),
        (None, "None"),
        ((X,), r"a tuple \(Tensor\)"),
        ((X, Y, Y), r"a tuple \(Tensor, Tensor, Tensor\)"),
        ({"x": X, "y": Y}, "a dict"),
        ((X, [0, 1, 2, 1]), r"a tuple \(Tensor, list\)"),
        ([X.numpy(), Y.numpy()], r"a list \(ndarray, ndarray\)"),
    ],
    ids=["x", "int", "None", "(x,)", "three", "dict", "list", "numpy"],
)
def test_what_is_no_pair_of_tensors_is_refused(batch, given):
    with pytest.raises(TrainingError, match=f"batch 7 is {given}, not a pair of tensors .*torch.as_tensor"):
        place(batch, 7, CPU)


@pytest.mark.parametrize(
    "x, text",
    [
        (X.to("meta"), "x has no values, it is on the meta device"),
        (X.to_sparse(), r"x is a sparse tensor: write it out, x\.to_dense\(\)"),
        (torch.nested.nested_tensor([X[0], X[1]], layout=torch.jagged), r"x is a nested .*padded_tensor"),
    ],
    ids=["meta", "sparse", "nested"],
)
def test_tensors_that_are_no_plain_arrays_are_refused_with_the_remedy(x, text):
    with pytest.raises(TrainingError, match=f"batch 7 cannot be read: {text}"):
        place((x, Y), 7, CPU)


def test_labels_without_values_are_refused():
    with pytest.raises(TrainingError, match="batch 7 cannot be read: y has no values"):
        place((X, Y.to("meta")), 7, CPU)


@pytest.mark.parametrize(
    "y",
    [Y[:3], Y.float(), Y.bool(), Y + 0j, nn.functional.one_hot(Y), Y[:0]],
    ids=["short", "float", "bool", "complex", "2d", "none"],
)
def test_labels_that_are_no_class_indices_are_refused(y):
    with pytest.raises(TrainingError, match=r"batch 7 has x \(4, 3\) and y .*y\.long\(\), .*y\.argmax\(1\)"):
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


@pytest.mark.parametrize("label, remedy", [(-1, r"x\[y >= 0\]"), (3, "num_classes=4")])
def test_a_label_outside_the_logits_is_named_with_the_remedy(label, remedy):
    y = torch.tensor([0, 1, 2, label])
    text = rf"batch 7 has labels from .*, but the network has 3 logits .*{remedy}"
    with pytest.raises(TrainingError, match=text):
        logits_of(nn.Linear(3, 3), X, y, 7)


def test_a_wrong_shape_is_told_with_the_words_of_torch():
    with pytest.raises(TrainingError, match=r"batch 7 of shape \(4, 3\) and torch.float32: mat1 and mat2"):
        logits_of(nn.Linear(5, 3), X, Y, 7)


def test_a_wrong_type_is_told_with_the_words_of_torch_and_the_remedy():
    with pytest.raises(TrainingError, match=r"torch.float64: .*same dtype.*x\.float\(\)"):
        logits_of(nn.Linear(3, 3), X.double(), Y, 7)


def test_a_network_of_two_inputs_is_told():
    with pytest.raises(TrainingError, match=r"cannot take batch 7 .* missing 1 required .*'input2'"):
        logits_of(nn.Bilinear(3, 3, 3), X, Y, 7)


def test_an_error_of_this_library_passes_as_it_is():
    def refuse(x):
        raise SettingsError("said already")

    with pytest.raises(SettingsError, match="said already"):
        logits_of(refuse, X, Y, 7)


def test_a_batch_of_one_that_batchnorm_refuses_is_told():
    with pytest.raises(TrainingError, match="more than 1 value per channel"):
        logits_of(nn.BatchNorm1d(3), X[:1], Y[:1], 7)


@pytest.mark.parametrize("network", [nn.Identity(), nn.LSTM(3, 3)], ids=["[N, C, L]", "tuple"])
def test_an_answer_that_is_no_logits_is_refused(network):
    with pytest.raises(TrainingError, match=r"needed are logits \[N, classes\]"):
        logits_of(network, X[:, :, None].expand(4, 3, 3), Y, 7)


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_an_answer_that_is_no_floats_is_refused(kind):
    with pytest.raises(TrainingError, match=rf"with \(4, 3\) of {kind}; needed are logits .* floats"):
        logits_of(lambda x: x.to(kind), X, Y, 7)


def test_a_network_without_parameters_is_refused():
    with pytest.raises(TrainingError, match="Flatten has no parameters"):
        check_network(nn.Flatten())


@pytest.mark.parametrize(
    "network, given", [(None, "None"), (nn.Linear, "the class Linear"), (print, "a builtin_function")]
)
def test_what_is_no_network_is_refused(network, given):
    with pytest.raises(TrainingError, match=rf"the network is {given}.*, not a torch\.nn\.Module. Build one"):
        check_network(network)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")  # torch's own
def test_a_network_whose_parameters_have_no_values_yet_is_refused_with_the_remedy():
    with pytest.raises(TrainingError, match=r"'weight' has no values.*to_empty\(device='cpu'\)"):
        check_network(nn.Linear(3, 3, device="meta"))
    with pytest.raises(TrainingError, match=r"'weight' has no shape yet.*network\(x\)"):
        check_network(nn.LazyLinear(3))


def test_a_checkpoint_may_stand_where_nothing_or_a_file_stands(tmp_path):
    assert check_path(None, resume=False) is None
    assert (
        check_path(str(tmp_path / "new folder" / "run.ckpt"), resume=True) == tmp_path / "new folder/run.ckpt"
    )
    (tmp_path / "run.ckpt").touch()
    assert check_path(tmp_path / "run.ckpt", resume=False) == tmp_path / "run.ckpt"


@pytest.mark.parametrize(
    "path, reason",
    [
        (".", "a folder or a device"),
        ("", "a folder or a device"),
        ("/dev/null", "a folder or a device"),  # a file renamed to it would take its place
        (__file__ + "/run.ckpt", "Not a directory"),
        ("x" * 400, "File name too long"),
        ("run\0.ckpt", "null"),
        (3, "not .*int"),
        (b"run.ckpt", "not .*bytes"),
        (True, "not .*bool"),
    ],
    ids=["folder", "empty", "device", "below a file", "long", "null", "int", "bytes", "bool"],
)
@pytest.mark.parametrize("resume", [False, True])
def test_a_checkpoint_that_cannot_be_a_file_is_refused_with_the_remedy(path, reason, resume):
    with pytest.raises(TrainingError, match=rf"cannot be a file: .*{reason}.*checkpoint='run\.ckpt'"):
        check_path(path, resume)


@pytest.mark.parametrize("resume", ["yes", 1, None], ids=repr)
def test_resume_is_true_or_false(resume):
    with pytest.raises(TrainingError, match=rf"resume True or False, got {resume!r}. Write resume=True"):
        check_path("run.ckpt", resume)


def test_a_bad_parameter_is_named():
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with torch.no_grad():
        network[1].bias[0] = float("inf")
    with pytest.raises(TrainingError, match=r"'1\.bias' holds NaN or infinity before training. Load"):
        check_finite(network, "before training", "Load whole weights.")
