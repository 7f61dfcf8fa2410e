"""`luthier verify`: is a model what its run says it is? The work is in `core/training/verify.py`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from luthier.scripts.cli import parse, run


@dataclass
class Command:
    """Train random stretches of a run again and compare them with what was recorded, to the last bit.

    Goes in: a run, the --out of pretrain or finetune, best made with --keep every; its inputs, unchanged, where they
    were.

    Comes out: a line for each stretch: equal, or the first step that differs; exit code 1 if one differs.

    Example: luthier verify build/model --segments 3

    Takes an eighth of the run's time for each stretch where it was made with --keep every, otherwise the whole of it.
    """

    folder: tyro.conf.Positional[Path]
    """The run's folder."""
    segments: int = 3
    """How many stretches to make again."""
    seed: int = 0
    """Which ones: another seed draws others."""


def main(argv: Sequence[str] | None = None) -> int:
    from luthier.core.training.verify import verify

    command = parse(Command, "verify", argv)
    found = verify(command.folder, segments=command.segments, seed=command.seed)
    print(found)
    return 0 if found.equal else 1


if __name__ == "__main__":
    sys.exit(run(main))
