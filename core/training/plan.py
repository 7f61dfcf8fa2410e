"""What is said before the first step: everything that was derived, why, and whether it fits.

    parameters     from the shape (models/config.py)
    steps          from steps, tokens or epochs
    work           6 FLOP a parameter and token, and attention's share (models/config.py), what recomputing makes again,
                   Muon's iteration, and measuring on held-out text. The time is that work at half of what a product of
                   two matrices reaches on this machine, measured now. Small steps wait for more than products, and of
                   cards and half precision nothing is known: there it is the least
    memory         weights, gradients, running means, what the forward pass keeps, a checkpoint's copy, the libraries.
                   The numbers in it are measured (docs/training.md)

`luthier pretrain --plan` says only this. What a tuning run says beside it is in finetune.py.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.console import counted, duration, say

if TYPE_CHECKING:
    from luthier.core.training.batches import Batch

__all__ = ["pieces_said", "quiet_unless", "say_held_out", "say_machine", "say_plan", "say_work", "training_memory"]

USUAL = 0.5  # of a matrix product's speed: training in float32 reached 0.57 and more in docs/benchmarks, …
NARROWEST, FEWEST = 256, 1024  # … where the models are as wide as this at least, and as many tokens computed at once
LIBRARIES = 550 << 20  # PyTorch, Numba and the loops that it compiled
BY_CHANCE = 64  # bytes a number of the largest weight, while it is rounded by chance on a CPU (kernels/adamw.py)
NF4 = 0.52  # bytes of a weight in four bits, with its scale
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
    passes = steps * config.batch_size * prepared.context * share / own.total
    first = run["batch_at"](0)
    say(
        f"  model        {parameter_count(shape):,} parameters: {counted(shape.num_hidden_layers, 'layer')} of width "
        f"{shape.hidden_size}, vocabulary {shape.vocab_size:,}"
    )
    others = "".join(f", {w.total:,} of {_kind(w)} ({s:.0%} of the windows)" for w, s in text.parts[1:])
    say(f"  text         {own.total:,} tokens in {counted(len(own.chosen), 'document')}{others}")
    why = "given" if config.steps else "from --tokens" if config.tokens else counted(config.epochs, "epoch")
    say(
        f"  steps        {steps:,} of {config.batch_size:,} × {prepared.context:,} tokens"
        f"{pieces_said(config.batch_size, config)} ({why}): {passes:,.{1 if passes > 0.1 else 4}f} passes over the text"
    )
    say_held_out(run)
    say_work(run, config, shape, first, parameter_count(shape))
    say(f"  optimizer    {config.optimizer}, learning rate {rate_of(config, shape):.1e}, {config.schedule}")
    if config.mup_base_width:
        _say_rates(run, config.mup_base_width, shape)
    say_machine(prepared.model, config)
    rows, width = first.ids_BT.shape
    say(f"  first batch  {counted(rows, 'row')} of {counted(width, 'token')}, {first.trained:,} of them trained")
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
    work, speed = _work(run, config, shape, first), matmul_speed(device, config.precision)
    seconds, card = work / speed / USUAL, device.type == "cuda"
    small = card or shape.hidden_size < NARROWEST or _tokens_at_once(config, first) < FEWEST
    small = small or config.precision != "fp32"
    many, much = counted(tokens, "token"), f"{work / 1e12:,.{1 if work > 1e11 else 4}f} TFLOP"
    say(
        f"  work         {many}, {much}, {threads_said()}; {'at least' if small else 'about'} {duration(seconds)} at "
        f"{USUAL:.0%} of the {speed / 1e9:,.0f} GFLOP/s of a matrix product here"
    )
    # The weights are among what is needed, and no longer among what is free
    held = sum(t.nbytes for t in (*run["model"].parameters(), *run["model"].buffers()) if not t.is_meta)
    saves = not card and (seconds > config.save_every or config.keep != "last" or config.on_spike == "rollback")
    where = {"saves": saves, "card": card}
    need, free = training_memory(shape, config, first, trained, frozen, **where), memory_free(device) + held
    say(f"  memory       about {need / 1e9:,.1f} GB{_fits(shape, config, first, trained, frozen, free, **where)}")


def _work(run: dict[str, Any], config: Any, shape: Any, first: Batch) -> float:
    """FLOP of a whole run."""
    from luthier.models.config import flops_per_token

    steps, every = run["steps"], run["evaluate_every"]
    forward = flops_per_token(shape, first.ids_BT.shape[1])
    once = (run["flops"] + forward * config.recompute) * first.ids_BT.numel() + _muon_work(run["optimizers"])
    times = steps // every + 1 + (steps % every > 0)  # at its multiples, zero included, and at the end
    return steps * once + times * forward * sum(batch.ids_BT.numel() for batch in run["validation"])


def _muon_work(optimizers: Any) -> float:
    """FLOP of Muon's five turns of three products (kernels/muon.py): as many for one token as for thousands."""
    from luthier.core.training.optimizers import Muon

    groups = [
        group["params"] for optimizer in optimizers if isinstance(optimizer, Muon) for group in optimizer.param_groups
    ]
    sides = [sorted(p.shape) for params in groups for p in params]
    return sum(5 * (4.0 * short**2 * long + 2.0 * short**3) for short, long in sides)


def say_machine(model: Any, config: Any) -> None:
    """The number format, and which kernels compute."""
    from luthier.core.training.execution import device_of, kernels_said

    say(f"  precision    {config.precision}; kernels {kernels_said(device_of(model))}")


def _tokens_at_once(config: Any, batch: Batch) -> int:
    rows, width = batch.ids_BT.shape
    return min(config.micro_batch or rows, rows) * width


def training_memory(
    shape: Any, config: Any, batch: Batch, trained: int, frozen: int = 0, *, saves: bool = False, card: bool = False
) -> int:
    """Bytes that a run needs, roughly: `trained` weights with what training keeps of them, `frozen` bytes of others,
    what a forward pass keeps, and the libraries; and if it `saves` on the way, the copy that is written then."""
    from luthier.models.config import parameter_count, training_bytes

    tokens, layers = _tokens_at_once(config, batch), shape.num_hidden_layers
    kept = training_bytes(shape, tokens) - training_bytes(shape, 0)
    if config.precision != "fp32":  # norms and sums stay in float32
        kept = kept * 3 // 4
    if getattr(config, "lora_rank", 0):  # measured: three products and a sum for each one leave more gaps
        kept = kept * 3 // 2
    if config.recompute:  # the input of each layer, and one layer with its gradients beside it
        kept = min(kept, 2 * (kept // layers + 4 * tokens * layers * shape.hidden_size))
    ends = 0 if _adapters_alone(config) else parameter_count(shape) - parameter_count(shape, embedding=False)
    inner = max(0, trained - ends)
    # Two means in float32 whatever the weight is: AdamW's; Muon keeps one and works with as much. Of 8 bits they are in
    # the layers only
    pure = config.precision == "bf16-pure"
    weight, means = 2 if pure else 4, 8 * trained
    means -= 6 * inner * (config.optimizer == "adamw-8bit")
    copied = weight * trained + means - 4 * inner * (config.optimizer == "muon")
    whole = 3 * 8 * batch.ids_BT.numel()  # ids, labels and documents of all rows, however few are computed at once
    rounding = BY_CHANCE * shape.hidden_size * max(shape.vocab_size * (ends > 0), shape.intermediate_size) * pure
    at_work = kept + whole + rounding * (not card) + LIBRARIES
    return 2 * weight * trained + means + copied * saves + frozen + at_work


def _adapters_alone(config: Any) -> bool:
    return bool(getattr(config, "lora_rank", 0)) and not config.train_embedding


def _fits(shape: Any, config: Any, batch: Batch, trained: int, frozen: int, free: int, **where: bool) -> str:
    """Whether a run fits; if it does not, the first change that makes it fit: of those with the same result the one
    that costs the least time, then those of another result."""
    if not free or training_memory(shape, config, batch, trained, frozen, **where) <= free:
        return f" of the {free / 1e9:.1f} GB that are free" if free else ""
    pieces = [rows for rows in (1 << i for i in range(20, -1, -1)) if rows < (config.micro_batch or len(batch.ids_BT))]
    same = list(product(dict.fromkeys((config.recompute, True)), (config.micro_batch, *pieces)))
    for (change, count, others), (again, rows) in product(_changes(shape, config, trained, frozen), same):
        change = {"micro_batch": rows, "recompute": again, **change}
        less = training_memory(shape, replace(config, **change), batch, count, others, **where)
        if less <= free:
            changed = {name: value for name, value in change.items() if value != getattr(config, name)}
            flags = (
                f"--{name.replace('_', '-')}" + f" {value}" * (value is not True) for name, value in changed.items()
            )
            return f", but only {free / 1e9:.1f} GB are free: {' '.join(flags)} needs about {less / 1e9:.1f} GB"
    return f", but only {free / 1e9:.1f} GB are free, and no other setting fits either: take a smaller model"


def _changes(shape: Any, config: Any, trained: int, frozen: int) -> Iterator[tuple[dict[str, Any], int, int]]:
    """Settings of another result with less memory, from rounding over what the optimizer keeps to what is trained: what
    to change, how many weights are trained then, and the bytes of the others."""
    whole = config.parallel != "fsdp"  # which takes neither NF4 nor states of one byte
    half = {"precision": "bf16"} if config.precision == "fp32" else {}
    byte = {"optimizer": "adamw-8bit"} if whole and config.precision != "bf16-pure" else {}
    for change in ({}, half, byte, {**half, **byte}):
        yield change, trained, frozen
    quantized = getattr(config, "quantize", "none") != "none"
    if not quantized:
        yield {"precision": "bf16-pure", "optimizer": "adamw"}, trained, frozen // 2
    if not hasattr(config, "lora_rank"):
        return
    rank = config.lora_rank or 8
    adapters = trained if config.lora_rank else _adapter_weights(shape, rank)
    if not config.lora_rank:
        for change in ({}, half):
            yield {"lora_rank": rank, **change}, adapters, 4 * trained
    if whole and not quantized:
        for change in ({}, half):
            yield {"lora_rank": rank, "quantize": "nf4", **change}, adapters, _quantized_bytes(shape)


def _adapter_weights(shape: Any, rank: int) -> int:
    """Weights of adapters on all products of the layers (models/lora.py): A and B of each."""
    C, F = shape.hidden_size, shape.intermediate_size
    q, kv = shape.num_attention_heads * shape.head_size, shape.num_key_value_heads * shape.head_size
    return rank * shape.num_hidden_layers * (2 * (C + q) + 2 * (C + kv) + (2 + shape.gated) * (C + F))


def _quantized_bytes(shape: Any) -> int:
    """Bytes of a model whose layers' products lie in four bits."""
    from luthier.models.config import parameter_count

    inner = parameter_count(shape, embedding=False)
    return int(NF4 * inner) + 4 * (parameter_count(shape) - inner)


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
