"""The whole process on the sample company, small: every stage fits the next, without Triton or glibc."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from luthier.core.artifacts import read_json, read_manifest
from luthier.core.assistant.opening import open_assistant
from luthier.core.evaluation.report import bits_rows, table_rows

Demo = tuple[Path, subprocess.CompletedProcess[str]]


def luthier(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "luthier.scripts.cli", *arguments], cwd=cwd, capture_output=True, text=True
    )


def test_the_demo_walks_without_triton_and_glibc(small_demo: Demo) -> None:
    folder, done = small_demo
    assert done.returncode == 0, done.stderr[-3000:]
    verbs = ("collect", "questions", "train-tokenizer", "encode", "train-vectors", "pretrain", "finetune", "index")
    for verb in (*verbs, "evaluate"):
        assert f"$ luthier {verb}" in done.stderr, verb
    assert "Done in" in done.stdout
    assert "luthier chat" in done.stdout
    assert (folder / "build" / "evaluation" / "report.html").is_file()


def test_every_manifest_names_the_documents(small_demo: Demo) -> None:
    folder, _ = small_demo
    rows = [json.loads(line) for line in (folder / "build/corpus/documents.jsonl").read_text().splitlines()]
    every, stable = {r["source"]["path"] for r in rows}, {r["source"]["path"] for r in rows if r["kind"] == "stable"}
    assert 10 < len(stable) < len(every)
    for artifact in (p for p in (folder / "build").iterdir() if p.is_dir() and not p.name.startswith(".")):
        documents = {d["path"] for d in read_manifest(artifact)["documents"]}
        wanted = every if artifact.name in ("corpus", "index", "evaluation") else stable
        assert documents & every == wanted, artifact.name


def test_volatile_documents_are_never_trained(small_demo: Demo) -> None:
    folder, _ = small_demo
    rows = [json.loads(line) for line in (folder / "build/corpus/documents.jsonl").read_text().splitlines()]
    volatile = {row["source"]["path"] for row in rows if row["kind"] == "volatile"}
    assert volatile
    trained = [json.loads(line) for line in (folder / "build/tuned/trained_pairs.jsonl").read_text().splitlines()]
    assert trained
    assert not volatile & {row["path"] for row in trained}


def test_all_sets_and_systems_are_evaluated(small_demo: Demo) -> None:
    folder, _ = small_demo
    table = read_json(folder / "build" / "evaluation" / "results.json")["table"]
    found = {(row["set"], row["system"]) for row in table}
    for name in ("trained", "paraphrase", "volatile", "unanswerable"):
        assert {(name, system) for system in ("before", "tuned", "retrieved", "both")} <= found


def test_a_second_run_redoes_nothing_and_a_changed_document_what_depends_on_it(small_demo: Demo) -> None:
    folder, _ = small_demo
    before = {p: p.stat().st_mtime_ns for p in (folder / "build").glob("*/manifest.json")}
    done = luthier("run", str(folder), cwd=folder.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {p: p.stat().st_mtime_ns for p in (folder / "build").glob("*/manifest.json")} == before
    assert "exact match" not in done.stdout  # measured before, and not again
    volatile = next(p for p in sorted((folder / "documents").rglob("*.md")) if "news" in p.as_posix())
    volatile.write_text(volatile.read_text() + "\n\nOn 3 May the workshop shows a new parlour guitar.\n")
    done = luthier("run", str(folder), cwd=folder.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    changed = {p.parent.name for p, at in before.items() if p.stat().st_mtime_ns != at}
    assert "Before and after tuning:" in done.stdout
    measured = read_json(folder / "build" / "evaluation" / "results.json")
    for cells in (*table_rows(measured), *bits_rows(measured)):
        assert any(all(cell in line for cell in cells[1:]) for line in done.stdout.splitlines()), cells
    assert changed == {"corpus", "index", "evaluation"}  # nothing that is trained: not for the news of the day
    assert {p.parent.name for p in before} - changed == {
        *("tokenizer", "shards", "vectors-word2vec", "vectors-glove", "model", "tuned")
    }
    hits = open_assistant(folder).assistant.search("What does the workshop show on 3 May?")
    assert "new parlour guitar" in hits[0].chunk.text
    assert hits[0].chunk.path == volatile.relative_to(folder / "documents").as_posix()
