"""Settings that were measured: tile sizes, warps and stages for one card, in `tables/CARD.json`.

A kernel with matrix products runs at very different speed with different tiles, and which are best depends on the card
and on little else. Each such kernel has a rule of its own (`settings` in its file), good on every chip; where a table
for the very card is in the folder, its entry for the shape's class is taken instead. `luthier bench kernels --tune`
writes one. Nothing is tried out when a user's program starts: the first step is as fast as the others, and two runs on
one card take the same settings and give the same bits.

A class is what changes the best tiles: the part of the kernel, the dtype, the head_dim. Lengths are not in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from luthier.kernels.launch import LaunchError

__all__ = ["FOLDER", "chosen", "file_of", "key_of", "trying", "watching"]

FOLDER = Path(__file__).parent / "tables"
Settings = dict[str, int]
_tried: dict[str, Settings] = {}
_watched: dict[str, Settings] | None = None


def key_of(kernel: str, dtype: torch.dtype, *facts: str) -> str:
    """The name of a shape's class, as `attention forward, bfloat16, D 128`."""
    return ", ".join([kernel, str(dtype).removeprefix("torch."), *facts])


def file_of(card: str, folder: Path | None = None) -> Path:
    """The table of a card by its name, as `tables/nvidia-h200.json`."""
    return (folder or FOLDER) / (re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-") + ".json")


@cache
def _table(card: str) -> dict[str, Settings]:
    """Class → settings of a card; empty where none was measured."""
    file = file_of(card)
    if not file.is_file():
        return {}
    try:
        return {
            key: entry["settings"] for key, entry in json.loads(file.read_text(encoding="utf-8"))["classes"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LaunchError(
            f"{file}: not a table of settings ({type(error).__name__}: {error}); write it anew with luthier bench "
            "kernels --tune, or delete it"
        ) from None


def chosen(key: str, rule: Settings, x: Tensor) -> Settings:
    """The settings for a class on the card of x: those being tried, the table's, or the rule's."""
    if _watched is not None:
        _watched[key] = rule
    found = _tried.get(key)
    if found is None and x.is_cuda:
        found = _table(torch.cuda.get_device_name(x.device)).get(key)
    return rule if found is None else {**rule, **found}


@contextmanager
def trying(key: str, settings: Settings) -> Iterator[None]:
    """Take these settings for a class, whatever the table says, to measure them."""
    _tried[key] = settings
    try:
        yield
    finally:
        del _tried[key]


@contextmanager
def watching() -> Iterator[dict[str, Settings]]:
    """Which classes are asked for inside, and what the rule says for each."""
    global _watched
    _watched = {}
    try:
        yield _watched
    finally:
        _watched = None
