"""`luthier bench`: speed side by side with the tools that everyone names. The work is in `core/benchmarks/`."""

from __future__ import annotations

import inspect
import json
import platform
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import tyro

from luthier.core.errors import ConfigError
from luthier.scripts.cli import parse, run


@dataclass
class Command:
    """Measure this library beside its peers on this machine: results are compared first, then times, in turn.

    Goes in: what to measure; a text of your own, or the text that every machine has (Python's documentation).

    Comes out: a table (median of ours and theirs, ratio above 1 where ours is better, whether the results are equal),
    and as the last line one JSON document with machine, versions, commit and all rows.

    Example: luthier bench tokenizers --text novel.txt --repeats 7

    Takes about half a minute for tokenizers and two minutes for vectors. Peers that are not installed are left out:
    pip install -e ".[bench]" brings them.
    """

    what: tyro.conf.Positional[Literal["tokenizers", "vectors"]]
    """What to measure."""
    text: Path | None = None
    """Text file to measure on; left out, Python's own documentation."""
    vocab: Path | None = None
    """Only tokenizers: a file of tiktoken ranks (cl100k_base.tiktoken …) to encode with; left out, a trained one."""
    repeats: int = 5
    """Times each tool is measured."""
    save: bool = False
    """Also write the JSON to docs/benchmarks/WHAT-HARDWARE-MONTH.json."""


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, "bench", argv)
    if command.repeats < 1:
        raise ConfigError(f"repeats = {command.repeats}: expected 1 or more")
    measure = import_module(f"luthier.core.benchmarks.{command.what}").run
    given = {"text": command.text, "vocab": command.vocab, "repeats": command.repeats}
    known = inspect.signature(measure).parameters
    for name in (name for name in ("text", "vocab") if given[name] is not None and name not in known):
        raise ConfigError(f"bench {command.what} takes no --{name}")
    from luthier.core.benchmarks.timing import document

    result = document(command.what, measure(**{name: value for name, value in given.items() if name in known}))
    print_table(result)
    if command.save:
        print(f"saved as {save(result)}")
    print(json.dumps(result, ensure_ascii=False))
    return 0 if all(row["equal"] for row in result["rows"]) else 1


def print_table(result: dict[str, Any]) -> None:
    """The rows as a table on stdout."""
    from rich.console import Console
    from rich.table import Table

    machine = result["machine"]
    table = Table(title=f"{result['bench']} on {machine['cpu']}, {machine['cores']} cores, load {machine['load']}")
    for column in ("case", "metric", "ours", "20–80%", "peer", "theirs", "ratio", "equal"):
        table.add_column(column, justify="right" if column in ("ours", "theirs", "ratio") else "left")
    for row in result["rows"]:
        spread = f"{_shown(row.get('p20'))}–{_shown(row.get('p80'))}"
        numbers = (_shown(row["theirs"]), _shown(row["ratio"]), "yes" if row["equal"] else "NO")
        table.add_row(row["case"], row["metric"], _shown(row["ours"]), spread, row["peer"], *numbers)
    console = Console()
    console.print(table) if console.is_terminal else Console(width=160).print(table)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def save(result: dict[str, Any]) -> Path:
    """Write the document to docs/benchmarks/ and return its path."""
    from luthier.core.artifacts import write_json

    hardware = re.sub(r"[^a-z0-9]+", "-", (result["machine"]["cpu"] or platform.machine()).lower()).strip("-")
    path = Path("docs/benchmarks") / f"{result['bench']}-{hardware}-{time.strftime('%Y-%m')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    return path


if __name__ == "__main__":
    sys.exit(run(main))
