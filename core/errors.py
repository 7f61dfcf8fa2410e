"""Every error the process raises on purpose.

    LuthierError                    shown by the command line in one to three lines, exit code 1
    ├── InputError                  what the user gave cannot be used: a file, a folder, a value
    │   ├── ConfigError             a key or value in luthier.toml or among a stage's settings
    │   └── DocumentError           one document cannot be read; `collect` goes on and records it
    ├── ArtifactError               a folder made by an earlier stage is missing, incomplete or of other work
    │   └── LockedError             another process is writing the same artefact
    └── TrainingError               a run stopped itself: no pairs to train on, a loss that is not a number

A message says what is wrong, where (file, page, line, field) and what to do next, separated so that each may take a
line of its own. The ground floor (`kernels`, `tokenizers`) raises subclasses of ValueError and TypeError instead.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "ArtifactError",
    "ConfigError",
    "DocumentError",
    "InputError",
    "LockedError",
    "LuthierError",
    "TrainingError",
    "did_you_mean",
]


class LuthierError(Exception):
    """Base of all errors that are meant for the user."""


class InputError(LuthierError):
    """What the user gave cannot be used."""


class ConfigError(InputError):
    """A setting has a wrong name or value."""


class DocumentError(InputError):
    """One document cannot be read. `rule` names the reason as it stands in `rejected.jsonl`, `value` what was measured
    against it."""

    def __init__(self, rule: str, message: str, value: float = 0) -> None:
        super().__init__(message)
        self.rule = rule
        self.value = value


class ArtifactError(LuthierError):
    """A folder made by an earlier stage cannot be used."""


class LockedError(ArtifactError):
    """Another process holds the artefact."""


class TrainingError(LuthierError):
    """A training run stopped itself."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest known word, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""
