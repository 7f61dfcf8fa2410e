"""Word2Vec as a stage: train, and go on where a killed run was.

Once a minute the tables and the place in the text are stored in the artefact that is being built, which an interrupted
run of the same work finds again. With one thread, or `deterministic`, the vectors then have the same bits as those of a
run that was never stopped.
"""

from __future__ import annotations

import os
import shutil
import time
import zipfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from luthier.core.artifacts import atomic_open
from luthier.core.console import progress, say
from luthier.core.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from luthier.core.training.rows import Rows
    from luthier.core.training.vectors_config import VectorsConfig
    from luthier.models.vectors import Vectors
    from luthier.models.word2vec import Word2Vec

__all__ = ["word2vec"]

EVERY = 60.0  # seconds between two times of storing the state
FOLDER, STATE = "word2vec", "state.npz"


def word2vec(text: Rows, config: VectorsConfig, folder: Path, start: Vectors | None = None) -> Word2Vec:
    """A finished training on `text`, begun from the vectors `start` if given, its state stored in `folder` meanwhile.
    Raises ConfigError for settings that cannot be, or do not fit `start`, TrainingError for vectors that became no
    numbers."""
    from luthier.models.vectors import VectorsError
    from luthier.models.word2vec import Word2Vec, Word2VecSettings

    chosen = {f.name: value for f in fields(Word2VecSettings) if (value := asdict(config).get(f.name)) is not None}
    chosen["workers"] = config.workers or os.cpu_count() or 1
    try:
        training = Word2Vec(text.rows, text.offsets, text.counts, Word2VecSettings(**chosen), text.tokens)
        if start is not None:
            row_of = {token: row for row, token in enumerate(text.tokens)}
            rows = np.array([row_of[token] for token in start.tokens], np.int64)
            training.start_from(rows, start.vectors, start.contexts, start.ngrams)
    except VectorsError as error:
        raise ConfigError(str(error)) from error
    home = folder / FOLDER
    home.mkdir(exist_ok=True)
    if (state := _read(home / STATE)) is not None:
        training.restore(state)
        say(f"  going on after {training.done:,} of {training.pieces * config.epochs:,} pieces of the text")
    _train(training, config, home / STATE)
    shutil.rmtree(home)
    return training


def _train(training: Word2Vec, config: VectorsConfig, path: Path) -> None:
    stored = time.monotonic()
    with progress("Training word2vec", config.epochs * len(training.rows), "words") as advance:
        advance(training.words_done)

        def report(count: int, loss: float) -> None:
            nonlocal stored
            advance(count, note=f"loss {loss:.4f}")
            if time.monotonic() - stored >= EVERY:
                _check(training, config)
                with atomic_open(path, "wb") as file:
                    np.savez(file, allow_pickle=False, **training.state())
                stored = time.monotonic()

        training.train(report)
    _check(training, config)


def _check(training: Word2Vec, config: VectorsConfig) -> None:
    """Raises TrainingError where a rate far too high has left the range of numbers."""
    if not np.isfinite(training.table).all():
        raise TrainingError(f"the vectors are no numbers any more\nLower --alpha (now {config.alpha:g}).")


def _read(path: Path) -> dict[str, np.ndarray] | None:
    """A stored state; none where there is none, or none that can be read."""
    try:
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    except (FileNotFoundError, zipfile.BadZipFile, ValueError, EOFError):
        return None
