"""Verify: is this model what its run says it is? Stretches of the run, drawn at random, are trained once more.

A stretch lies between two checkpoints that were kept (`--keep every`), or begins at the first step, or ends with the
finished model. It is right if every line of metrics.jsonl comes out the same, byte for byte, and so do the weights at
its end and what the optimizer keeps of them there. A reviewer thus checks a run in the time of a few stretches; what is
wrong is found at the first step that differs.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from luthier.core.artifacts import read_json, read_jsonl
from luthier.core.console import say
from luthier.core.errors import ConfigError, InputError
from luthier.core.training.replay import Run, beginning_at, checkpoints_of, open_run, run_until
from luthier.core.training.runs import RUN

__all__ = ["Stretch", "Verified", "verify"]

OPTIMIZER = "the optimizer's "  # means, as "0.12.exp_avg": of the first optimizer, of its twelfth weight


@dataclass
class Stretch:
    """A part of a run that was made again, from `start` to `end` steps."""

    start: int
    end: int
    differs_at: int | None = None
    """The first step whose line in metrics.jsonl came out otherwise."""
    differs_in: str = ""
    """What of that line, with both numbers."""
    weights: str = ""
    """The first weight that differs at the end; empty if none does."""
    compared: bool = True
    """Whether there were weights to compare at the end."""

    @property
    def equal(self) -> bool:
        """Whether the stretch came out the same."""
        return self.differs_at is None and not self.weights


@dataclass
class Verified:
    """What `verify` found."""

    folder: Path
    stretches: list[Stretch] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether all stretches came out the same."""
        return all(stretch.equal for stretch in self.stretches)

    def __str__(self) -> str:
        lines = []
        for s in self.stretches:
            weights = "losses and weights" if s.compared else "losses (no weights are kept at its end)"
            found = f"{weights} bit-equal"
            if s.differs_at is not None:
                found = f"DIFFERS, first at step {s.differs_at}: {s.differs_in}"
            elif s.weights:
                found = f"DIFFERS: every loss is the same, but {s.weights} is another at the end"
            lines.append(f"steps {s.start + 1} to {s.end}: {found}")
        return "\n".join(lines)


def verify(folder: Path, *, segments: int = 3, seed: int = 0) -> Verified:
    """Train `segments` random stretches of a run again and compare. InputError if the run cannot be rebuilt."""
    if segments < 1:
        raise ConfigError(f"segments = {segments}: expected 1 or more")
    run = open_run(folder).by_one()
    last = max((row["step"] for row in run.rows if "loss" in row), default=0)
    if not last:
        raise InputError(f"{folder}: no step in metrics.jsonl yet")
    ends = sorted({0, *checkpoints_of(run.folder), last})
    stretches = [Stretch(a, b) for a, b in pairwise(ends)]
    left = _left(run)
    if left not in ends:  # the finished model is that of a step between
        stretches.append(Stretch(max(end for end in ends if end < left), left))
    chosen = sorted(random.Random(seed).sample(range(len(stretches)), min(segments, len(stretches))))
    if len(stretches) == 1:
        say("no checkpoints were kept: the whole run is made again (train with --keep every to check parts of it)")
    result = Verified(Path(folder))
    for number in chosen:
        _again(run if number == chosen[0] else open_run(folder), stretches[number])
        result.stretches.append(stretches[number])
    return result


def _again(run: Run, stretch: Stretch) -> None:
    """Make a stretch again and note what differs."""
    with beginning_at(run, stretch.start) as place:
        run_until(run, place, stretch.end, measured=True)
        made = {_what(row): row for row in read_jsonl(place / "metrics.jsonl")}
    begin = stretch.start - (stretch.start == 0)  # before the first step it is measured, too
    for row in run.rows:
        told = "loss" in row or "validation_loss" in row
        if told and begin < row["step"] <= stretch.end and made.get(_what(row)) != row:
            stretch.differs_at, stretch.differs_in = row["step"], _differences(row, made.get(_what(row), {}))
            return
    stretch.weights, stretch.compared = _weights_differ(run, stretch.end)


def _left(run: Run) -> int:
    """The step whose weights the run left: the last, or with `--keep best` that of the lowest loss on held-out text."""
    losses = [(row["validation_loss"], row["step"]) for row in run.rows if "validation_loss" in row]
    best = read_json(run.folder / RUN)["config"].get("keep") == "best"
    return min(losses)[1] if best and losses else run.rows[-1]["step"]


def _what(row: dict[str, Any]) -> tuple[int, bool]:
    """Which line of metrics.jsonl a row is: a step's, or that of a measurement after it."""
    return row["step"], "validation_loss" in row


def _differences(recorded: dict[str, Any], made: dict[str, Any]) -> str:
    """The entries of a line in which it is not the one that was made again."""
    parts = []
    for name in {**recorded, **made}:
        was, now = recorded.get(name, "not"), made.get(name, "not")
        parts += [f"{name} is {was} in metrics.jsonl, {now} made again"] * (was != now)
    return "; ".join(parts)


def _weights_differ(run: Run, step: int) -> tuple[str, bool]:
    """The first weight that is not the one kept at a step, and whether any was kept there."""
    import torch

    from luthier.core.training.checkpoint import optimizer_means, read_tensors, trained_weights
    from luthier.models.adapter_files import open_model
    from luthier.models.lora import merge_adapters

    model, place = run.arguments["model"], checkpoints_of(run.folder).get(step)
    if place is not None:
        means = read_tensors(place / "optimizer.safetensors")
        kept = read_tensors(place / "model.safetensors") | {OPTIMIZER + name: mean for name, mean in means.items()}
        made = dict(trained_weights(model))
        made |= {OPTIMIZER + name: mean for name, mean in optimizer_means(run.arguments["optimizers"]).items()}
    elif (run.folder / "manifest.json").is_file() and step == _left(run):
        # A whole model, or adapters: alike once they are merged
        kept, made = (dict(merge_adapters(m).named_parameters()) for m in (open_model(run.folder), model))
    else:
        return "", False
    for name, p in made.items():
        if not torch.equal(p.detach().cpu(), kept[name].detach()):
            return name, True
    return "", True
