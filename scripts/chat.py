"""`luthier chat`: talk with the assistant in the terminal. The work is in `core/assistant/chat.py`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from luthier.core.assistant.chat import chat
from luthier.core.assistant.opening import open_assistant
from luthier.scripts.cli import parse, run


@dataclass
class Command:
    """Ask the assistant questions; every answer says whether it was quoted (with file and page) or remembered.

    Goes in: a project folder, or a model folder with --index, or an index alone; questions typed, or one a line from a
    pipe.

    Comes out: answers on stdout, each with its source or the model's confidence. /help lists commands, /quit leaves.

    Example: luthier chat luthier-demo

    Takes 3 s to start and about 0.2 s an answer with a model of 3 million parameters on 2 cores.
    """

    path: tyro.conf.Positional[Path]
    """Project, model or index folder."""
    index: Path | None = None
    """Index to look facts up in; a project has its own."""
    mode: Literal["tuned", "retrieved", "both"] | None = None
    """Who answers: the model, the index, or the index first and then the model; left out: the richest that is there."""


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, "chat", argv)
    chat(open_assistant(command.path, command.index), command.mode)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
