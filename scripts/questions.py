"""`luthier questions`: pairs of question and answer from a corpus. The work is in `core/data/questions.py`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from luthier.core.data.questions import QuestionsConfig, make_questions
from luthier.scripts.cli import parse, run


@dataclass
class Command:
    """Make question-and-answer pairs from a corpus by rule, for you to edit and for the model to be tuned on.

    Goes in: a corpus made by `luthier collect`, and files of your own pairs: JSON lines with at least question and
    answer; phrasings (more wordings to train on), held_out (wordings kept for evaluation) and facts if you have them.

    Comes out: questions.jsonl in the corpus folder, one pair a line, each with the span of text it rests on. Edit it,
    delete lines, add your own: the next run keeps all of that.

    Example: luthier questions corpus/ --own pairs.jsonl

    Takes about a second for 200 pages. A second run without a change does nothing.
    """

    corpus: tyro.conf.Positional[Path]
    """Folder made by `luthier collect`."""
    own: tuple[Path, ...] = ()
    """Files of your own pairs."""
    config: QuestionsConfig = field(default_factory=QuestionsConfig)


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, "questions", argv)
    print(make_questions(command.corpus, command.config, command.own))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
