"""In which numbers a network multiplies while it trains; what it keeps and sums stays float32."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from pmsm.errors import TrainingError

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions that are autocast, and the type that its matrix products take."""

NUMBERS = {"scale": "scale", "since": "_growth_tracker"}
"""What a checkpoint calls the numbers of torch's GradScaler."""


def resolve(precision: str, device: torch.device, launched: str = "no") -> str:
    """`precision`, with "auto" as what `accelerate launch --mixed_precision` asked for (`launched`, "no" if
    nothing), else as bf16 where the processor multiplies it natively, else as fp32.

    Raises:
        TrainingError: "tf32" where there is no such arithmetic.
    """
    if precision == "tf32" and device.type != "cuda":
        raise TrainingError(
            f"precision 'tf32' is an arithmetic of NVIDIA GPUs, and the network is on {str(device)!r}. Move "
            f"it there, network.cuda(), or write train(..., precision='fp32')."
        )
    if precision != "auto":
        return precision
    if launched in HALF:
        return launched
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        on_cpu = device.type == "cpu"
        native = on_cpu and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return "bf16" if native else "fp32"


@contextmanager
def tf32(device: torch.device, allowed: bool) -> Iterator[None]:
    """Inside, float32 products on a GPU take TensorFloat-32 (10 bits of mantissa) if `allowed`, else all 23;
    the caller's choice returns afterwards. torch's own default allows it to convolutions alone.
    """
    if device.type != "cuda":
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, cast(Any, torch.backends.cudnn)
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


class Scaler:
    """The factor that keeps float16 gradients from vanishing; with any other precision, the identity."""

    def __init__(self, device: torch.device, enabled: bool) -> None:
        self.scaler = torch.amp.GradScaler(device.type, enabled=enabled)

    def tensors(self) -> dict[str, Tensor]:
        """The factor and the updates since it last changed, for a checkpoint."""
        state = self.scaler.state_dict()
        return {name: torch.tensor(float(state[key]), dtype=torch.float64) for name, key in NUMBERS.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors()` gave."""
        state = self.scaler.state_dict()
        state |= {"scale": float(tensors["scale"]), "_growth_tracker": int(tensors["since"])}
        self.scaler.load_state_dict(state)
