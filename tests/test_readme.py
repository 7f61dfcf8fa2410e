"""The README is a program: its commands and its Python run, its install lines are those that CI runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
Demo = tuple[Path, subprocess.CompletedProcess[str]]


def blocks(language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", README)


def commands() -> list[str]:
    return [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]


INSTALLING = [c for c in commands() if c.startswith("pip install")]
OTHERS = [c for c in commands() if c not in INSTALLING]


def test_the_two_commands_are_those_that_ci_runs() -> None:
    assert INSTALLING == [
        "pip install -e . -c constraints.txt && luthier demo",
        'pip install -e ".[test]" -c constraints.txt && pytest -n 2 --dist loadgroup',
    ]


def test_no_block_is_of_a_language_that_nothing_checks() -> None:
    assert set(re.findall(r"(?m)^```(\w+)$", README)) <= {"console", "python", "text"}


def test_no_placeholder_is_left() -> None:
    assert "@@" not in README


def test_links_lead_somewhere() -> None:
    local = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert [link for link in local if not (ROOT / link.split("#")[0]).exists()] == []


@pytest.fixture(scope="session")
def place(small_demo: Demo) -> Path:
    """The folder in which a reader of the README would be after the demo."""
    folder, done = small_demo
    assert done.returncode == 0, done.stderr[-3000:]
    return folder.parent


def test_every_command_runs(place: Path, shrink: Callable[[Path], None]) -> None:
    """In order, as a reader types them; settings are made small where a command would train."""
    for command in OTHERS:
        words = shlex.split(command)
        assert words[0] == "luthier", command
        if words[1] == "run":
            shrink(place / words[2] / "luthier.toml")
        asked = "What is a luthier?\n/quit\n" if words[1] == "chat" else None
        line = [sys.executable, "-m", "luthier.scripts.cli", *words[1:]]
        done = subprocess.run(line, cwd=place, capture_output=True, text=True, input=asked)
        assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"


def test_every_python_block_runs(place: Path) -> None:
    """One after the other in one process, as a reader would paste them."""
    assert blocks("python")
    source = "\n".join(blocks("python"))
    done = subprocess.run([sys.executable, "-c", source], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
