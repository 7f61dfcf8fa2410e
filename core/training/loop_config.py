"""How a run is carried out: what pretraining and fine-tuning have in common.

The fields of this dataclass are part of both stages' settings. But for `precision` and `parallel`, none of them is part
of *what* is made: how often a checkpoint is written, what happens at a spike or who else gets the curve leaves the same
weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from luthier.core.errors import ConfigError

__all__ = ["UNSEEN", "Keep", "LoopConfig", "OnSpike", "Precision", "check_rate"]

Keep = Literal["last", "best", "every"]
OnSpike = Literal["ignore", "stop", "rollback"]
Precision = Literal["fp32", "bf16", "bf16-pure", "fp16"]


@dataclass(frozen=True)
class LoopConfig:
    """How a run is carried out."""

    precision: Precision = "fp32"
    """Number format: fp32; bf16, products in bfloat16 and weights in float32 (autocast); bf16-pure, weights in bfloat16
    too, rounded by chance (AdamW only); fp16, products in float16 with a scaled loss."""
    recompute: bool = False
    """Keep only what goes into each layer and compute the rest again in the backward pass (activation checkpointing,
    Chen et al. 2016, arXiv:1604.06174): a third more work, a fraction of the memory, the same result."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: ddp, each process holds the whole model; fsdp, a share of it (AdamW only)."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the layers with torch.compile: on takes half a minute before the first step; auto is off on a CPU and for
    short runs. A resumed run does as its checkpoint says."""
    keep: Keep = "last"
    """Checkpoints: last, only the newest and none after the run; best, the model becomes the one with the lowest loss
    on held-out text; every, one at each evaluation stays, for `luthier verify`."""
    on_spike: OnSpike = "ignore"
    """What a loss far above those before does: ignore says so and goes on; stop; rollback goes back to the evaluation
    before it and leaves out the batches since then. A loss that is not a number stops where it is not rolled back."""
    save_every: float = 30.0
    """Seconds between checkpoints, from which an interrupted run goes on; no effect on the result."""
    sample: str = ""
    """A beginning for the model to go on with at every evaluation; empty: none."""
    tensorboard: bool = False
    """Write TensorBoard's event files too, in the folder tensorboard of the model (pip install tensorboard)."""
    wandb: str = ""
    """Name of a Weights & Biases project to send the curve to (pip install wandb; `wandb login` first)."""
    threads: int = 0
    """CPU threads; 0: OMP_NUM_THREADS, or all cores if a product is faster with them than with one. Another number
    gives another rounding, so that a resumed run takes its checkpoint's."""
    allow_inexact: bool = False
    """Go on from a checkpoint although threads, compiling, kernels, number of processes or PyTorch differ: the result
    is then equal up to rounding only."""

    def __post_init__(self) -> None:
        check_numbers(self, zero_or_more=("save_every", "threads"))


def check_numbers(
    config: Any, *, positive: Sequence[str] = (), zero_or_more: Sequence[str] = (), shares: Sequence[str] = ()
) -> None:
    """ConfigError for a setting out of its range, or no number; `shares` are 0 to below 1, `warmup` is to 1. None is
    left out."""
    ranges = (
        (positive, lambda x: 0 < x < math.inf, "more than 0"),
        (zero_or_more, lambda x: 0 <= x < math.inf, "0 or more"),
        (shares, lambda x: 0 <= x < 1, "0 to below 1"),
        (["warmup"] * hasattr(config, "warmup"), lambda x: 0 <= x <= 1, "0 to 1"),
    )
    for names, inside, expected in ranges:
        for name in names:
            value = getattr(config, name)
            if value is not None and not inside(value):
                raise ConfigError(f"{name} = {value}: expected {expected}")


def check_rate(rate: float | None) -> None:
    """ConfigError for a learning rate that learns nothing, or away from the text."""
    if rate is not None and not 0 < rate < math.inf:
        raise ConfigError(f"learning_rate = {rate:g}: expected more than 0; left out, it follows the model's width")


# Fields that do not say which model is made. An interrupted run goes on although they differ.
UNSEEN = frozenset(
    ("recompute", "compile", "keep", "on_spike", "save_every", "sample", "tensorboard", "wandb", "threads")
) | {"allow_inexact", "micro_batch"}
