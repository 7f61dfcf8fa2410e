"""`luthier new`: start a project folder. The work is in `core/project.py`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from luthier.core.project import new_project
from luthier.scripts.cli import parse, run


@dataclass
class Command:
    """Start a project: a folder with luthier.toml and a place for documents.

    Goes in: nothing, or the folders where your documents lie, or a model folder to start from.

    Comes out: NAME/luthier.toml with the settings of every stage, and NAME/documents/ unless --documents is given.

    Example: luthier new handbook --documents ~/shared/handbook ~/shared/mail, then: luthier run handbook

    Takes no time.
    """

    name: tyro.conf.Positional[Path]
    """Folder of the new project."""
    documents: tuple[Path, ...] = ()
    """Files and folders with your documents, left where they are."""
    base: Path | None = None
    """A Hugging Face model folder (Llama, Mistral, Qwen, SmolLM) to fine-tune instead of pretraining a model."""


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, "new", argv)
    folder = new_project(command.name, documents=command.documents, base=command.base)
    where = "" if command.documents else f"Put your documents into {folder / 'documents'}, then:\n"
    print(f"{folder / 'luthier.toml'} written.\n{where}  luthier run {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
