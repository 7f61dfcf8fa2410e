"""GloVe as a stage: count within a limit of memory, train, and go on where a killed run was.

    text ─models/cooccurrence.py─▶ pairs ─models/glove.py─▶ tables ─every minute─▶ progress.npz

All of it lies in a folder `glove` inside the artefact that is being built, which an interrupted run of the same work
finds again: counts that are whole are not counted twice, and training goes on after the last round that was stored. On
one thread the vectors then have the same bits as those of a run that was never stopped. In the end the folder goes.
"""

from __future__ import annotations

import os
import shutil
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from luthier.core.artifacts import atomic_open
from luthier.core.console import progress, say
from luthier.core.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from luthier.core.training.vectors_config import VectorsConfig
    from luthier.models.cooccurrence import Cooccurrences
    from luthier.models.glove import Progress
    from luthier.models.vectors import Trained

__all__ = ["glove"]

ORDER = "by chance, dealt into parts of 65,536"  # another name where the same seed gives pairs another order
EVERY = 60.0  # seconds between two times of storing the progress
GB = 1e9
PAIR = 28  # bytes of a counted pair: as counted, and in the order of training


def glove(
    rows: np.ndarray,
    offsets: np.ndarray,
    counts: np.ndarray,
    config: VectorsConfig,
    tokens: Sequence[str],
    folder: Path,
) -> Trained:
    """Vectors of `rows` (int, below len(counts)), documents between `offsets`. Raises TrainingError if training leaves
    the range of numbers, ConfigError for too little memory."""
    from luthier.models.glove import Diverged, train_glove

    scratch = folder / "glove"
    scratch.mkdir(exist_ok=True)
    workers = config.workers or os.cpu_count() or 1  # of counting; its sums are the same for any number
    # A word makes at most so many pairs; where all of them fit, nothing goes to disk.
    most = int(np.minimum(counts * config.window * 2, len(counts)).sum())
    room = None if most * PAIR <= config.max_memory * GB else scratch
    pairs = _counted(rows, offsets, len(counts), config, workers, room)
    begun = _read(scratch / "progress.npz")
    if begun:
        say(f"  going on after {len(begun.losses)} iterations and {begun.visited:,} pairs")
    before = (len(begun.losses) * len(pairs.x) + begun.visited) if begun else 0
    try:
        with progress("Training GloVe", config.iterations * len(pairs.x), "pairs") as advance:
            advance(before)
            trained = train_glove(
                pairs,
                len(counts),
                vector_size=config.vector_size,
                x_max=config.x_max,
                alpha=config.x_exponent,
                eta=config.eta,
                iterations=config.iterations,
                seed=config.seed,
                workers=1 if config.deterministic else workers,
                folder=room,
                begun=begun,
                report=lambda count, loss: advance(count, note=f"loss {loss:.4f}"),
                keep=_keeper(scratch / "progress.npz"),
            )
    except Diverged as error:
        raise TrainingError(
            f"GloVe left the range of numbers at the pair '{tokens[error.i]}' and '{tokens[error.j]}' "
            f"(count {error.x:g}): their product became {error.product:g}\nLower --eta (now {config.eta:g})."
        ) from error
    shutil.rmtree(scratch)
    return trained


def _counted(
    rows: np.ndarray, offsets: np.ndarray, size: int, config: VectorsConfig, workers: int, room: Path | None
) -> Cooccurrences:
    """The counts: those that lie in `room` if they are whole, otherwise counted."""
    from luthier.models.cooccurrence import count_pairs, open_pairs
    from luthier.models.vectors import VectorsError

    if room and (room / "counted").is_file():
        return open_pairs(room)
    try:
        pairs = count_pairs(
            rows,
            offsets,
            size,
            window=config.window,
            symmetric=config.symmetric,
            workers=workers,
            max_memory=int(config.max_memory * GB),
            folder=room,
        )
    except VectorsError as error:
        raise ConfigError(f"{error}\nRaise --max-memory or --min-count.") from error
    if room:
        (room / "counted").touch()
    return pairs


# ---------------------------------------------------------------- progress


def _keeper(path: Path) -> Callable[[Progress], None]:
    """A function that stores the progress if enough time has passed since the last time."""
    last = time.monotonic()

    def keep(state: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY:
            with atomic_open(path, "wb") as file:
                np.savez(file, order=ORDER, **vars(state))
            last = time.monotonic()

    return keep


def _read(path: Path) -> Progress | None:
    """The progress that was stored; None where there is none, none that can be read, or one with the pairs in another
    order, after which some would be seen twice and others never."""
    from luthier.models.glove import Progress

    try:
        with np.load(path) as stored:
            if "order" not in stored or str(stored["order"]) != ORDER:
                say("  training anew from the counts: the stored progress visited the pairs in another order")
                return None
            return Progress(
                stored["W"],
                stored["C"],
                stored["b"],
                stored["losses"].tolist(),
                int(stored["visited"]),
                float(stored["total"]),
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
