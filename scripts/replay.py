"""`luthier replay`: a step of a training run once more, looked at closely. The work is in `core/training/replay.py`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from luthier.scripts.cli import parse, run


@dataclass
class Command:
    """Make one step of a training run again and say what was in it.

    Goes in: a run, the --out of pretrain or finetune, finished or interrupted; its inputs, unchanged, where they were.

    Comes out: where the batch comes from (document, page, place), what each token cost, the gradient's norm by layer,
    and whether loss and norm are those that metrics.jsonl recorded, to the last bit; exit code 1 if they are not.

    Example: luthier replay build/model --step 1200

    Takes the time of the steps since the nearest checkpoint before it: with `pretrain --keep every` at most an eighth
    of the run, otherwise from the beginning.
    """

    folder: tyro.conf.Positional[Path]
    """The run's folder."""
    step: int
    """Which step, from 1, as in metrics.jsonl."""
    json: bool = False
    """Print everything, every token's cost too, as one JSON document."""


def main(argv: Sequence[str] | None = None) -> int:
    from luthier.core.show.step import show_replayed
    from luthier.core.training.replay import replay

    command = parse(Command, "replay", argv)
    found = replay(command.folder, command.step)
    if command.json:
        print(json.dumps({**asdict(found), "exact": found.exact}, ensure_ascii=False))
    else:
        show_replayed(found)
    return 0 if found.exact else 1


if __name__ == "__main__":
    sys.exit(run(main))
