"""The terminal chat, driven by lines as from a pipe."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.core.assistant.assistant import Answer, Source
from luthier.core.assistant.chat import chat, origin
from luthier.core.assistant.opening import open_assistant
from luthier.models.checkpoints import CheckpointError

from .conftest import TAUGHT

TRAINED, LEARNT = next(iter(TAUGHT.items()))


def said(path: Path, index: Path | None, *lines: str, mode: str | None = None) -> str:
    out = io.StringIO()
    chat(open_assistant(path, index), mode, lines, out)
    return out.getvalue()


def test_every_answer_names_its_source(model: Path, index: Path) -> None:
    out = said(model, index, "What humidity is right?", "Who wears safety glasses?", TRAINED)
    assert "Keep the humidity between 45 and 55 percent.\n  quoted from care.md, score" in out
    assert "quoted from handbook.pdf, page 1, score" in out
    assert f"{LEARNT}\n  from the model's memory, confidence" in out
    out = said(index, None, "Do you fix harps [red]?")
    assert "Not found in the documents.\n  neither the index nor the model is sure enough" in out


def test_commands(model: Path, index: Path) -> None:
    out = said(
        index, None, "/help", "/why fret levelling", "/mode tuned", "/mode x", "/new", "/huh", "", "/quit", "unread"
    )
    assert "/mode tuned|retrieved|both" in out
    assert "prices.csv: Fret levelling – Price: CHF 180" in out
    assert "mode 'tuned' needs a model" in out
    assert "mode 'x': expected one of tuned, retrieved, both" in out
    assert "no command /huh" in out
    assert "A new conversation." in out
    assert "unread" not in out and "quoted" not in out


def test_the_mode_can_be_changed(model: Path, index: Path) -> None:
    out = said(model, index, "What humidity is right?", "/mode tuned", "What humidity is right?", mode="both")
    first, second = out.split("mode tuned")
    assert "quoted from care.md" in first
    assert "quoted" not in second


def test_from_a_pipe_the_command_prints_answers_and_nothing_else(index: Path) -> None:
    """One question a line, UTF-8 in and out, no prompt, exit code 0."""
    command = [sys.executable, "-m", "luthier.scripts.cli", "chat", str(index)]
    done = subprocess.run(
        command, input=b"Wie wird der Bogen entspannt?\n", capture_output=True, env={**os.environ, "PYTHONUTF8": "1"}
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    assert lines[0] == "Der Bogen wird nach dem Spielen entspannt."
    assert lines[1].startswith("  quoted from pflege.md") and len(lines) == 2


def test_a_damaged_model_is_refused_before_the_first_question(model: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(model, tmp_path / "damaged")
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors \(1,000 bytes\) is damaged"):
        said(damaged, None)


def test_origin_of_each_path() -> None:
    source = Source("a.pdf", 3, 0, 1, "x")
    assert origin(Answer("x", "retrieval", source, 0.876)) == "quoted from a.pdf, page 3, score 0.88"
    assert origin(Answer("x", "model", None, 0.5)) == "from the model's memory, confidence 0.50"
    assert "neither" in origin(Answer("x", "none"))
