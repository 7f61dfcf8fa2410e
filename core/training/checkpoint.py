"""Checkpoints: everything that a killed run needs to go on as if nothing had happened.

    step-00001000/
        model.safetensors        the weights, in the precision they are trained in
        optimizer.safetensors    running means of every weight: `OPTIMIZER.WEIGHT.NAME`
        state.json               step, position in the data, length of metrics.jsonl, threads, library versions

The data order and the learning rate are functions of the step (batches.py, schedules.py), and training draws no
random numbers, so there is nothing else to store. Sums of floating-point numbers depend on how threads share the
work: the number of threads is part of the state, and is set again on resume.

A checkpoint is written under another name, forced to disk and renamed; then the one before is deleted. At every
moment there is at least one whole one, a disk that fills up included.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from luthier.core.artifacts import read_json, write_json
from luthier.core.console import say
from luthier.core.errors import TrainingError

__all__ = ["load_checkpoint", "remove_checkpoints", "save_checkpoint"]

PATTERN = "step-*"


def save_checkpoint(
    folder: Path, step: int, model: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer], facts: dict[str, Any]
) -> None:
    """Write `step-…` into `folder` and delete the older ones. Raises TrainingError if the disk takes no more."""
    place, unfinished = folder / f"step-{step:08d}", folder / ".step.writing"
    older = [p for p in folder.glob(PATTERN) if p != place]
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        _save(_weights(model), unfinished / "model.safetensors")
        _save(_means(optimizers), unfinished / "optimizer.safetensors")
        facts = {"step": step, "threads": torch.get_num_threads(), **_versions(), **facts}
        write_json(unfinished / "state.json", facts)
        shutil.rmtree(place, ignore_errors=True)
        unfinished.rename(place)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        last = f"{max(older).name} is whole; " if older else ""
        raise TrainingError(
            f"the checkpoint of step {step} could not be written: {error.strerror}\n{last}make room on the disk of "
            f"{folder.parent} and start the same command again"
        ) from error
    for path in older:
        shutil.rmtree(path)


def load_checkpoint(
    folder: Path, model: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, Any] | None:
    """Put the newest checkpoint of `folder` into model and optimizers; its state, or None if there is none.

    One that another version of PyTorch wrote is passed over with a word: going on would not be exact.
    """
    found = sorted(folder.glob(PATTERN))
    if not found:
        return None
    state = read_json(found[-1] / "state.json")
    if any(state.get(key) != value for key, value in _versions().items()):
        say(f"starting anew: {found[-1].name} was written by torch {state.get('torch')}, this is {torch.__version__}")
        remove_checkpoints(folder)
        return None
    torch.set_num_threads(state["threads"])
    weights = load_file(found[-1] / "model.safetensors")
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(weights[name])
    means = load_file(found[-1] / "optimizer.safetensors")
    for number, optimizer in enumerate(optimizers):
        known = optimizer.state_dict()
        known["state"] = {}
        for key, value in means.items():
            of, weight, name = key.split(".")
            if int(of) == number:
                known["state"].setdefault(int(weight), {})[name] = value
        optimizer.load_state_dict(known)
    return state


def remove_checkpoints(folder: Path) -> None:
    """Delete all checkpoints of `folder`: the run has ended."""
    for path in (*folder.glob(PATTERN), folder / ".step.writing"):
        shutil.rmtree(path, ignore_errors=True)


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__}


def _weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters by name, each once: tied weights are one parameter."""
    return {name: p.detach().contiguous() for name, p in model.named_parameters()}


def _means(optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    return {
        f"{number}.{weight}.{name}": value.contiguous()
        for number, optimizer in enumerate(optimizers)
        for weight, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file(tensors, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
