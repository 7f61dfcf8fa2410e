"""Write docs/help.md: every verb's `--help`, taken from the program itself. `--check` fails where the file is stale."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from luthier.scripts.cli import VERBS

PAGE = Path(__file__).parent / "help.md"


def help_of(*arguments: str) -> str:
    """What the command prints, at a fixed width and without colours."""
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    command = [sys.executable, "-m", "luthier.scripts.cli", *arguments, "--help"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def page() -> str:
    """The whole of docs/help.md."""
    parts = ["# Every verb and flag", "", "Made by `make docs` from the program itself.", ""]
    parts += ["```text", help_of(), "```"]
    for verbs in VERBS.values():
        for verb in verbs:
            parts += ["", f"## luthier {verb}", "", "```text", help_of(verb), "```"]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == page() else f"{PAGE} is stale: run `make docs`")
    PAGE.write_text(page(), encoding="utf-8")
