"""Which parameter learns how fast, and which decays."""

import re

import torch
from torch import nn

from pmsm.ann.schedule import Settings
from pmsm.errors import TrainingError

BLOCK = re.compile(r"(?:^|\.)(?:blocks|layers?|h)\.(\d+)\.")
"""A repeated block in a parameter's name, as in timm, torchvision and transformers."""


def build_optimizer(network: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """SGD or AdamW over all parameters that require a gradient; none decays that a module names in its class
    attribute `no_decay`. Each group holds its share of the learning rate as "share".

    Raises:
        TrainingError: nothing can learn, or `layer_decay` finds no blocks.
    """
    exempt = {
        parameter
        for module in network.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name in getattr(module, "no_decay", ())
    }
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    _refuse_untrainable(network, list(trained.values()))
    shares = layer_shares(list(trained), settings.layer_decay)
    groups = [
        {
            "params": [p for name, p in trained.items() if (p in exempt, shares[name]) == (free, share)],
            "weight_decay": 0.0 if free else settings.weight_decay,
            "share": share,
        }
        for share in sorted(set(shares.values()), reverse=True)
        for free in (False, True)
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr)
    nesterov = settings.momentum > 0
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=nesterov)


def layer_shares(names: list[str], decay: float) -> dict[str, float]:
    """For each parameter its share of the learning rate: decay ** (blocks between it and the output).

    What is registered in front of the first block (embeddings) counts as one layer below it, what comes
    behind the last (norm, head) as one above, with share 1. Source: BEiT (arXiv:2106.08254), appendix.

    Raises:
        TrainingError: decay < 1, and no name tells a block.

    >>> layer_shares(["pos_embed", "blocks.0.w", "blocks.1.w", "head.w"], 0.5)
    {'pos_embed': 0.125, 'blocks.0.w': 0.25, 'blocks.1.w': 0.5, 'head.w': 1.0}
    """
    if decay == 1:
        return dict.fromkeys(names, 1.0)
    blocks = {name: int(found[1]) for name in names if (found := BLOCK.search(name))}
    if not blocks:
        raise TrainingError(
            f"layer_decay={decay:g} needs numbered blocks, and no parameter is called blocks.<i>., "
            f"layer.<i>., layers.<i>. or h.<i>.; the first is {names[0]!r}. Write train(..., "
            f"layer_decay=1.0)."
        )
    depth, first = max(blocks.values()) + 1, names.index(next(iter(blocks)))
    layers = {name: 0 if i < first else depth + 1 for i, name in enumerate(names)}
    layers |= {name: block + 1 for name, block in blocks.items()}
    return {name: decay ** (depth + 1 - layer) for name, layer in layers.items()}


def _refuse_untrainable(network: nn.Module, trained: list[nn.Parameter]) -> None:
    if not trained:
        raise TrainingError(
            f"no parameter of {type(network).__name__} requires a gradient. Thaw some: "
            f"network.requires_grad_(True)."
        )
    if any(parameter.is_inference() for parameter in trained):
        raise TrainingError(
            f"{type(network).__name__} was built inside torch.inference_mode(), so it cannot learn. Build or "
            f"load it outside."
        )
