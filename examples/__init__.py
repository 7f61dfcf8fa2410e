"""The sample company: the documents of an instrument workshop, made up for this project, that `luthier demo` uses."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

__all__ = ["sample_company"]


def sample_company() -> Path:
    """The workshop's folder: documents/, luthier.toml, pairs.jsonl, evaluation.jsonl, notice.txt, notice.csv.

    It is found beside this package, in an editable install as in a wheel.
    """
    return Path(str(resources.files("luthier.examples"))) / "workshop"
