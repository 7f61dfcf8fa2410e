"""`luthier write`: one text a row from a template and a table. The work is in `core/assistant/write.py`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from luthier.core.assistant.assistant import AssistantConfig
from luthier.core.assistant.write import write
from luthier.scripts.cli import parse, run


@dataclass
class Command:
    """Write one text a row: a template with the row's values, its facts filled in by the assistant.

    Goes in: a template, in which {column} stands for the row's value and {ask: question} for the assistant's answer,
    and a CSV file with a header. A first line `# file: {column}.txt` names the outputs.

    Comes out: a folder with one text a row, and answers.jsonl with every answer's path and source. What was not found
    is marked in the text as [not found: question].

    Example: luthier write notice.txt --data notice.csv --model build/tuned --index build/index --out notices/

    Takes about 0.2 s a question. An interrupted run goes on; rows that are written are not written again.
    """

    template: tyro.conf.Positional[Path]
    """Text with {column} and {ask: question}."""
    data: Path
    """CSV file, one text a row; comma, semicolon or tab."""
    model: Path | None = None
    """Tuned model folder to answer from."""
    index: Path | None = None
    """Index folder to look facts up in."""
    out: Path = Path("texts")
    """Folder for the texts."""
    overwrite: bool = False
    """Write rows anew whose template, values or assistant changed."""
    config: AssistantConfig = field(default_factory=AssistantConfig)


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, "write", argv)
    summary = write(
        command.template,
        command.data,
        command.out,
        model=command.model,
        index=command.index,
        config=command.config,
        overwrite=command.overwrite,
    )
    print(summary)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
