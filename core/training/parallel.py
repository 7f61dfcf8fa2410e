"""More than one process: the same run, its rows shared out.

    torchrun --nproc-per-node 8 scripts/pretrain.py SHARDS … --parallel fsdp

Every process makes the whole batch of a step (it is a function of the step alone) and takes every N-th row of it. The
loss of a step is a sum over the tokens of *all* rows over their number, which everyone knows beforehand, so gradients
just add up, and the result is that of one process, up to the order of the additions.

    ddp    each process holds the whole model; gradients are added up during the backward pass (Li et al. 2020,
           arXiv:2006.15704)
    fsdp   each holds a share of every weight, gradient and running mean, and gathers a layer's weights when it comes to
           it (Zhao et al. 2023, arXiv:2304.11277; PyTorch's fully_shard): for models that do not fit one card; a
           base in four bits stays whole in each

PyTorch averages gradients over processes; the loss is multiplied by their number, which makes the average the sum.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from luthier.core.errors import ConfigError
from luthier.core.training.batches import Batch

__all__ = ["Parallel", "Workers", "start_workers"]

Parallel = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class Workers:
    """The processes of a run; by default there is one."""

    rank: int = 0
    world: int = 1
    kind: Parallel = "ddp"
    group: Any = None
    """The process group that writes checkpoints, apart from the one that adds up gradients."""

    @property
    def main(self) -> bool:
        """Whether this is the process that logs and writes."""
        return self.rank == 0

    def share(self, batch: Batch) -> Batch:
        """This process's rows; as many for each, if need be rows of which nothing is trained."""
        if self.world == 1:
            return batch
        missing = -len(batch.ids_BT) % self.world
        return (batch.with_empty_rows(missing) if missing else batch).rows(slice(self.rank, None, self.world))

    def total(self, *values: float) -> list[float]:
        """Each value added up over all processes."""
        if self.world == 1:
            return list(values)
        import torch.distributed as dist

        sums = torch.tensor(values, dtype=torch.float64, device=_device())
        dist.all_reduce(sums)
        return sums.tolist()

    def agreed(self, wish: bool, alarm: bool) -> tuple[bool, bool]:
        """What the main process wishes, and whether any process raises the alarm."""
        if self.world == 1:
            return wish, alarm
        wishes, alarms = self.total(float(wish and self.main), float(alarm))
        return wishes > 0, alarms > 0

    def spread(self, model: nn.Module, loss_of: Callable[[nn.Module, Batch], Any]) -> Callable[[Batch], Any]:
        """The loss of a batch as a function that adds up gradients over all processes in its backward pass."""
        if self.world == 1 or self.kind == "fsdp":
            return lambda batch: loss_of(model, batch)
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(_Objective(model, loss_of))

    def quietly(self, objective: Any, quiet: bool) -> contextlib.AbstractContextManager[Any]:
        """No adding up yet: another piece of the same step follows."""
        if quiet and hasattr(objective, "no_sync"):
            return objective.no_sync()
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process does it before the others: what it leaves on disk, they find."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            import torch.distributed as dist

            dist.barrier()


class _Objective(nn.Module):
    """A loss as a module, which is what DistributedDataParallel takes."""

    def __init__(self, model: nn.Module, loss_of: Callable[[nn.Module, Batch], Any]) -> None:
        super().__init__()
        self.model, self.loss_of = model, loss_of

    def forward(self, batch: Batch) -> Any:
        return self.loss_of(self.model, batch)


def start_workers(kind: Parallel) -> Workers:
    """Join the processes that torchrun started; alone where it did not."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Workers(kind=kind)
    import torch.distributed as dist

    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return Workers(dist.get_rank(), world, kind, dist.new_group(backend="gloo"))


def shard(model: Any, workers: Workers, optimizer: str) -> None:
    """Share out a model's weights over all processes, layer by layer (fsdp); ddp and one process leave it whole."""
    if workers.world == 1 or workers.kind != "fsdp":
        return
    if optimizer != "adamw":
        raise ConfigError("--parallel fsdp: Muon and AdamW 8-bit need whole matrices; take --optimizer adamw, or ddp")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # The last product of a layer with biases is a view of itself; nothing is added to it in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    mesh = init_device_mesh(_device().type, (workers.world,))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for entry in ("hidden", "loss"):  # what a loss or a sample may call beside the model itself
        register_fsdp_forward_method(model, entry)


def whole_model(model: Any, make: Callable[[], Any]) -> Any:
    """The model with every weight in one piece: itself, or, where it is shared out, what `make` makes with its weights.

    All processes must call it."""
    if not any(hasattr(p, "full_tensor") for p in model.parameters()):
        return model
    weights = {name: _whole(p.detach()).cpu() for name, p in model.named_parameters()}
    whole = make()
    for name, p in whole.named_parameters():
        p.data = weights[name].to(p.dtype)
    return whole


def _whole(p: Any) -> Tensor:
    return p.full_tensor() if hasattr(p, "full_tensor") else p


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
