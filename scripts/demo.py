"""`luthier demo`: the whole process on a sample company. The work is in `core/demo.py`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.core.demo import closing, demo
from luthier.core.show.evaluation import print_evaluation
from luthier.scripts.cli import parse, run


@dataclass
class Command:
    """A sample company's documents become an assistant, each stage echoed as the command you would type.

    Goes in: nothing; the documents of an instrument workshop come with luthier.

    Comes out: a project folder with the documents, everything made from them, and a report.

    Example: luthier demo

    Takes at most 3 minutes on 2 CPU cores, no network, no GPU. A second run redoes nothing that has not changed.
    """

    out: Path = Path("luthier-demo")
    """Project folder to make or bring up to date."""


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, "demo", argv)
    done = demo(command.out)
    print("\nA few questions to the assistant:")
    for question, answer in done.answers:
        where = f"\n     — {answer.source.path}" if answer.source else ""
        page = f", page {answer.source.page}" if answer.source and answer.source.page else ""
        print(f"\n  Q: {question}\n  A: {answer.text}{where}{page}  [{answer.path}]")
    for notice in done.notices:
        print(f"\n{notice}:\n" + "\n".join("  " + line for line in notice.read_text(encoding="utf-8").splitlines()))
    print("\nBefore and after tuning:\n")
    print_evaluation(done.results)
    print("\n" + "\n".join(closing(done)))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
