"""The loop. Pretraining and fine-tuning are this one function with different batches.

Each turn of it does, in this order: evaluate, sample, save, stop, step, log.

**The loss** is a sum over all trained tokens of the step divided by their number, however the step is cut into
pieces:

    loss = Σ_pieces Σ_tokens −log p(token)  /  Σ_pieces Σ_tokens 1

Dividing piece by piece and averaging the quotients is not the same: a piece with 2 trained tokens would weigh as much
as one with 200. docs/training.md works an example. The number of trained tokens is known before the first forward
pass, so each piece's sum is divided by it at once and the gradients simply add up; over processes, too (parallel.py).

**Exact resume**: batches and learning rate are functions of the step, so the checkpoint (checkpoint.py) and the step
give back the run bit by bit. When checkpoints are written depends on the clock; what is in them, and what comes out,
does not.

**Spikes.** A loss far above those before it, or none at all (NaN), is seen before the step is made. Rolling back means:
to the last evaluation before it, leaving out the batches since then (Chowdhery et al. 2022, arXiv:2204.02311, §5.1).
Evaluations stand at fixed steps, so that this does not depend on the clock either.

**metrics.jsonl** gets a line a step: step, loss (nats a trained token), lr, grad_norm, tokens (trained so far); and a
line with validation_loss at each evaluation. There is no clock time in it: the same run writes the same bytes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from luthier.core.artifacts import read_json, read_jsonl
from luthier.core.console import duration, progress, say
from luthier.core.errors import TrainingError
from luthier.core.training.batches import Batch, named, split_rows
from luthier.core.training.checkpoint import (
    STATE,
    Checkpoints,
    ComputedOtherwise,
    agree,
    at_step,
    interrupts,
    load_checkpoint,
    newest,
    recover,
)
from luthier.core.training.curves import METRICS, Curves
from luthier.core.training.execution import (
    FIRST_SCALE,
    autocast,
    choices,
    device_of,
    has_compiler,
    matmul_speed,
    memory_used,
    prepare_model,
    rescale,
    unscale,
)
from luthier.core.training.loop_config import LoopConfig
from luthier.core.training.parallel import Workers
from luthier.core.training.runs import write_choices

__all__ = ["Fitted", "choose", "fit", "is_spike", "next_token_loss", "trained_tokens"]

CLOCK = "clock.jsonl"
STEPS_TO_GUESS = 5  # the first steps are slower; after these the time left is told
REMEMBERED, NEEDED = 64, 16  # losses that a spike is measured against, at most and at least
MOST_ROLLBACKS = 10


@dataclass
class Fitted:
    """What a run did; `seconds` and `read` (tokens through the model) count from the last start."""

    steps: int
    loss: float
    """Mean over the last tenth of the steps, nats a trained token."""
    validation_loss: float | None
    """Of the model that the run left: the last, or with `keep = "best"` the lowest."""
    trained: int
    read: int
    seconds: float
    resumed_at: int


@dataclass
class Place:
    """Where a run is: all that its checkpoints hold beside tensors."""

    step: int = 0
    trained: int = 0
    """Trained tokens so far."""
    metrics_bytes: int = 0
    """Length of metrics.jsonl."""
    skipped: int = 0
    """Batches left out by rollbacks: step s takes batch s + skipped."""
    losses: list[float] = field(default_factory=list)
    """The last losses, that a spike is told by."""
    mark: int = -1
    """The last evaluation, to which a spike rolls back; it is not made twice."""
    best_step: int = -1
    best_loss: float | None = None
    scale: float = 1.0
    """The loss scale of float16."""
    good: int = 0
    """Steps since it changed."""


LossOf = Callable[[torch.nn.Module, Batch], Any]  # a sum, or a sum and further sums by name that are logged beside it


def trained_tokens(batch: Batch) -> int:
    """What a sum over tokens is divided by."""
    return batch.trained


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
    loss_of: LossOf = next_token_loss,
    count_of: Callable[[Batch], int] = trained_tokens,
    config: LoopConfig | None = None,
    sample: Callable[[], str] | None = None,
    flops: float = 0.0,
    workers: Workers | None = None,
    until: int | None = None,
) -> Fitted:
    """Train `model` in place for `steps` steps, going on from a checkpoint in `folder` if there is one.

    `batch_at(step)` gives the whole batch of a step, `factor(step)` what the learning rates are multiplied by;
    `save_every` is in seconds (0: after every step), `micro_batch` the most rows at once (0: all), `sample()` a text
    that the model writes at each evaluation, `flops` the work of a token in FLOP, `until` an earlier end that leaves
    the checkpoints. `loss_of(model, piece)` is a sum, or a sum and further sums by name; `count_of(batch)` is
    what they are divided by, and the further quotients are logged beside the loss. TrainingError: the loss is not a
    number, or spikes and is to stop; the disk is full; a checkpoint from which going on would not be exact.
    KeyboardInterrupt: Ctrl-C or SIGTERM, after the step that is being made and its checkpoint.
    """
    config, workers, end = config or LoopConfig(), workers or Workers(), steps if until is None else until
    with workers.main_first():
        recover(folder)
    found = newest(folder)
    made = choose(read_json(found / STATE) if found else {}, found or folder, model, config, steps, micro_batch)
    if workers.main:
        write_choices(folder, made)
    prepare_model(model, config, made)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    at = _resume(folder, model, optimizers, config)
    start, read, turns, rollbacks, rolled, device = at.step, 0, 0, 0, False, device_of(model)
    if start:
        say(f"going on from step {start} of {steps}")
    if config.on_spike == "rollback" and not evaluate_every:
        raise TrainingError("--on-spike rollback goes back to an evaluation: give evaluate_every")
    weights = [p for p in model.parameters() if p.requires_grad]
    objective = workers.spread(model, loss_of)
    peak = matmul_speed(device, config.precision) * workers.world if flops and end - start > STEPS_TO_GUESS else 0.0
    began = saved = time.monotonic()
    model.train()

    with (
        _Metrics(folder, at.metrics_bytes, workers.main) as log,
        Checkpoints(folder, main=workers.main, group=workers.group) as checkpoints,
        Curves(config if workers.main else LoopConfig(), folder, start) as curves,
        progress(title, end - start, "steps") as advance,
        interrupts(workers.world) as interrupted,
    ):
        while True:
            step = at.step
            # Evaluate. A run that goes on or was rolled back did so before its checkpoint was written.
            due = step % evaluate_every == 0 if evaluate_every else False
            fresh = step > at.mark
            if validation and (due or step == steps) and fresh:
                held_out = evaluate_loss(model, validation, loss_of, count_of, workers=workers, config=config)
                curves.write(log.write({"step": step, "validation_loss": held_out}))
                if at.best_loss is None or held_out < at.best_loss:
                    at.best_step, at.best_loss = step, held_out

            # Sample.
            if sample is not None and (due or step == steps) and fresh:  # all processes write it, one says it
                say(f"step {step}: {sample()}")

            # Save: at evaluations where they are wanted later, otherwise when the clock or a person says so.
            marked = due and (config.keep != "last" or config.on_spike == "rollback")
            waits = save_every > 0 and checkpoints.busy  # the loop does not wait for the disk
            timed, stopped = workers.agreed(time.monotonic() - saved >= save_every and not waits, interrupted())
            timed = (timed or stopped) and step > start
            at.mark = step if due or step == steps else at.mark
            if ((marked and fresh) or rolled or timed) and (step < end or stopped):
                log.sync()
                checkpoints.wait()
                at.metrics_bytes = log.length
                facts = {**asdict(at), **made, "position": f"batch {step + at.skipped}"}
                checkpoints.save(step, model, optimizers, facts, _kept(config, folder, at))
                saved, rolled = time.monotonic(), False

            # Stop.
            if stopped:
                checkpoints.wait()
                raise KeyboardInterrupt
            if step >= end:
                break

            # Step: the whole batch's sum over its count, piece by piece.
            for optimizer, of in zip(optimizers, rates, strict=True):
                for group, rate in zip(optimizer.param_groups, of, strict=True):
                    group["lr"] = rate * factor(step)
            batch = batch_at(step + at.skipped)
            count, sums = count_of(batch), Counter[str]()
            pieces = list(split_rows(workers.share(batch), micro_batch))
            for number, piece in enumerate(pieces):
                with workers.quietly(objective, number + 1 < len(pieces)), autocast(config.precision, device):
                    summed, others = _loss_and_others(objective(piece.to(device)))
                    (summed * (at.scale * workers.world) / max(count, 1)).backward()
                sums.update({"loss": float(summed.detach()), **{name: float(x) for name, x in others.items()}})
            means = dict(zip(sums, (x / max(count, 1) for x in workers.total(*sums.values())), strict=True))
            loss = means.pop("loss")
            unscale(weights, at.scale)
            norm = _clip(weights, max_grad_norm)
            finite = math.isfinite(loss) and math.isfinite(norm)
            overflow = not finite and math.isfinite(loss) and config.precision == "fp16" and at.scale > 1

            # A spike or no number at all: go back, stop, or say so.
            if (not finite and not overflow) or is_spike(loss, at.losses):
                what = _spike(step, loss, norm, at, batch)
                if config.on_spike == "rollback" and rollbacks < MOST_ROLLBACKS:
                    rollbacks, rolled = rollbacks + 1, True
                    at = _roll_back(folder, model, optimizers, checkpoints, log, at, what)
                    advance(at.step - step)
                    continue
                what += f"\n{_spike_advice(config)}"
                if config.on_spike != "ignore" or not finite:
                    raise TrainingError(what)
                say(what)
            if not overflow:
                for optimizer in optimizers:
                    optimizer.step()
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            if config.precision == "fp16":
                at.scale, at.good = rescale(at.scale, at.good, finite)
            at.step, at.trained, read = step + 1, at.trained + batch.trained, read + batch.ids_BT.numel()
            at.losses = [*at.losses, loss][-REMEMBERED:]

            # Log.
            row = {"step": step + 1, "loss": loss, "lr": rates[0][0] * factor(step), "grad_norm": norm}
            curves.write(log.write({**row, **means, "tokens": at.trained, **({"overflow": True} if overflow else {})}))
            seconds, turns = time.monotonic() - began, turns + 1
            left = (end - at.step) * seconds / turns
            log.clock(at.step, seconds)
            advance(1, note=_note(loss, read / seconds, read * flops / seconds, peak, memory_used(device), left))
            if turns == STEPS_TO_GUESS:
                say(f"about {duration(left)} to go at {read / seconds:,.0f} tokens/s")
        log.sync()
        checkpoints.wait()

    model.eval()
    if until is None:
        _finish(checkpoints, model, optimizers, config, at)
    workers.wait()
    done = _fitted(folder, steps, at, config, read, time.monotonic() - began, start)
    workers.wait()  # all have read what the main process may now move
    return done


@torch.no_grad()
def evaluate_loss(
    model: torch.nn.Module,
    batches: Sequence[Batch],
    loss_of: LossOf,
    count_of: Callable[[Batch], int] = trained_tokens,
    *,
    workers: Workers | None = None,
    config: LoopConfig | None = None,
) -> float:
    """The mean loss of all batches: of the next token, −log p over all labels, in nats."""
    workers, device = workers or Workers(), device_of(model)
    model.eval()
    with autocast(config.precision if config else "fp32", device):
        parts = (_loss_and_others(loss_of(model, workers.share(batch).to(device))) for batch in batches)
        total = sum(float(loss) for loss, _ in parts)
    model.train()
    return workers.total(total)[0] / max(1, sum(count_of(batch) for batch in batches))


def _loss_and_others(result: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return result if isinstance(result, tuple) else (result, {})


# ---------------------------------------------------------------- spikes


def is_spike(loss: float, before: Sequence[float]) -> bool:
    """Whether a loss is more than 1 nat and 6 standard deviations above the mean of those before it."""
    if len(before) < NEEDED:
        return False
    mean = sum(before) / len(before)
    spread = math.sqrt(sum((x - mean) ** 2 for x in before) / len(before))
    return loss > mean + max(1.0, 6 * spread)


def _spike(step: int, loss: float, norm: float, at: Place, batch: Batch) -> str:
    before = f" after {sum(at.losses) / len(at.losses):.3f} on average" if at.losses else ""
    wrong = "a spike" if math.isfinite(loss) and math.isfinite(norm) else "not a number"
    return (
        f"step {step + 1}: loss {loss:.6g}{before}, gradient norm {norm:.6g}: {wrong}\n"
        f"Batch {step + at.skipped}, of the documents: {named(batch)}"
    )


def _spike_advice(config: LoopConfig) -> str:
    if config.on_spike == "rollback":
        return f"Rolled back {MOST_ROLLBACKS} times already: it is hardly the documents; lower the learning rate"
    return "Lower the learning rate, look at these documents, or go on without them: --on-spike rollback"


def _roll_back(
    folder: Path, model: torch.nn.Module, optimizers: Any, checkpoints: Checkpoints, log: Any, at: Place, what: str
) -> Place:
    """Back to the last evaluation, leaving out all batches from there to the spike; said here and in metrics.jsonl."""
    checkpoints.wait()
    state = load_checkpoint(at_step(folder, at.mark), model, optimizers)
    checkpoints.drop(after=at.mark)
    old, new = at, _place(state)
    new.skipped = old.skipped + old.step + 1 - new.step
    say(f"{what}\nRolled back to step {new.step}; the next batch is {new.step + new.skipped}")
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    log.cut(new.metrics_bytes)
    log.write({"step": new.step, "rolled_back_from": old.step + 1, "batches_left_out": new.skipped})
    return new


# ---------------------------------------------------------------- checkpoints


def _place(state: dict[str, Any]) -> Place:
    return Place(**{name: state[name] for name in Place.__dataclass_fields__ if name in state})


def choose(
    state: dict[str, Any], where: Path, model: torch.nn.Module, config: LoopConfig, steps: int, micro_batch: int
) -> dict[str, Any]:
    """How this run computes: as the `state` of its newest checkpoint says (empty: none), unless somebody forces
    something else (checkpoint.py)."""
    made = {**choices(model, config, steps), "micro_batch": micro_batch}
    if not state:
        return made
    forced = {"micro_batch"} | ({"threads"} if config.threads else set())
    forced |= {"compile"} if config.compile != "auto" else set()
    agree(state, made, forced, where, config.allow_inexact)
    made |= {name: state[name] for name in ("threads", "compile") if name in state and name not in forced}
    torch.set_num_threads(made["threads"])
    if made["compile"] == "on" and device_of(model).type == "cpu" and not has_compiler():
        raise ComputedOtherwise(
            f"{where} was written by compiled layers, and there is no C++ compiler here (g++, on macOS clang++, or "
            "what CXX names)\nInstall one, or go on otherwise: --compile off --allow-inexact.",
            "compiled layers then, no C++ compiler now",
        )
    return made


def _resume(folder: Path, model: torch.nn.Module, optimizers: Any, config: LoopConfig) -> Place:
    """The newest checkpoint put in place; a fresh start where there is none."""
    found = newest(folder)
    if found is None:
        torch.manual_seed(getattr(config, "seed", 0))  # for a loss that draws numbers: dropout, say
        return Place(scale=FIRST_SCALE if config.precision == "fp16" else 1.0)
    at = _place(load_checkpoint(found, model, optimizers))
    if config.on_spike == "rollback" and not at_step(folder, at.mark).is_dir():
        at.mark = at.step  # begun without rollback: the evaluation's checkpoint was not kept
    return at


def _kept(config: LoopConfig, folder: Path, at: Place) -> set[int]:
    """The steps whose checkpoints stay beside the newest."""
    kept = {at.mark} if config.on_spike == "rollback" else set()
    if config.keep == "best":
        kept.add(at.best_step)
    if config.keep == "every":
        kept |= {int(path.name.removeprefix("step-")) for path in folder.glob("step-*") if _is_mark(path)}
    return kept


def _is_mark(path: Path) -> bool:
    state = read_json(path / "state.json") if (path / "state.json").is_file() else {}
    return state.get("step") == state.get("mark")


def _finish(checkpoints: Checkpoints, model: torch.nn.Module, optimizers: Any, config: LoopConfig, at: Place) -> None:
    """The model that was best, where that is wanted; checkpoints that are not wanted any more deleted."""
    best = at_step(checkpoints.folder, at.best_step)
    if config.keep == "best" and at.best_loss is not None and at.best_step < at.step and best.is_dir():
        load_checkpoint(best, model, optimizers)
        say(f"the model is that of step {at.best_step}, whose {at.best_loss:.3f} on held-out text is the lowest")
    kept = _kept(config, checkpoints.folder, at) if config.keep == "every" else set()
    checkpoints.remove(kept - {at.step, 0})


# ---------------------------------------------------------------- the record


class _Metrics:
    """metrics.jsonl, cut back at the start to `length` bytes: a killed run wrote on after its checkpoint. Only the main
    process writes."""

    def __init__(self, folder: Path, length: int, main: bool) -> None:
        self.path = folder / METRICS
        self.file: Any = self.path.open("ab") if main else None
        self.told = 0.0
        self.cut(length)

    @property
    def length(self) -> int:
        return self.file.tell() if self.file else 0

    def cut(self, length: int) -> None:
        if self.file:
            self.file.truncate(length)
            self.file.seek(0, os.SEEK_END)

    def clock(self, step: int, seconds: float) -> None:
        """Say in clock.jsonl, once a second, how long the run has taken; no two runs share that, so it is apart."""
        if self.file and seconds - self.told >= 1:
            self.told = seconds
            self._try(lambda: self._tell({"step": step, "seconds": round(seconds, 2)}))

    def _tell(self, row: dict[str, Any]) -> None:
        with self.path.with_name(CLOCK).open("a") as file:
            file.write(json.dumps(row) + "\n")

    def write(self, row: dict[str, Any]) -> dict[str, Any]:
        if self.file:
            self._try(lambda: (self.file.write((json.dumps(row) + "\n").encode()), self.file.flush()))
        return row

    def sync(self) -> None:
        if self.file:
            self._try(lambda: (self.file.flush(), os.fsync(self.file.fileno())))

    def _try(self, do: Callable[[], Any]) -> None:
        try:
            do()
        except OSError as error:
            last = newest(self.path.parent)
            raise TrainingError(
                f"{self.path} cannot be written: {error.strerror}\n{f'{last.name} is whole; ' if last else ''}make "
                "room and start the same command again"
            ) from error

    def __enter__(self) -> _Metrics:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if self.file:
            # What a full disk did not take is tried once more here; that it did not is said already
            with contextlib.suppress(OSError) if kind else contextlib.nullcontext():
                self.file.close()


def _clip(weights: list[torch.nn.Parameter], most: float) -> float:
    norm: Any = torch.nn.utils.clip_grad_norm_(weights, most or math.inf, foreach=True)
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def _fitted(folder: Path, steps: int, at: Place, config: LoopConfig, read: int, seconds: float, start: int) -> Fitted:
    rows = list(read_jsonl(folder / METRICS))
    losses = [row["loss"] for row in rows if "loss" in row]
    tail = losses[-max(1, len(losses) // 10) :]
    validation = [row["validation_loss"] for row in rows if "validation_loss" in row]
    mean = sum(tail) / len(tail) if tail else math.nan
    held_out = at.best_loss if config.keep == "best" else validation[-1] if validation else None
    return Fitted(steps, mean, held_out, at.trained, read, seconds, start)


def _note(loss: float, speed: float, work: float, peak: float, memory: int, left: float) -> str:
    """The live line: speed in tokens/s, work in FLOP/s and the most the machine can do, memory in bytes."""
    used = f", {work / peak:.0%} of the machine" if peak else ""
    return f"loss {loss:.3f}, {speed:,.0f} tokens/s{used}, {memory / 1e9:.1f} GB, {duration(left)} left"
