"""`luthier run`: bring a project up to date. The work is in `core/project.py`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from luthier.core.console import duration
from luthier.core.project import Run, run_project, watch_project
from luthier.core.show.evaluation import print_evaluation
from luthier.scripts.cli import parse, run


@dataclass
class Command:
    """Do every stage of a project that is not up to date, in order, echoing each as the command it stands for.

    Goes in: a project folder made by `luthier new` (its luthier.toml and its documents).

    Comes out: PROJECT/build/ with corpus, tokenizer, shards, vectors, model, tuned, index and evaluation; on stdout,
    what the evaluation measured.

    Example: luthier run handbook --watch

    Takes as long as the stages that changed: minutes for a first run, seconds where nothing changed. After Ctrl-C or a
    kill the same command goes on where it stopped.
    """

    project: tyro.conf.Positional[Path] = Path()
    """The project folder; the current one by default."""
    watch: bool = False
    """Keep going: run again whenever a document or a setting changes."""


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, "run", argv)
    if command.watch:
        watch_project(command.project, after=_print_measured)
        return 0
    done = run_project(command.project)
    _print_measured(done)
    print(f"\n{command.project} is up to date after {duration(sum(done.seconds.values()))}.")
    build = command.project / "build"
    if (report := build / "evaluation" / "report.html").is_file():
        print(f"  report: {report}")
    if any((build / name / "manifest.json").is_file() for name in ("tuned", "index")):
        print(f"  chat:   luthier chat {command.project}")
    return 0


def _print_measured(done: Run) -> None:
    """The tables and sentences of an evaluation that was made in this run, as the demo prints them."""
    if done.measured:
        print("\nBefore and after tuning:\n" if "before" in done.measured["models"] else "\nMeasured:\n")
        print_evaluation(done.measured)


if __name__ == "__main__":
    sys.exit(run(main))
