"""One judged answer: a line of samples.jsonl, and a row of the report."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Sample"]


@dataclass
class Sample:
    """One answer of one system, judged."""

    set: str
    system: str
    question: str
    expected: str
    answer: str
    path: str
    source: str
    exact_match: float
    f1: float
    fact: float | None
    right_source: float | None
    not_found: float
    score: float
    language: str = "en"
