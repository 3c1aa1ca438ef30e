"""Which published architectures convert, and is each exact at T=1? Random weights, random statistics.

Run: .venv/bin/python recipes/zoo.py [--full] [--only PATTERN] [--resume]
Without --full the networks are small: fewer pixels, and fewer blocks where the builder lets one say so. With
--full they have the size under which they were published, in a batch of one.
Writes one line per network to results/zoo.jsonl, in place of an older one of the same name and size; a
network that does not convert stays, with the reason. Exactness does not depend on the weights; distances and
times do. --resume leaves out what has a line already.
"""

import argparse
import json
import os
import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import pmsm
from pmsm import graph
from pmsm.ann.models.zoo import torchvision
from pmsm.snn.verify import compare
from pmsm.study.demo import environment
from pmsm.study.explain import explain

METHOD = pmsm.PMSM(levels=9)
CLASSES, TIMESTEPS = 10, 4
LIMIT = 1200
"""Seconds that one network may take."""
RESULTS = Path(__file__).parent.parent / "results" / "zoo.jsonl"

# Name -> pixels of the small form, and what makes it small.
TIMM: dict[str, tuple[int, dict[str, Any]]] = {
    "vit_small_patch16_224": (32, {"img_size": 32, "depth": 2}),
    "deit_tiny_patch16_224": (32, {"img_size": 32, "depth": 2}),
    "vit_small_patch14_dinov2": (28, {"img_size": 28, "depth": 2}),
    "beit_base_patch16_224": (32, {"img_size": 32, "depth": 1}),
    "swin_tiny_patch4_window7_224": (64, {"img_size": 64, "depths": (2, 2)}),
    "levit_128s": (64, {"img_size": 64}),
    "cait_xxs24_224": (32, {"img_size": 32, "depth": 2}),
    "pvt_v2_b0": (32, {"depths": (1, 1, 1, 1)}),
    "xcit_nano_12_p16_224": (32, {"img_size": 32, "depth": 2}),
    "mobilevit_xs": (64, {}),
    "edgenext_xx_small": (32, {"depths": (1, 1, 2, 1)}),
    "davit_tiny": (32, {"depths": (1, 1, 1, 1)}),
    "focalnet_tiny_srf": (32, {}),
    "efficientvit_m0": (224, {}),
    "efficientvit_b0": (32, {}),
    "twins_svt_small": (64, {"img_size": 64, "depths": (1, 1, 2, 1)}),
    "volo_d1_224": (32, {"img_size": 32}),
    "eva02_tiny_patch14_224": (28, {"img_size": 28, "depth": 2}),
    "mixer_s16_224": (32, {"img_size": 32}),
    "resmlp_12_224": (32, {"img_size": 32}),
    "gmlp_s16_224": (32, {"img_size": 32}),
    "poolformer_s12": (32, {}),
    "convmixer_768_32": (32, {}),
    "convnext_tiny": (32, {"depths": (1, 1, 1, 1), "drop_path_rate": 0.2}),
    "convnextv2_atto": (32, {"depths": (1, 1, 1, 1)}),
    "resnet18": (32, {}),
    "resnet50": (32, {"layers": (1, 1, 1, 1)}),
    "regnety_002": (32, {}),
    "densenet121": (32, {"block_config": (2, 2, 2, 2)}),
    "mobilenetv3_small_100": (32, {}),
    "efficientnet_b0": (32, {}),
    "ghostnet_100": (32, {}),
    "repvgg_a0": (32, {}),
    "mobileone_s0": (32, {}),
    "hrnet_w18_small": (64, {}),
    "dm_nfnet_f0": (32, {}),
    "starnet_s1": (32, {}),
    "eca_nfnet_l0": (32, {}),
    "botnet26t_256": (64, {"img_size": 64}),
    "visformer_tiny": (64, {"img_size": 64}),
    "mambaout_femto": (32, {"depths": (1, 1, 1, 1)}),
    "sequencer2d_s": (32, {"layers": (1, 1, 1, 1)}),
}
TORCHVISION: dict[str, tuple[int, dict[str, Any]]] = {
    "vgg16_bn": (32, {}),
    "alexnet": (64, {}),
    "resnet18": (32, {}),
    "mobilenet_v2": (32, {}),
    "mobilenet_v3_small": (32, {}),
    "squeezenet1_1": (32, {}),
    "shufflenet_v2_x0_5": (32, {}),
    "googlenet": (32, {}),
    "inception_v3": (75, {}),
    "densenet121": (32, {}),
    "efficientnet_b0": (32, {}),
    "regnet_y_400mf": (32, {}),
    "mnasnet0_5": (32, {}),
    "convnext_tiny": (32, {}),
    "vit_b_16": (32, {"image_size": 32}),
    "swin_t": (32, {}),
    "fcn_resnet50": (32, {}),
    "lraspp_mobilenet_v3_large": (32, {}),
}
NATIVE = {"inception_v3": 299, "fcn_resnet50": 520, "lraspp_mobilenet_v3_large": 520}  # others: 224
# They take minutes to draw their weights unless told not to; their auxiliary heads act in training only and
# are no part of the graph, which is that of evaluation.
INCEPTIONS = {"googlenet", "inception_v3"}


@dataclass(frozen=True)
class Entry:
    """A network of the table: how it is built, and what it is fed."""

    name: str
    source: str
    build: Callable[[bool], nn.Module]
    example: Callable[[nn.Module, bool], Tensor]


def main() -> None:
    """Every network, one line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="native sizes")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="names, as in a shell: 'timm:*'")
    parser.add_argument("--resume", action="store_true", help="only what has no line yet")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for one network")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    present = {(line["name"], line["full"]) for line in lines(options.results)} if options.resume else set()
    for name in NETWORKS:
        if fnmatch(name, options.only) and (name, options.full) not in present:
            row = isolated(name, options.full, options.limit)
            print(told(row), flush=True)
            write(row, options.results)


def isolated(name: str, full: bool, limit: float) -> dict[str, Any]:
    """The line of one network from a process of its own: its peak of memory, or its failure, stays there."""
    receiver, sender = get_context("spawn").Pipe(duplex=False)
    process = get_context("spawn").Process(target=_send, args=(sender, name, full))
    process.start()
    sender.close()
    row = {"recipe": "zoo", "name": name, "source": NETWORKS[name].source, "full": full}
    try:
        found = receiver.recv() if receiver.poll(limit) else row | {"unfinished": f"more than {limit:.0f} s"}
        process.join(0 if "unfinished" in found else None)
        return found
    except EOFError:
        process.join()
        return row | {"unfinished": f"the process ended with status {process.exitcode}"}
    finally:
        process.kill()


def _send(sender: Connection, name: str, full: bool) -> None:
    torch.set_num_threads(1)
    sender.send(measure(NETWORKS[name], full))


def measure(entry: Entry, full: bool) -> dict[str, Any]:
    """One line: what was compared and what it cost, or the reason of the refusal."""
    torch.manual_seed(0)
    ann = randomized(entry.build(full))
    x = entry.example(ann, full)
    size = list(x.shape[1:])
    row: dict[str, Any] = {"recipe": "zoo", "name": entry.name, "source": entry.source, "full": full}
    row |= {"method": repr(METHOD), "input": size, "parameters": sum(p.numel() for p in ann.parameters())}
    start = time.process_time()  # one thread: that of an idle machine
    try:
        qann = pmsm.calibrate(pmsm.quantize(ann, METHOD, x), [x])
        snn = pmsm.convert(qann)
        row["seconds"] = round(time.process_time() - start, 2)
        row |= compared(qann, snn, x)
        row["spiking_share"] = round(explain(ann, x, METHOD).totals.spiking_share, 4)
    except Exception as error:  # a line of the table, whatever it was
        why = str(error).partition(" It happens at")[0]  # what follows names a path of this machine
        row["refused"] = f"{type(error).__name__}: {why}"[:200]
    row["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return row | {"environment": environment(0)}


def compared(qann: Any, snn: Any, x: Tensor) -> dict[str, Any]:
    """L0 at T=1, and the distance to the clipped float network over time."""
    found = compare(qann, snn, [x])
    run = pmsm.simulate(snn, x, TIMESTEPS)
    limit, spread = pmsm.clipped(qann), [0.0]
    for _, softmax in graph.modules(limit, nn.Softmax):
        softmax.register_forward_hook(lambda _, given, out: spread.append(float(given[0].std())))
    with torch.no_grad():
        wanted = pytree.tree_leaves(limit(x))
    got = pytree.tree_leaves(run.outputs)
    distances = [
        sum(float((a[t] - b).abs().mean()) for a, b in zip(got, wanted, strict=True)) for t in (0, -1)
    ]
    return {
        "sites": len(found.layers),
        "codes": found.codes,
        "differ": found.different,
        "max_difference": found.max_difference,
        "finite": all(bool(torch.isfinite(y).all()) for y in got),
        "distance_t1": distances[0],
        f"distance_t{TIMESTEPS}": distances[1],
        "nearer": distances[1] < distances[0],
        "softmax_spread": round(max(spread), 1),  # standard deviation of what a softmax reads, the largest
    }


def randomized(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, every normalization with weights and statistics as training gives.

    No weight stays at zero, as some start their heads: an output that is always 0 would prove nothing.
    """
    for parameter in network.parameters():
        if parameter.dim() > 1 and not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.05)
    for norm in network.modules():
        mean, var = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
        if isinstance(mean, Tensor) and isinstance(var, Tensor):
            nn.init.normal_(mean, std=0.5)
            nn.init.uniform_(var, 0.5, 2.0)
        if "norm" in type(norm).__name__.lower():
            for name, parameter in norm.named_parameters(recurse=False):
                nn.init.normal_(parameter, std=0.5) if name == "bias" else nn.init.uniform_(
                    parameter, 0.5, 1.5
                )
    return network.eval()


def told(row: dict[str, Any]) -> str:
    """The line as a person reads it."""
    if reason := row.get("refused") or row.get("unfinished"):
        return f"{row['name']:38s} {reason}"
    return (
        f"{row['name']:38s} {row['sites']:4d} sites {row['codes']:11,d} codes {row['differ']:6d} differ "
        f"max {row['max_difference']:.3g}  {row['spiking_share']:6.1%} on spikes {row['seconds']:6.1f} s "
        f"{row['peak_rss_mb']:6,d} MB{'' if row['nearer'] else '  not nearer at T=4'}"
    )


def write(row: dict[str, Any], path: Path) -> None:
    """Append the line, and drop an older one of the same network and size."""
    others = [line for line in lines(path) if (line["name"], line["full"]) != (row["name"], row["full"])]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*others, row]))


def lines(path: Path) -> list[dict[str, Any]]:
    """What has been measured so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# ----------------------------------------------------------------------------------------------------------
# The networks
# ----------------------------------------------------------------------------------------------------------


def _timm(name: str, pixels: int, small: dict[str, Any]) -> Entry:
    def build(full: bool) -> nn.Module:
        """With random weights; small unless `full`."""
        torchvision()  # timm imports it
        import timm

        return timm.create_model(name, pretrained=False, **({} if full else {"num_classes": CLASSES} | small))

    def example(ann: Any, full: bool) -> Tensor:
        return _images(full, ann.pretrained_cfg["input_size"][-1] if full else pixels)

    return Entry(f"timm:{name}", "timm", build, example)


def _torchvision(name: str, pixels: int, small: dict[str, Any]) -> Entry:
    def build(full: bool) -> nn.Module:
        """With random weights; small unless `full`."""
        settings = {"init_weights": False, "aux_logits": False} if name in INCEPTIONS else {}
        backbone = {"weights_backbone": None} if name.startswith(("fcn", "lraspp")) else {}
        models = torchvision().models
        return models.get_model(name, weights=None, **settings, **backbone, **({} if full else small))

    def example(ann: nn.Module, full: bool) -> Tensor:
        return _images(full, NATIVE.get(name, 224) if full else pixels)

    return Entry(f"torchvision:{name}", "torchvision", build, example)


def _pyramid(full: bool) -> nn.Module:
    """The backbone of Faster R-CNN: ResNet-50 and the feature pyramid on top; a dict of maps."""
    detection = torchvision().models.detection.backbone_utils
    return detection.resnet_fpn_backbone(backbone_name="resnet50", weights=None)


def _transformers(name: str, settings: dict[str, Any]) -> Entry:
    """A network of transformers, small at a size of our own; `name` is that of its class without the task."""
    tokens = "vocab_size" in settings

    def build(full: bool) -> nn.Module:
        """With random weights; small unless `full`."""
        torchvision()  # transformers imports it
        import transformers

        task = "ForSequenceClassification" if tokens else "ForImageClassification"
        config = getattr(transformers, f"{name}Config")(**({"num_labels": 1000} if full else settings))
        return getattr(transformers, f"{name}{task}")(config)

    def example(ann: nn.Module, full: bool) -> Tensor:
        """A sequence of tokens, or pictures."""
        size = (1, 128) if full else (2, 12)
        return (
            torch.randint(3, settings["vocab_size"], size) if tokens else _images(full, 224 if full else 32)
        )

    return Entry(f"transformers:{name}", "transformers", build, example)


def _images(full: bool, pixels: int) -> Tensor:
    return torch.randn(1 if full else 2, 3, pixels, pixels)


def _entries() -> Iterable[Entry]:
    yield from (_timm(name, *small) for name, small in TIMM.items())
    yield from (_torchvision(name, *small) for name, small in TORCHVISION.items())
    yield Entry(
        "torchvision:resnet50_fpn",
        "torchvision",
        _pyramid,
        lambda _, full: _images(full, 800 if full else 32),
    )
    yield from (_transformers(name, settings) for name, settings in TRANSFORMERS.items())


_WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
# Dropout of attention is an argument that the code sets in training; the graph is that of evaluation.
_TOKENS = {"vocab_size": 50, "attention_probs_dropout_prob": 0}
_PATCHES = {"image_size": 32, "patch_size": 8}
_STAGES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "ViT": _WIDTHS | _PATCHES,
    "DeiT": _WIDTHS | _PATCHES,
    "Swin": {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2]}
    | {"window_size": 4},
    "Segformer": _STAGES | {"num_attention_heads": [1, 1, 2, 2]},
    "ConvNext": _STAGES,
    "ResNet": {"embedding_size": 8, "layer_type": "basic"} | _STAGES,
    "Bert": _WIDTHS | _TOKENS,
    "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    | {"vocab_size": 50, "attention_dropout": 0},
    "Roberta": _WIDTHS | _TOKENS,
}
NETWORKS = {entry.name: entry for entry in _entries()}

if __name__ == "__main__":
    main()
