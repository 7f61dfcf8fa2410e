"""`kill -9` in the middle of a run: what was finished is whole, the same command goes on; --watch sees new files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import luthier.core.project as project_module
from luthier.core.artifacts import hash_file, read_jsonl, read_manifest
from luthier.core.errors import InputError
from luthier.core.project import Run, load_project, new_project, run_project, steps, watch_project

WOODS = ("spruce", "cedar", "maple", "rosewood", "ebony", "pear", "walnut", "willow")
SETTINGS = """
[tokenizer]
vocab_size = 300

[vectors]
vector_size = 16
epochs = 1

[pretrain]
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
context = 32
batch_size = 4
steps = 36
save_every = 0.0
evaluate_every = 18
threads = 1

[finetune]
epochs = 1
batch_size = 4
context = 64
save_every = 0.0
threads = 1

[evaluate]
questions_per_set = 2
resamples = 20

[assistant]
max_new_tokens = 4
"""


def small_project(folder: Path) -> Path:
    """A project of one page of text, with its stages as small as they go."""
    new_project(folder)
    settings = folder / "luthier.toml"
    text = settings.read_text().replace('general = "python"', 'general = "none"').replace("[pretrain]\n", "")
    settings.write_text(text.replace("\n[finetune]\n", SETTINGS))
    for i, wood in enumerate(WOODS):
        (folder / "documents" / f"{wood}.md").write_text(page(wood, i))
    return folder


def page(wood: str, i: int) -> str:
    return f"# {wood.title()}\n\n**{wood.title()}**: a wood that dries for {i + 2} years in the loft number {i}.\n"


def kill_in(folder: Path, stage: str, lines: int = 0) -> None:
    """Start `luthier run` and kill it while `stage` is being made and has logged `lines` lines."""
    building = folder / "build" / f".{stage}.building"
    command = [sys.executable, "-m", "luthier.scripts.cli", "run", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None and not _logged(building, lines):
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, f"the run ended before it could be killed in {stage}"


def _logged(building: Path, lines: int) -> bool:
    log = building / "metrics.jsonl"
    return building.is_dir() and (not lines or (log.is_file() and log.read_bytes().count(b"\n") >= lines))


def finished(folder: Path) -> dict[str, int]:
    """When each finished artefact was made; every one of them is what its manifest says."""
    made = {}
    for artifact in (p for p in sorted((folder / "build").iterdir()) if p.is_dir() and not p.name.startswith(".")):
        for name, sha256 in read_manifest(artifact)["outputs"].items():
            assert hash_file(artifact / name) == sha256, artifact / name
        made[artifact.name] = (artifact / "manifest.json").stat().st_mtime_ns
    return made


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    folder = small_project(tmp_path / "shop")
    kill_in(folder, "corpus")
    finished(folder)
    kill_in(folder, "model", lines=8)
    before = finished(folder)
    assert not (folder / "build" / "model").exists()
    assert set(before) == {"corpus", "tokenizer", "shards", "vectors-word2vec"}
    run_project(folder)
    after = finished(folder)
    assert {name: after[name] for name in before} == before
    assert set(after) == {*before, "model", "tuned", "index", "evaluation"}
    assert not [p.name for p in (folder / "build").iterdir() if p.name.endswith((".building", ".old"))]
    steps = [row["step"] for row in read_jsonl(folder / "build" / "model" / "metrics.jsonl") if "loss" in row]
    assert steps == list(range(1, 37)), "steps were lost or done twice"


def test_watch_sees_a_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = small_project(tmp_path / "shop")
    runs: list[list[str]] = []

    def run_and_add(path: Path) -> Run:
        """The first stage of a run; after it has looked, a file arrives that it has not seen."""
        next(steps(load_project(path))).call()
        runs.append(sorted(d["path"] for d in read_manifest(path / "build" / "corpus")["documents"]))
        if len(runs) == 1:
            (path / "documents" / "yew.md").write_text(page("yew", 9))
        return Run(measured={"round": len(runs)})

    monkeypatch.setattr(project_module, "run_project", run_and_add)
    told: list[Run] = []
    watch_project(folder, after=told.append, every=0.01, rounds=2)
    assert [run.measured for run in told] == [{"round": 1}, {"round": 2}]
    assert "yew.md" not in runs[0]
    assert runs[1] == sorted([*runs[0], "yew.md"])


def test_watch_waits_an_error_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = new_project(tmp_path / "shop")
    calls: list[int] = []

    def fails_once(path: Path) -> Run:
        calls.append(len(calls))
        (path / "documents" / "new.md").write_text(page("pine", len(calls)))
        if len(calls) == 1:
            raise InputError("nothing to read yet")
        if len(calls) == 3:
            raise ZeroDivisionError
        return Run()

    monkeypatch.setattr(project_module, "run_project", fails_once)
    told: list[Run] = []
    watch_project(folder, after=told.append, every=0.01, rounds=2)
    assert calls == [0, 1] and len(told) == 1
    with pytest.raises(ZeroDivisionError):  # a defect is no message
        watch_project(folder, every=0.01, rounds=1)
