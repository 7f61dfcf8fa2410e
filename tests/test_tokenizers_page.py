"""The students' page on tokenizers is a program: its Python says what it shows, its commands run."""

from __future__ import annotations

import doctest
import re
import shlex
import shutil
from pathlib import Path

import pytest

from luthier.scripts.cli import main

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "tokenizers.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", PAGE)


def test_no_block_is_of_a_language_that_nothing_checks() -> None:
    assert set(re.findall(r"(?m)^```(\w*)$", PAGE)) <= {"console", "python", "text", ""}


def test_every_python_block_says_what_it_shows() -> None:
    """One after the other, as a reader would paste them."""
    page = doctest.DocTestParser().get_doctest("\n".join(blocks("python")), {}, "docs/tokenizers.md", None, 0)
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF).run(page, out=said.append)
    assert result.attempted > 40
    assert result.failed == 0, "".join(said)


def test_every_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the repository's folder, with the folder that the page names put elsewhere."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("benchmarks"))
    shutil.copy(ROOT / "README.md", tmp_path)
    monkeypatch.chdir(tmp_path)
    lines = [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]
    assert len(lines) == 5
    for line in lines:
        verb, *words = shlex.split(line.replace("/tmp/", f"{tmp_path}/"))
        assert (verb, main(words)) == ("luthier", 0), capsys.readouterr().err
    out = capsys.readouterr().out
    for part in ("bytes a token", "merges make", "by language", "unused ids"):
        assert part in out
