"""The loop. Pretraining and fine-tuning are this one function with different batches.

Each turn of it does, in this order: evaluate, save, stop, step, log.

**The loss** is a sum over all trained tokens of the step divided by their number, however the step is cut into
pieces:

    loss = Σ_pieces Σ_tokens −log p(token)  /  Σ_pieces Σ_tokens 1

Dividing piece by piece and averaging the quotients is not the same: a piece with 2 trained tokens would weigh as much
as one with 200. docs/training.md works an example. The number of trained tokens is known before the first forward
pass, so each piece's sum is divided by it at once and the gradients simply add up.

**Exact resume**: batches and learning rate are functions of the step, so the checkpoint (checkpoint.py) and the step
give back the run bit by bit. When checkpoints are written depends on the clock; what is in them, and what comes out,
does not.

**metrics.jsonl** gets a line a step: step, loss (nats a trained token), lr, grad_norm, tokens (trained so far); and a
line with validation_loss at each evaluation. There is no clock time in it: the same run writes the same bytes.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from luthier.core.artifacts import read_jsonl
from luthier.core.console import duration, progress, say
from luthier.core.errors import TrainingError
from luthier.core.training.batches import Batch, split_rows
from luthier.core.training.checkpoint import load_checkpoint, remove_checkpoints, save_checkpoint

__all__ = ["Fitted", "fit", "next_token_loss"]

METRICS = "metrics.jsonl"
STEPS_TO_GUESS = 5  # the first steps are slower; after these the time left is told


@dataclass
class Fitted:
    """What a run did; `seconds` and `read` (tokens through the model) count from the last start."""

    steps: int
    loss: float
    """Mean over the last tenth of the steps, nats a trained token."""
    validation_loss: float | None
    trained: int
    read: int
    seconds: float
    resumed_at: int


def next_token_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """The sum of −log p over the trained tokens of a batch, in nats."""
    total, _ = model.loss(batch.ids_BT, batch.labels_BT, document_BT=batch.document_BT)  # pyright: ignore[reportCallIssue]
    return total


def fit(
    model: torch.nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    batch_at: Callable[[int], Batch],
    *,
    steps: int,
    factor: Callable[[int], float],
    folder: Path,
    validation: Sequence[Batch] = (),
    evaluate_every: int = 0,
    save_every: float = 30.0,
    micro_batch: int = 0,
    max_grad_norm: float = 1.0,
    title: str = "Training",
    loss_of: Callable[[torch.nn.Module, Batch], torch.Tensor] = next_token_loss,
) -> Fitted:
    """Train `model` in place for `steps` steps, going on from a checkpoint in `folder` if there is one.

    `batch_at(step)` gives the whole batch of a step, `factor(step)` what the learning rates are multiplied by;
    `save_every` is in seconds, `micro_batch` the most rows at once (0: all). TrainingError: the loss is not a number.
    """
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    state = load_checkpoint(folder, model, optimizers) or {"step": 0, "trained": 0, "metrics_bytes": 0}
    start, trained, read = int(state["step"]), int(state["trained"]), 0
    if start:
        say(f"going on from step {start} of {steps}")
    weights = [p for p in model.parameters() if p.requires_grad]
    began = saved = time.monotonic()
    model.train()

    with _open_metrics(folder, state["metrics_bytes"]) as log, progress(title, steps - start, "steps") as advance:
        for step in range(start, steps + 1):
            # Evaluate. A resumed run did so before its checkpoint was written.
            last = step == steps
            due = step % evaluate_every == 0 if evaluate_every else False
            if validation and (last or due) and (step > start or start == 0):
                _write(log, {"step": step, "validation_loss": evaluate_loss(model, validation, loss_of)})

            # Save, when the clock says so.
            if step > start and not last and time.monotonic() - saved >= save_every:
                _sync(log)
                facts = {"trained": trained, "metrics_bytes": log.tell(), "position": f"batch {step}"}
                save_checkpoint(folder, step, model, optimizers, facts)
                saved = time.monotonic()

            # Stop.
            if last:
                break

            # Step: the whole batch's sum over its count, piece by piece.
            for optimizer, of in zip(optimizers, rates, strict=True):
                for group, rate in zip(optimizer.param_groups, of, strict=True):
                    group["lr"] = rate * factor(step)
            batch = batch_at(step)
            count, total = batch.trained, 0.0
            for piece in split_rows(batch, micro_batch):
                summed = loss_of(model, piece)
                (summed / max(count, 1)).backward()
                total += float(summed.detach())
            loss = total / max(count, 1)
            norm = float(torch.nn.utils.clip_grad_norm_(weights, max_grad_norm or math.inf, foreach=True))
            if not math.isfinite(loss) or not math.isfinite(norm):
                raise TrainingError(_not_a_number(step, loss, norm, batch))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            trained, read = trained + count, read + batch.ids_BT.numel()

            # Log.
            row = {"step": step + 1, "loss": loss, "lr": rates[0][0] * factor(step), "grad_norm": norm}
            _write(log, {**row, "tokens": trained})
            seconds = time.monotonic() - began
            advance(1, note=_note(loss, read, seconds, step + 1 - start, steps - start))
            if step + 1 - start == STEPS_TO_GUESS:
                left = duration((steps - step - 1) * seconds / STEPS_TO_GUESS)
                say(f"about {left} to go at {read / seconds:,.0f} tokens/s")
        _sync(log)

    model.eval()
    remove_checkpoints(folder)
    return _fitted(folder, steps, trained, read, time.monotonic() - began, start)


@torch.no_grad()
def evaluate_loss(
    model: torch.nn.Module, batches: Sequence[Batch], loss_of: Callable[[torch.nn.Module, Batch], torch.Tensor]
) -> float:
    """Mean −log p over the labels of all batches, in nats."""
    model.eval()
    total = sum(float(loss_of(model, batch)) for batch in batches)
    model.train()
    return total / max(1, sum(batch.trained for batch in batches))


# ---------------------------------------------------------------- the record


def _open_metrics(folder: Path, length: int) -> Any:
    """metrics.jsonl for appending, cut back to `length` bytes: a killed run wrote on after its checkpoint."""
    file = (folder / METRICS).open("ab")
    file.truncate(length)
    file.seek(0, os.SEEK_END)
    return file


def _write(log: Any, row: dict[str, Any]) -> None:
    log.write((json.dumps(row) + "\n").encode())
    log.flush()


def _sync(log: Any) -> None:
    log.flush()
    os.fsync(log.fileno())


def _fitted(folder: Path, steps: int, trained: int, read: int, seconds: float, start: int) -> Fitted:
    rows = list(read_jsonl(folder / METRICS))
    losses = [row["loss"] for row in rows if "loss" in row]
    tail = losses[-max(1, len(losses) // 10) :]
    validation = [row["validation_loss"] for row in rows if "validation_loss" in row]
    mean = sum(tail) / len(tail) if tail else math.nan
    return Fitted(steps, mean, validation[-1] if validation else None, trained, read, seconds, start)


def _note(loss: float, read: int, seconds: float, done: int, all_steps: int) -> str:
    left = (all_steps - done) * seconds / done
    return f"loss {loss:.3f}, {read / seconds:,.0f} tokens/s, {duration(left)} left"


def _not_a_number(step: int, loss: float, norm: float, batch: Batch) -> str:
    names = [str(name) for source in batch.sources for name in (source if isinstance(source, tuple) else (source,))]
    shown = ", ".join(dict.fromkeys(names[:12])) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return (
        f"step {step + 1}: loss {loss}, gradient norm {norm}: not a number, so training stopped\n"
        f"The step's documents: {shown or 'unknown'}\nLower the learning rate, or look at these documents."
    )
