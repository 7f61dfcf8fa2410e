"""The views of a corpus and of its questions say what is there, and never take a document's text for markup."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.core.artifacts import Artifact, write_jsonl
from luthier.core.data.corpus import Document, Source, Span
from luthier.core.data.questions import make_questions
from luthier.core.errors import ArtifactError
from luthier.core.show.corpus import show_corpus, show_questions

TEXT = "## Humidity [bold]\n\nKeep the humidity between 45 and 55 percent."


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    spans = [Span(0, 18, 0, "heading"), Span(20, len(TEXT), 0, "paragraph")]
    source = Source("care.md", "0" * 64, "text/markdown")
    document = Document("1", TEXT, source, spans, language="en", title="Care", rules=["hyphenation: 2"])
    lost = {"rule": "near-duplicate", "value": {"similarity": 0.91, "kept": "care.md"}, "message": "91% like care.md"}
    line = {"rule": "running-line", "value": 3, "message": "on pages 1, 2, 3", "part": True}
    with Artifact(tmp_path / "corpus", "collect", {}, {}) as work:
        write_jsonl(work.folder / "documents.jsonl", [document.to_row()])
        rejected = [{**document.to_row(), **lost}, {**document.to_row(), **line, "text": "Fretwork [red]"}]
        write_jsonl(work.folder / "rejected.jsonl", rejected)
    return tmp_path / "corpus"


def test_a_corpus(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_corpus(corpus)
    out = capsys.readouterr().out
    for part in (
        "a corpus of 1 document, 11 words, 64 characters",
        "format: text/markdown 1",
        "split of the stable ones: train 1",
        "Left out: 1 document, 1 running line",
        "near-duplicate",
        "0.91",
        "“Fretwork [red]” on pages 1, 2, 3",
        "rules: hyphenation: 2",
        "## Humidity [bold]",
    ):
        assert part in out


def test_a_long_path_keeps_its_name_and_a_reason_leaves_the_file_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = "handbook/general-information-and-resources/business-and-operations/billing_policy.md"
    rows = [
        (deep, "no-text", f"/home/me/documents/{deep}: no text found"),
        ("mail/a.eml/report.pdf", "unreadable", "report.pdf: a damaged PDF: no end"),
        ("b.txt", "few-letters", "not b.txt: few-letters 0.1"),
    ]
    with Artifact(tmp_path / "corpus", "collect", {}, {}) as work:
        kept = Document("1", TEXT, Source("care.md", "0" * 64, "text/markdown"), [Span(0, 18, 0, "heading")])
        write_jsonl(work.folder / "documents.jsonl", [kept.to_row()])
        rejected = [{"source": {"path": p}, "rule": rule, "value": 0, "message": said} for p, rule, said in rows]
        write_jsonl(work.folder / "rejected.jsonl", rejected)
    show_corpus(tmp_path / "corpus")
    lines = capsys.readouterr().out.splitlines()
    for ends, reason in (
        (("handbook/gen", "/billing_policy.md"), "no text found"),
        (("mail/a.eml/report.pdf",) * 2, "a damaged PDF: no end"),
        (("b.txt",) * 2, "not b.txt: few-letters 0.1"),
    ):
        path, _, rest = next(line for line in lines if line.strip().startswith(ends[0])).strip().partition("  ")
        assert path.endswith(ends[1]) and len(path) <= 40
        assert rest.split(None, 2)[2] == reason
    assert "/home/me" not in "".join(lines)


def test_questions(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_questions(corpus)
    capsys.readouterr()
    for path in (corpus, corpus / "questions.jsonl"):
        show_questions(path)
        out = capsys.readouterr().out
        assert "1 pair of question and answer, 4 wordings to train on" in out
        assert 'What does "Care" say about "Humidity [bold]"?' in out
        assert "facts: 45, 55 percent" in out
        assert "care.md, characters 20 to 64" in out


def test_what_is_no_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        show_corpus(tmp_path)
