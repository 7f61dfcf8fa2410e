"""Replay: any step of a run once more, from the nearest checkpoint, with everything that the curve does not say.

A run is a function of its settings, its inputs and the step (loop.py). `run.json` in its folder says where the inputs
lie; the manifest has their hashes. Replaying step N puts the newest checkpoint before it in place, makes the steps
between again, and looks at step N closely: which documents and pages its batch comes from, what each token costs, how
long each layer's gradient is. Its loss is compared with metrics.jsonl, to the last bit.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from luthier.core.artifacts import content_hash, read_json, read_jsonl, write_json
from luthier.core.errors import InputError, TrainingError
from luthier.core.training.plan import quiet_unless

__all__ = ["Replayed", "Run", "beginning_at", "checkpoints_of", "open_run", "replay"]

NEVER = 1e18  # seconds
DEAREST = 10


@dataclass
class Run:
    """A run taken from its folder, its model as it was before the first step."""

    folder: Path
    stage: str
    config: Any
    arguments: dict[str, Any]
    """What `fit` takes but folder and config."""
    tokenizer: Any
    text: Any = None
    """The mixture of windows (pretraining)."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """The lines of metrics.jsonl."""
    processes: int = 1
    """How many trained it together."""
    choices: dict[str, Any] = field(default_factory=dict)
    """How it was computed, as its first checkpoint says or, where none is left, run.json."""
    own_objective: bool = False
    """Whether its loss was given as a function, which a run's folder does not hold."""

    def by_one(self) -> Run:
        """Itself. TrainingError if it cannot be made again here: several processes trained it, whose sums are rounded
        otherwise, or its loss is not known."""
        if self.own_objective:
            raise TrainingError(
                f"{self.folder} was trained with an objective of its own, a function that is not in its folder, so "
                "that no step can be made again\nWhat a step was made of: luthier show RUN --step N"
            )
        if self.processes > 1:
            raise TrainingError(
                f"{self.folder} was trained by {self.processes} processes: a single one adds up in another order, so "
                "that no bit can be confirmed here\n"
                "What a step was made of: luthier show RUN --step N"
            )
        return self

    def row(self, step: int) -> dict[str, Any]:
        """What metrics.jsonl says of a step. InputError if the run has no such step."""
        for row in self.rows:
            if row["step"] == step and "loss" in row:
                return row
        last = max((row["step"] for row in self.rows if "loss" in row), default=0)
        raise InputError(f"{self.folder} has no step {step}: its steps are 1 to {last}")

    def batch_number(self, step: int) -> int:
        """Which batch a step took: one further on for each batch that a rollback left out."""
        left_out = [r["batches_left_out"] for r in self.rows if "batches_left_out" in r and r["step"] < step]
        return step - 1 + max(left_out, default=0)


def open_run(folder: Path) -> Run:
    """The run whose folder this is, finished or not. InputError if its inputs are gone or changed."""
    from luthier.core.training.execution import use_machine
    from luthier.core.training.runs import RUN

    folder = _home(Path(folder), RUN)
    about = read_json(folder / RUN)
    _same_inputs(folder, about)
    states = [read_json(path / "state.json") for path in checkpoints_of(folder).values()]
    threads = states[0]["threads"] if states else about["threads"]
    use_machine(threads)
    stage = import_module(f"luthier.core.training.{about['stage']}")
    kinds = {"pretrain": "PretrainConfig", "finetune": "FinetuneConfig"}
    settings = {name: tuple(v) if isinstance(v, list) else v for name, v in about["config"].items()}
    settings |= {"threads": threads, "tensorboard": False, "wandb": "", "sample": ""}
    settings |= {"keep": "last", "allow_inexact": False}
    settings["learning_rate"] = settings["learning_rate"] or None  # 0 was once what "left out" looked like
    config = getattr(stage, kinds[about["stage"]])(**settings)
    rows = list(read_jsonl(folder / "metrics.jsonl")) if (folder / "metrics.jsonl").is_file() else []
    with quiet_unless(False):  # how its weights were drawn was said when it began
        opened = _pretraining(about, config) if about["stage"] == "pretrain" else _tuning(about, config)
    own = "objective" in _inputs_of(folder)
    opened = replace(opened, folder=folder, rows=rows, processes=about.get("processes", 1), own_objective=own)
    return replace(opened, choices=states[0] if states else about.get("choices", {}))


def _home(folder: Path, mark: str) -> Path:
    """The folder itself, or the one beside it in which an unfinished run is being built."""
    building = folder.with_name(f".{folder.name}.building")
    for place in (folder, building):
        if (place / mark).is_file():
            return place
    raise InputError(
        f"{folder} has no {mark}: it is no run, or one of an earlier luthier\n"
        "Give the --out of `luthier pretrain` or `luthier finetune`."
    )


def _pretraining(about: dict[str, Any], config: Any) -> Run:
    from luthier.core.training.pretrain import Given, prepare

    given = {k: _path(v) for k, v in about["given"].items() if k not in ("shards", "shape")}
    prepared = prepare(config, Given(tuple(Path(p) for p in about["given"]["shards"]), **given))
    return Run(Path(), "pretrain", config, prepared.arguments, prepared.tokenizer, prepared.text)


def _tuning(about: dict[str, Any], config: Any) -> Run:
    from luthier.core.training.examples import read_pairs, read_wordings
    from luthier.core.training.finetune import prepare
    from luthier.tokenizers.formats import load_tokenizer

    given = about["given"]
    data = [Path(path) for path in given["data"]]
    found = read_pairs(data) if config.objective == "dpo" else read_wordings(data)
    spelling = Path(given["tokenizer"] or given["model"])
    arguments = prepare(config, Path(given["model"]), found, _path(given["replay"]), spelling)
    return Run(Path(), "finetune", config, arguments, load_tokenizer(spelling))


def _path(value: Any) -> Path | None:
    return Path(value) if value else None


def _same_inputs(folder: Path, about: dict[str, Any]) -> None:
    """The inputs are where they were and hold what they held."""
    known, given = _inputs_of(folder), about["given"]
    shards = given.get("shards") or []
    paths = {**given, **{("shards" if i == 0 else f"shards {i + 1}"): p for i, p in enumerate(shards)}}
    for name, value in known.items():
        path = paths.get(name)
        if not isinstance(path, str):
            continue
        if not Path(path).exists():
            raise InputError(f"{path} ({name}) is gone: without it the run cannot be rebuilt")
        if content_hash(Path(path)) != value:
            raise InputError(f"{path} ({name}) has changed since {folder} was trained: the run cannot be rebuilt")


def _inputs_of(folder: Path) -> dict[str, str]:
    """The hashes of what a run was made of, by name."""
    return read_json(folder / ("manifest.json" if (folder / "manifest.json").is_file() else "work.json"))["inputs"]


# ---------------------------------------------------------------- from a checkpoint


def checkpoints_of(folder: Path) -> dict[int, Path]:
    """The checkpoints in a run's folder by their steps."""
    found = sorted(path for path in folder.glob("step-*") if (path / "state.json").is_file())
    return {int(path.name.removeprefix("step-")): path for path in found}


@contextmanager
def beginning_at(run: Run, step: int) -> Iterator[Path]:
    """A folder for `fit` that begins at the checkpoint of a step (0: at the beginning), gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="luthier-replay-") as name:
        place = Path(name)
        for number, path in checkpoints_of(run.folder).items():
            if number <= step and (number == step or run.config.on_spike == "rollback"):
                shutil.copytree(path, place / path.name, copy_function=_link)
                # its record begins anew: that of the run may have been edited, and be longer or shorter since
                write_json(place / path.name / "state.json", {**read_json(path / "state.json"), "metrics_bytes": 0})
        yield place


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def run_until(run: Run, place: Path, step: int, *, measured: bool = False) -> None:
    """Train on in `place` until `step` steps are made, `measured` on held-out text as the run was. TrainingError if the
    run was computed otherwise than it would be here: what differs then proves nothing."""
    from luthier.core.training.checkpoint import ComputedOtherwise, newest
    from luthier.core.training.loop import choose, fit

    arguments = {**run.arguments, "title": "Replaying", **({} if measured else {"validation": ()})}
    how = {name: arguments[name] for name in ("model", "steps", "micro_batch")}
    try:
        if newest(place) is None:
            choose(run.choices, run.folder, config=run.config, **how)
        fit(folder=place, config=run.config, save_every=NEVER, until=step, **arguments)
    except ComputedOtherwise as error:
        raise TrainingError(
            f"{run.folder} was computed otherwise ({error.what}): its bits cannot be checked on this machine\n"
            "What a step was made of: luthier show RUN --step N"
        ) from error


# ---------------------------------------------------------------- one step


@dataclass
class Token:
    """A trained token of the step: its text, its cost in nats, and where it stands."""

    text: str
    loss: float
    row: int
    place: int


@dataclass
class Replayed:
    """A step looked at closely."""

    step: int
    batch: int
    started_at: int
    loss: float
    grad_norm: float
    recorded: dict[str, Any]
    gradients: dict[str, float]
    """Norm of the gradient of each layer, before clipping."""
    sources: list[Any]
    """Where the batch comes from (core/training/tracing.py)."""
    dearest: list[Token]
    tokens: list[Token] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Whether loss and gradient norm are those of metrics.jsonl, to the bit."""
        return self.loss == self.recorded["loss"] and self.grad_norm == self.recorded["grad_norm"]


def replay(folder: Path, step: int) -> Replayed:
    """Make step `step` (from 1) of a run again. InputError if there is no such step, or the inputs are not the same."""
    from luthier.core.training.tracing import trace

    run = open_run(folder).by_one()
    recorded = run.row(step)
    started = max((s for s in checkpoints_of(run.folder) if s < step), default=0)
    with beginning_at(run, started) as place:
        run_until(run, place, step - 1)
    number = run.batch_number(step)
    batch = run.arguments["batch_at"](number)
    loss, norm, gradients = _gradients(run, batch)
    tokens = _tokens(run, batch)
    dearest = sorted(tokens, key=lambda token: -token.loss)[:DEAREST]
    return Replayed(step, number, started, loss, norm, recorded, gradients, trace(run, number), dearest, tokens)


def _gradients(run: Run, batch: Any) -> tuple[float, float, dict[str, float]]:
    """Loss, norm of the gradient, and the norm by layer, computed as `fit` computes them."""
    import torch

    from luthier.core.training.batches import split_rows
    from luthier.core.training.execution import autocast, device_of
    from luthier.core.training.loop import next_token_loss, trained_tokens

    model, arguments = run.arguments["model"], run.arguments
    loss_of, count_of = arguments.get("loss_of", next_token_loss), arguments.get("count_of", trained_tokens)
    count, total, device = max(count_of(batch), 1), 0.0, device_of(model)
    if run.config.precision == "fp16":
        raise TrainingError("replay of a run in fp16 would need its loss scale; verify does it")
    model.train()
    model.zero_grad(set_to_none=True)
    for piece in split_rows(batch, arguments["micro_batch"]):
        with autocast(run.config.precision, device):
            summed = loss_of(model, piece.to(device))
            summed = summed[0] if isinstance(summed, tuple) else summed
            (summed * 1.0 / count).backward()
        total += float(summed.detach())
    weights = {name: p for name, p in model.named_parameters() if p.grad is not None}
    squares: dict[str, float] = {}
    for name, p in weights.items():
        layer = ".".join(name.split(".")[: 2 if name.startswith("layers.") else 1])
        squares[layer] = squares.get(layer, 0.0) + float(p.grad.double().square().sum())  # pyright: ignore[reportOptionalMemberAccess]
    norm = float(torch.nn.utils.clip_grad_norm_(list(weights.values()), float("inf"), foreach=True))
    return total / count, norm, {layer: square**0.5 for layer, square in squares.items()}


def _tokens(run: Run, batch: Any) -> list[Token]:
    """What each trained token costs under the model before the step."""
    import torch

    model, tokenizer = run.arguments["model"], run.tokenizer
    model.eval()
    found: list[Token] = []
    for row in range(len(batch.ids_BT)):
        one = batch.rows(slice(row, row + 1))
        with torch.no_grad():
            logits = model(one.ids_BT, document_BT=one.document_BT)[0].float()
        labels = one.labels_BT[0]
        cost = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="none").tolist()
        for place, label in enumerate(labels.tolist()):
            if label >= 0:
                text = tokenizer.decode([label]) if tokenizer is not None else str(label)
                found.append(Token(text, cost[place], row, place))
    return found
