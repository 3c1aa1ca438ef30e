"""How one training run is shared out to several processes: batches, gradients, statistics, sums.

Every process draws the same batches and takes its part of each, so that the global batch, and with it the
run, does not depend on their number but for rounding and for what the network itself draws, as dropout does.
Gradients are averaged by torch's DistributedDataParallel; BatchNorm sees the whole batch
(`pmsm.ann.batchnorm`).
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pmsm.ann.batchnorm import over_all_processes
from pmsm.errors import TrainingError, import_extra

if TYPE_CHECKING:
    from accelerate import Accelerator

LOST = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "process group")
"""Words in what torch.distributed raises when another process is gone; it has no error type of its own."""


class Workers:
    """The processes of a run, seen from one of them; alone, everything here is the identity.

    Args:
        accelerator: the caller's, or None: built from the environment that `accelerate launch` and `torchrun`
            set.

    Raises:
        MissingExtraError: accelerate is not installed.
        TrainingError: it is no Accelerator, or one that shards parameters or accumulates by itself.
    """

    def __init__(self, accelerator: Any = None) -> None:
        kind = import_extra("accelerate", "train").Accelerator
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        if accelerator is None:
            # Without cpu=True accelerate overlooks that torchrun started several processes on CPUs.
            accelerator = kind(cpu=True) if launched > 1 and not torch.accelerator.is_available() else kind()
        if not isinstance(accelerator, kind):
            raise TrainingError(
                f"accelerator is a {type(accelerator).__name__}; write train(..., accelerator=Accelerator())."
            )
        self.accelerator: Accelerator = accelerator
        self.count, self.index = accelerator.num_processes, accelerator.process_index
        self._refuse_unsuitable(launched)

    @property
    def is_main(self) -> bool:
        """Whether this process writes and reports."""
        return self.index == 0

    @property
    def precision(self) -> str:
        """What `accelerate launch --mixed_precision` or the accelerator asks for; "no" if nothing."""
        return self.accelerator.mixed_precision

    def move(self, *networks: nn.Module | None) -> None:
        """Put networks on this process's device; alone, they stay where they are."""
        for network in networks:
            if network is not None and self.count > 1:
                network.to(self.accelerator.device)

    def wrap(self, network: nn.Module) -> nn.Module:
        """The module whose forward pass averages gradients over the processes when it goes back."""
        if self.count == 1:
            return network
        # Not accelerator.prepare(): it would leave its own autocast on the user's network.
        handler = self.accelerator.ddp_handler
        settings = handler.to_kwargs() if handler is not None else {}
        on_gpu = self.accelerator.device.type == "cuda"
        devices = [self.accelerator.local_process_index] if on_gpu else None
        return nn.parallel.DistributedDataParallel(network, device_ids=devices, **settings)

    def share(self, x: Tensor, y: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """This process's rows of batch `index`.

        Raises:
            TrainingError: fewer samples than processes.
        """
        if self.count == 1:
            return x, y
        if len(y) < self.count:
            raise TrainingError(
                f"batch {index} has {len(y)} samples for {self.count} processes. Leave out the short last "
                f"batch, drop_last=True, or start fewer processes."
            )
        rows = slice(len(y) * self.index // self.count, len(y) * (self.index + 1) // self.count)
        return x[rows], y[rows]

    def weight(self, own: int, samples: int) -> float:
        """Factor of this process's mean loss, so that the mean over processes is that over the samples."""
        return own * self.count / samples

    def takes(self, index: int) -> bool:
        """Whether this process evaluates batch `index`: whole ones in turn, so that answers stay the same."""
        return index % self.count == self.index

    def total(self, *values: Tensor | float) -> list[float]:
        """The sum of each value over all processes."""
        if self.count == 1:
            return [float(value) for value in values]
        numbers = torch.tensor([float(value) for value in values], dtype=torch.float64)
        total = self.accelerator.reduce(numbers.to(self.accelerator.device), "sum")
        assert isinstance(total, Tensor)
        return total.tolist()

    def ends(self, labels: set[int]) -> set[int]:
        """The smallest and the largest label that any process has met; alone, all of them."""
        if self.count == 1:
            return labels
        own = torch.tensor([[min(labels), max(labels)]], device=self.accelerator.device)
        everyone = self.accelerator.gather(own)
        assert isinstance(everyone, Tensor)
        return {int(everyone.min()), int(everyone.max())}

    def refuse_disagreement(self, epochs: int) -> None:
        """Refuse to go on where processes have resumed from different numbers of finished epochs.

        Raises:
            TrainingError: they have; most likely one does not see the checkpoint.
        """
        if len(found := self.ends({epochs})) > 1:
            raise TrainingError(
                f"the processes have resumed from checkpoints of {min(found)} to {max(found)} epochs. Put "
                f"the checkpoint where all of them see it: train(..., checkpoint='/shared/run.ckpt')."
            )

    def unsynchronized(self, wrapped: nn.Module) -> AbstractContextManager[None]:
        """Inside, gradients are gathered up without being averaged."""
        return self.accelerator.no_sync(wrapped) if self.count > 1 else nullcontext()

    def whole_batchnorm(self, network: nn.Module) -> AbstractContextManager[None]:
        """Inside, BatchNorm normalizes with the statistics of the whole batch."""
        return over_all_processes(network) if self.count > 1 else nullcontext()

    @contextmanager
    def own_draws(self, seed: int, step: int) -> Iterator[None]:
        """Inside, what the network draws (dropout) follows seed, step and process; what the data draw from
        stays the same in all processes. Alone, both draw from the same stream, as they always did.
        """
        if self.count == 1:
            yield
            return
        device = self.accelerator.device
        with torch.random.fork_rng(devices=[device.index] if device.type == "cuda" else []):
            # Knuth's multiplicative hash spreads neighbouring steps over the seeds.
            torch.manual_seed((seed + 11400714819323198485 * (step * self.count + self.index + 1)) % 2**63)
            yield

    @contextmanager
    def contact(self, when: str) -> Iterator[None]:
        """Tell what only several processes run into as what it is, with the way on.

        Raises:
            TrainingError: another process has ended, or a parameter takes no part.
        """
        try:
            yield
        except (RuntimeError, TrainingError) as error:
            if self.count > 1 and "finished reduction" in str(error):
                raise TrainingError(
                    f"some parameters take no part in the answer {when}, and processes cannot average "
                    f"gradients that are not there. Freeze them, parameter.requires_grad_(False), or let "
                    f"torch look for them: train(..., accelerator=Accelerator(kwargs_handlers=["
                    f"DistributedDataParallelKwargs(find_unused_parameters=True)])), both from accelerate."
                ) from error
            if self.count == 1 or not _is_loss(error):
                raise
            raise TrainingError(
                f"process {self.index} of {self.count} lost another process {when}: that one was killed or "
                f"ended with an error of its own. Finished epochs are in the checkpoint, if one was asked "
                f"for: start the same command again with train(..., resume=True)."
            ) from error

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            self.accelerator.wait_for_everyone()

    def _refuse_unsuitable(self, launched: int) -> None:
        kind = str(self.accelerator.distributed_type).rpartition(".")[2]
        if launched > 1 and self.count == 1:
            raise TrainingError(
                f"{launched} processes were started, but this Accelerator knows of one: each would train "
                f"alone. On CPUs write Accelerator(cpu=True), or leave accelerator= out."
            )
        if kind != "NO" and not kind.startswith("MULTI_"):
            raise TrainingError(
                f"train keeps whole networks in every process, and this Accelerator is set to {kind}. "
                f"Configure plain data parallelism: accelerate launch --multi_gpu."
            )
        steps = self.accelerator.gradient_accumulation_steps
        if steps != 1:
            raise TrainingError(
                f"this Accelerator accumulates {steps} batches by itself. Build it without, and write "
                f"train(..., accumulate={steps})."
            )


def _is_loss(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is that of a broken connection between processes."""
    while error is not None:
        told = str(error).lower()
        if isinstance(error, torch.distributed.DistError) or any(word in told for word in LOST):
            return True
        error = error.__cause__
    return False
