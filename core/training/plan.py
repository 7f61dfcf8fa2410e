"""What is said before the first step: everything that was derived, why, and whether it fits.

    parameters     from the shape (models/config.py)
    steps          from steps, tokens or epochs
    work           6 FLOP a parameter and token, and attention's share (models/config.py); the time is that work at half
                   of what a product of two matrices reaches on this machine, measured now
    memory         weights, gradients, running means, and what the forward pass keeps

`luthier pretrain --plan` says only this. What a tuning run says beside it is in finetune.py.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.console import counted, duration, say

if TYPE_CHECKING:
    from luthier.core.training.batches import Batch

__all__ = ["pieces_said", "quiet_unless", "say_held_out", "say_machine", "say_plan", "say_work", "training_memory"]

USUAL = 0.5  # of a matrix product's speed: what training reached in docs/benchmarks
SHOWN = 96  # tokens of the first batch


@contextlib.contextmanager
def quiet_unless(main: bool) -> Iterator[None]:
    """Only the main of several processes tells a person anything."""
    if main:
        yield
        return
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


def say_plan(prepared: Any, config: Any) -> None:
    """The derived numbers of a run on stderr, and the beginning of its first batch."""
    from luthier.core.training.pretrain_config import rate_of
    from luthier.models.config import parameter_count

    shape, run, text = prepared.shape, prepared.arguments, prepared.text
    assert text is not None
    steps = run["steps"]
    own, share = text.parts[0]
    passes = steps * config.batch_size * share / len(own)
    first = run["batch_at"](0)
    say(
        f"  model        {parameter_count(shape):,} parameters: {counted(shape.num_hidden_layers, 'layer')} of width "
        f"{shape.hidden_size}, vocabulary {shape.vocab_size:,}"
    )
    others = "".join(f", {w.total:,} of {_kind(w)} ({s:.0%} of the windows)" for w, s in text.parts[1:])
    say(f"  text         {own.total:,} tokens in {counted(len(own.chosen), 'document')}{others}")
    why = "given" if config.steps else "from --tokens" if config.tokens else f"{config.epochs:g} epochs"
    say(
        f"  steps        {steps:,} of {config.batch_size} × {prepared.context} tokens"
        f"{pieces_said(config.batch_size, config)} ({why}): {passes:.1f} passes over the text"
    )
    say_held_out(run)
    say_work(run, config, shape, first, parameter_count(shape))
    say(f"  optimizer    {config.optimizer}, learning rate {rate_of(config, shape):.1e}, {config.schedule}")
    if config.mup_base_width:
        _say_rates(run, config.mup_base_width, shape)
    say_machine(prepared.model, config)
    rows, width = first.ids_BT.shape
    say(f"  first batch  {counted(rows, 'row')} of {width} tokens, {first.trained:,} of them trained")
    _show(prepared, first)


def _say_rates(run: dict[str, Any], base_width: int, shape: Any) -> None:
    """µP's learning rates, and what they take for granted."""
    head, name = ("last norm", "norm.weight") if shape.tie_word_embeddings else ("head", "lm_head.weight")
    weight, groups = run["model"].get_parameter(name), [g for o in run["optimizers"] for g in o.param_groups]
    rate = next(group["lr"] for group in groups if any(p is weight for p in group["params"]))
    say(
        f"               µP: layers' matrices {groups[0]['lr']:.2g}, {head} {rate:.2g}, for the rate was tuned at "
        f"width {base_width} (with {shape.num_hidden_layers} layers and heads of {shape.head_size}, as here)"
    )


def pieces_said(rows: int, config: Any) -> str:
    """Into how many pieces a step's rows are cut, where they are."""
    pieces = -(-rows // config.micro_batch) if config.micro_batch else 1
    return f", each in {pieces} pieces" if pieces > 1 else ""


def say_held_out(run: dict[str, Any]) -> None:
    """What the loss is measured on beside the training text, and how often."""
    measured, steps = sum(batch.trained for batch in run["validation"]), run["evaluate_every"]
    often = f"every {steps:,} steps" if steps > 1 else "at every step"
    said = f"{measured:,} tokens, measured {often}" if measured else "nothing: only the training loss is measured"
    say(f"  held out     {said}")


def say_work(run: dict[str, Any], config: Any, shape: Any, first: Batch, trained: int, frozen: int = 0) -> None:
    """What a run costs in time and memory; `first` stands for all its batches."""
    from luthier.core.training.execution import device_of, matmul_speed, memory_free
    from luthier.core.training.runs import threads_said

    device, tokens = device_of(run["model"]), run["steps"] * first.ids_BT.numel()
    work, speed = run["flops"] * tokens, matmul_speed(device, config.precision)
    say(
        f"  work         {tokens:,} tokens, {work / 1e12:,.1f} TFLOP, {threads_said()}; about "
        f"{duration(work / speed / USUAL)} at {USUAL:.0%} of the {speed / 1e9:,.0f} GFLOP/s of a matrix product here"
    )
    # The weights are among what is needed, and no longer among what is free
    held = sum(t.nbytes for t in (*run["model"].parameters(), *run["model"].buffers()) if not t.is_meta)
    need, free = training_memory(shape, config, first, trained, frozen), memory_free(device) + held
    say(f"  memory       about {need / 1e9:.1f} GB{_fits(shape, config, first, trained, frozen, free)}")


def say_machine(model: Any, config: Any) -> None:
    """The number format, and which kernels compute."""
    from luthier.core.training.execution import device_of, kernels_said

    say(f"  precision    {config.precision}; kernels {kernels_said(device_of(model))}")


def training_memory(shape: Any, config: Any, batch: Batch, trained: int, frozen: int = 0) -> int:
    """Bytes that a run needs, roughly: `trained` weights with what training keeps of them, `frozen` bytes of others,
    the model's own estimate of a forward pass, less what recomputing saves, and the libraries."""
    from luthier.models.config import training_bytes

    rows = min(config.micro_batch or len(batch.ids_BT), len(batch.ids_BT))
    tokens = rows * batch.ids_BT.shape[1]
    kept = training_bytes(shape, tokens) - training_bytes(shape, 0)
    if config.recompute:  # one layer at a time, and the input of each
        kept = kept // shape.num_hidden_layers + 4 * tokens * shape.num_hidden_layers * shape.hidden_size
    # A weight, its gradient and two means in float32 whatever the weight is: AdamW's, and the most, for Muon keeps one
    weight = (4 if config.precision == "bf16-pure" else 8) + (2 if config.optimizer == "adamw-8bit" else 8)
    if config.precision != "fp32":
        kept //= 2
    return weight * trained + frozen + kept + (300 << 20)


def _fits(shape: Any, config: Any, batch: Batch, trained: int, frozen: int, free: int) -> str:
    """Whether a run fits; if it does not, the first change that makes it fit, from what costs the least time."""
    if not free or training_memory(shape, config, batch, trained, frozen) <= free:
        return f" of the {free / 1e9:.1f} GB that are free" if free else ""
    pieces = [rows for rows in (1 << i for i in range(20, -1, -1)) if rows < (config.micro_batch or len(batch.ids_BT))]
    ways = [
        (rows, again) for again in dict.fromkeys((config.recompute, True)) for rows in (config.micro_batch, *pieces)
    ]
    for rows, again in ways:
        changed = replace(config, micro_batch=rows, recompute=again)
        less = training_memory(shape, changed, batch, trained, frozen)
        if less <= free:
            flags = [f"--micro-batch {rows}"] * (rows != config.micro_batch)
            flags += ["--recompute"] * (again != config.recompute)
            return f", but only {free / 1e9:.1f} GB are free: {' '.join(flags)} needs about {less / 1e9:.1f} GB"
    return f", but only {free / 1e9:.1f} GB are free, and smaller pieces do not fit either: take a smaller model"


def _kind(windows: Any) -> str:
    return "general text" if windows.number % 2 else "other shards"


def _show(prepared: Any, batch: Batch) -> None:
    """The beginning of the first row with the trained tokens marked, and where it comes from."""
    from rich.console import Console

    from luthier.core.show.conversations import show_example
    from luthier.core.training.batches import IGNORED, named

    if prepared.tokenizer is None:
        say(f"               ids {' '.join(map(str, batch.ids_BT[0, :12].tolist()))} …, from {named(batch, 3)}")
        return
    labels = batch.labels_BT[0, :SHOWN]
    ids = labels.where(labels != IGNORED, batch.ids_BT[0, :SHOWN])
    show_example(prepared.tokenizer, ids, labels != IGNORED, Console(stderr=True, highlight=False))
    say(f"               from {named(batch, 3)}")
