"""Vision transformers with timm's layer names, written with operators that trace and convert one by one."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Stochastic depth: while training, a branch is zero for a whole sample with probability `rate`, and
    1 / (1 - rate) times as large otherwise; the identity in evaluation.

    [N, L, D] -> [N, L, D]. A sample is one channel of a Dropout2d, a module that tracing keeps: a traced
    network still drops when it trains.

    Source: arXiv:1603.09382.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.drop = nn.Dropout2d(rate)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, D] -> [N, L, D]."""
        return self.drop(x[:, None])[:, 0]


class Attention(nn.Module):
    """softmax(q k^T / sqrt(width / heads)) v for each head, and a linear layer; [N, L, width] to the same.

    Source: arXiv:1706.03762, equation 1. The batch stays in dimension 0, so that several timesteps can lie
    there side by side. The factor follows the product of q and k: both can be whole numbers.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.scale = self.head_width**-0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.softmax = nn.Softmax(dim=-1)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, width] tokens -> [N, L, width]."""
        qkv = self.qkv(x).reshape(x.shape[0], x.shape[1], 3, self.heads, self.head_width)
        qkv = qkv.permute(0, 2, 3, 1, 4)  # [N, 3, heads, L, width / heads]
        q, k, v = qkv[:, 0], qkv[:, 1], qkv[:, 2]
        attention = self.softmax((q @ k.permute(0, 1, 3, 2)) * self.scale)
        heads = (attention @ v).permute(0, 2, 1, 3)  # [N, L, heads, width / heads]
        return self.proj_drop(self.proj(heads.flatten(2)))


class MLP(nn.Module):
    """Two linear layers, four times as wide between them; [N, L, width] -> [N, L, width]."""

    def __init__(self, width: int, activation: type[nn.Module], dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.act = activation()
        self.drop1 = nn.Dropout(dropout)
        self.fc2 = nn.Linear(4 * width, width)
        self.drop2 = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, width] tokens -> [N, L, width]."""
        return self.drop2(self.fc2(self.drop1(self.act(self.fc1(x)))))


class TransformerBlock(nn.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x)); [N, L, width] -> [N, L, width]."""

    def __init__(
        self, width: int, heads: int, activation: type[nn.Module], dropout: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)  # eps as in timm
        self.attn = Attention(width, heads, dropout)
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width, activation, dropout)
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, width] tokens -> [N, L, width]."""
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """One token for each square of `patch` pixels; [N, 3, side, side] -> [N, (side / patch)^2, width]."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, side, side] pictures -> [N, (side / patch)^2, width] tokens."""
        return self.proj(x).flatten(2).permute(0, 2, 1)


class VisionTransformer(nn.Module):
    """`depth` blocks over a class token and the tokens of the patches; [N, 3, side, side] -> [N, classes].

    Checkpoints of timm's plain vision transformers (class token, learned positions, bias in qkv) load
    strictly.

    Args:
        side, patch: pixels; side is a multiple of patch.
        width: of a token; a multiple of heads.
        activation: between the linear layers of a block; ReLU makes codes that are never negative.
        dropout: after the positions and after every linear layer but qkv, as in arXiv:2010.11929, B.1.
        drop_path: stochastic depth of the last block, from 0 in the first, rising linearly.

    Raises:
        ValueError: side and patch, or width and heads, do not fit.

    Source: arXiv:2010.11929, section 3.1. Weights start as in timm: a normal of 0.02, biases at 0.
    """

    no_decay: ClassVar[tuple[str, ...]] = ("cls_token", "pos_embed")

    def __init__(
        self,
        side: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        classes: int,
        *,
        activation: type[nn.Module] = nn.GELU,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if side % patch or width % heads:
            raise ValueError(
                f"VisionTransformer needs side % patch == 0 and width % heads == 0, got {side} and {patch}, "
                f"{width} and {heads}."
            )
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + (side // patch) ** 2, width))
        self.patch_embed = PatchEmbed(patch, width)
        self.pos_drop = nn.Dropout(dropout)
        rates = [drop_path * block / max(depth - 1, 1) for block in range(depth)]
        self.blocks = nn.Sequential(
            *(TransformerBlock(width, heads, activation, dropout, rate) for rate in rates)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)
        nn.init.normal_(self.cls_token, std=1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, side, side] pictures -> [N, classes] logits."""
        x = self.patch_embed(x)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), 1) + self.pos_embed
        x = self.blocks(self.pos_drop(x))
        return self.head(self.norm(x[:, 0]))  # the class token alone: LayerNorm sees one token at a time


def vit_small_patch16_224(classes: int = 1000, **options: Any) -> VisionTransformer:
    """ViT-S/16 for 224x224: 197 tokens, 22.1 million parameters; `options` as in `VisionTransformer`.

    Source: arXiv:2012.12877, table 1.
    """
    return VisionTransformer(224, 16, 384, 12, 6, classes, **options)


def vit_small_patch4_32(classes: int = 10, **options: Any) -> VisionTransformer:
    """ViT-S for 32x32: 65 tokens, 21.3 million parameters; `options` as in `VisionTransformer`."""
    return VisionTransformer(32, 4, 384, 12, 6, classes, **options)


def vit_tiny_patch4_32(
    classes: int = 10, depth: int = 9, *, width: int = 192, heads: int = 3, **options: Any
) -> VisionTransformer:
    """A slim ViT to train from scratch on 32x32: 65 tokens, 4.0 million parameters, 2.7 at depth 6.

    `options` as in `VisionTransformer`.
    """
    return VisionTransformer(32, 4, width, depth, heads, classes, **options)
