"""Collecting: what is kept, what is left out and why, updates in place. The readers are stood in for by a small one, so
that every case can be planted: these tests are about what happens around reading."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from luthier.core.artifacts import content_hash, read_jsonl, read_manifest
from luthier.core.data import sources
from luthier.core.data.collect import CollectConfig, CollectSummary, collect, matches
from luthier.core.data.corpus import Document, read_corpus
from luthier.core.data.readers.read import Block, Extracted
from luthier.core.data.sources import find_files
from luthier.core.errors import ArtifactError, ConfigError, DocumentError, InputError, LuthierError


class Reader:
    """Reads `KIND` or `kind|page: text` paragraphs; a file that begins with `!rule` cannot be read, `!!` breaks the
    reader itself, `@name: text` is an attachment. Counts what it reads."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, file: Path, data: bytes | None) -> Extracted:
        self.read.append(file.name)
        text = (file.read_bytes() if data is None else data).decode()
        if text.startswith("!!"):
            raise DocumentError("unreadable", f"{file}: KeyError: 'x'")
        if text.startswith("!"):
            raise DocumentError(text[1:].strip(), f"{file}: {text[1:].strip()}", 0.61 * (text == "!low-confidence"))
        out = Extracted([], "text/plain")
        for part in text.split("\n\n"):
            if match := re.match(r"@(\S+): (.*)", part, re.DOTALL):
                out.attachments.append((match[1], match[2].encode()))
            elif match := re.match(r"(\w+)\|(\d+): (.*)", part, re.DOTALL):
                out.blocks.append(Block(match[3], match[1], int(match[2]), 1))
            elif match := re.match(r"(#+) (.*)", part):
                out.blocks.append(Block(match[2], "heading", 0, len(match[1])))
            else:
                out.blocks.append(Block(part, "paragraph"))
        return out


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Reader:
    reader = Reader()
    monkeypatch.setattr(sources, "_read", reader)
    return reader


TOPICS = "spruce cedar maple rosewood walnut ebony mahogany ash cherry pear koa willow".split()  # noqa: SIM905


def text_about(n: int) -> str:
    return " ".join(f"The {TOPICS[n % 12]} number {n} has property {k * (n + 3)} in row {k}." for k in range(1, 12))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    docs = tmp_path / "docs"
    (docs / "news").mkdir(parents=True)
    for n in range(8):
        (docs / f"doc{n}.txt").write_text(f"# Topic {n}\n\n{text_about(n)}")
    (docs / "news" / "week.txt").write_text("Open on Monday from nine to five this week only.")
    return docs


def rejected(corpus: Path) -> dict[str, dict]:
    return {row["source"]["path"]: row for row in read_jsonl(corpus / "rejected.jsonl")}


def snapshot(corpus: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in corpus.rglob("*")}


# ---------------------------------------------------------------- what is kept


def test_documents_are_read_cleaned_and_placed(folder: Path, tmp_path: Path, reader: Reader) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "a.txt").write_text("# CafÃ©\n\nA fine instru-\nment of some kind.\n\nAnother instrument here.")
    summary = collect([folder], tmp_path / "corpus", CollectConfig(volatile=("news/*",)))
    documents = {d.source.path: d for d in read_corpus(tmp_path / "corpus")}
    assert list(documents) == sorted(documents, key=lambda path: (documents[path].kind != "stable", path))
    a = documents["sub/a.txt"]
    assert a.text == "# Café\n\nA fine instrument of some kind.\n\nAnother instrument here."
    assert (a.spans[0].block, a.text[a.spans[0].start : a.spans[0].end]) == ("heading", "# Café")
    assert a.title == "Café"
    assert a.rules == ["encoding", "hyphenation: 1"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", a.modified)
    assert documents["news/week.txt"].kind == "volatile"
    assert documents["news/week.txt"].split == "train"
    assert documents["news/week.txt"].language == "en"
    assert {d.split for d in documents.values()} == {"train", "validation"}
    assert (summary.kept, summary.reread, summary.kinds) == (10, 10, {"stable": 9, "volatile": 1})
    assert read_manifest(tmp_path / "corpus", "collect")["documents"] == [
        {"path": d.source.path, "sha256": d.source.sha256} for d in documents.values()
    ]


def test_every_way_to_fail_is_recorded_and_the_run_goes_on(folder: Path, tmp_path: Path, reader: Reader) -> None:
    rules = ["missing", "empty", "unreadable", "encrypted", "no-text", "unknown-format", "low-confidence"]
    for rule in rules:
        (folder / f"bad-{rule}.txt").write_text(f"!{rule}")
    (folder / "short.txt").write_text("Hi there")
    (folder / "twin.txt").write_text((folder / "doc1.txt").read_text().upper())
    for name in ("twin.txt", "doc1.txt"):
        os.utime(folder / name, (1e9, 1e9))
    summary = collect([folder], tmp_path / "corpus")
    rows = rejected(tmp_path / "corpus")
    assert {path: row["rule"] for path, row in rows.items()} == {
        **{f"bad-{rule}.txt": rule for rule in rules},
        "short.txt": "too-short",
        "twin.txt": "exact-duplicate",
    }
    assert rows["bad-encrypted.txt"]["message"].endswith("encrypted")
    assert rows["short.txt"]["value"] == 2
    assert {path: row["value"] for path, row in rows.items() if path.startswith("bad-") and row["value"]} == {
        "bad-low-confidence.txt": 0.61
    }
    assert summary.unreadable == 7
    assert summary.rejected["exact-duplicate"] == 1
    assert summary.read == summary.kept + 9
    assert "unreadable" in str(summary)


def test_a_broken_reader_is_told_alike_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Extracted:
        raise ValueError(f"no end in {object()!r}")

    monkeypatch.setattr("luthier.core.data.readers.read.read_document", broken)
    with pytest.raises(DocumentError, match=r"^a\.txt: ValueError: no end in <object object>$"):
        sources._read(Path("a.txt"), b"x")


def test_a_near_copy_names_what_it_is_like_and_how_much(folder: Path, tmp_path: Path, reader: Reader) -> None:
    (folder / "near.txt").write_text((folder / "doc2.txt").read_text() + " One more sentence stands here.")
    collect([folder], tmp_path / "corpus")
    row = rejected(tmp_path / "corpus")["doc2.txt"]
    assert row["rule"] == "near-duplicate"
    assert row["value"]["kept"] == "near.txt"
    assert 0.8 <= row["value"]["similarity"] < 1
    assert row["text"]


def test_copies_of_different_kinds_are_both_kept(folder: Path, tmp_path: Path, reader: Reader) -> None:
    (folder / "news" / "doc3.txt").write_text((folder / "doc3.txt").read_text())
    collect([folder], tmp_path / "corpus", CollectConfig(volatile=("news",)))
    kinds = {d.source.path: d.kind for d in read_corpus(tmp_path / "corpus")}
    assert (kinds["doc3.txt"], kinds["news/doc3.txt"]) == ("stable", "volatile")


def test_running_lines_stand_in_rejected_as_parts(folder: Path, tmp_path: Path, reader: Reader) -> None:
    parts = [f"paragraph|{n}: Fretwork and Sons\n{text_about(n + 20)}\nand {text_about(n)}\n{n}" for n in range(1, 5)]
    (folder / "paged.txt").write_text("\n\n".join(parts))
    summary = collect([folder], tmp_path / "corpus")
    parts = [row for row in read_jsonl(tmp_path / "corpus" / "rejected.jsonl") if row.get("part")]
    assert {(row["text"], row["value"]) for row in parts} == {
        ("Fretwork and Sons", 4),
        *((str(n), 1) for n in range(1, 5)),
    }
    assert {row["message"] for row in parts} == {"on pages 1, 2, 3, 4", *(f"on page {n}" for n in range(1, 5))}
    assert summary.rejected == {}


def test_attachments_become_documents_and_share_their_mails_kind(folder: Path, tmp_path: Path, reader: Reader) -> None:
    inner = f"@deep.txt: {text_about(33)}"
    (folder / "mail.eml").write_text(
        f"{text_about(30)}\n\n@a.txt: {text_about(31)}\n\n@a.txt: {text_about(32)}\n\n@../x/bad.bin: !encrypted"
    )
    (folder / "outer.eml").write_text(f"{text_about(34)}\n\n@inner.eml: {inner}")
    summary = collect([folder], tmp_path / "corpus", CollectConfig(volatile=("mail.eml", "none/*")))
    documents = {d.source.path: d for d in read_corpus(tmp_path / "corpus")}
    assert documents["mail.eml/a.txt"].kind == documents["mail.eml/a-2.txt"].kind == "volatile"
    assert documents["mail.eml/a.txt"].modified == documents["mail.eml"].modified
    assert rejected(tmp_path / "corpus")["mail.eml/bad.bin"]["rule"] == "encrypted"
    assert summary.unreadable == 1
    reader.read.clear()
    (folder / "doc0.txt").write_text(text_about(40))
    again = collect([folder], tmp_path / "corpus", CollectConfig(volatile=("mail.eml", "none/*")))
    assert reader.read == ["doc0.txt"]
    assert again.kept == summary.kept


def test_validation_patterns_hold_out_and_must_leave_something(folder: Path, tmp_path: Path, reader: Reader) -> None:
    config = CollectConfig(validation=("doc4.txt",), validation_fraction=0.0)
    collect([folder], tmp_path / "corpus", config)
    splits = {d.source.path: d.split for d in read_corpus(tmp_path / "corpus")}
    assert [path for path, name in splits.items() if name == "validation"] == ["doc4.txt"]
    with pytest.raises(ConfigError, match="every stable document"):
        collect([folder], tmp_path / "corpus", CollectConfig(validation=("*",)))


# ---------------------------------------------------------------- updates


def test_nothing_new_leaves_the_folder_untouched(folder: Path, tmp_path: Path, reader: Reader) -> None:
    corpus = tmp_path / "corpus"
    first = collect([folder], corpus)
    before, count = snapshot(corpus), len(reader.read)
    for file in folder.rglob("*.txt"):
        os.utime(file)  # touched, not changed
    second = collect([folder], corpus)
    assert snapshot(corpus) == before
    assert len(reader.read) == count
    assert not second.changed
    assert (second.kept, second.rejected, second.kinds) == (first.kept, first.rejected, first.kinds)


def test_an_update_reads_only_what_changed_and_gives_what_a_first_run_gives(
    folder: Path, tmp_path: Path, reader: Reader
) -> None:
    corpus = tmp_path / "corpus"
    collect([folder], corpus)
    (corpus / "questions.jsonl").write_text("mine\n")
    reader.read.clear()
    (folder / "doc1.txt").write_text(text_about(77))
    (folder / "doc2.txt").unlink()
    (folder / "new.txt").write_text(text_about(78))
    (folder / "doc3.txt").rename(folder / "renamed.txt")
    summary = collect([folder], corpus)
    assert sorted(reader.read) == ["doc1.txt", "new.txt", "renamed.txt"]
    assert summary.reread == 3
    collect([folder], tmp_path / "fresh")
    for name in ("documents.jsonl", "rejected.jsonl"):
        assert (corpus / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
    assert content_hash(corpus) == content_hash(tmp_path / "fresh")
    assert (corpus / "questions.jsonl").read_text() == "mine\n"
    assert len(list((corpus / "extracted").iterdir())) == summary.read


def test_other_settings_read_nothing_again(folder: Path, tmp_path: Path, reader: Reader) -> None:
    collect([folder], tmp_path / "corpus")
    reader.read.clear()
    assert collect([folder], tmp_path / "corpus", CollectConfig(seed=1)).changed
    assert reader.read == []


def test_other_readers_read_everything_again(
    folder: Path, tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect([folder], tmp_path / "corpus")
    reader.read.clear()
    monkeypatch.setattr("luthier.core.data.collect.reader_state", lambda: "newer")
    collect([folder], tmp_path / "corpus")
    assert len(reader.read) == 9


def test_an_interrupted_run_keeps_what_it_read_and_the_old_corpus(
    folder: Path, tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "corpus"
    collect([folder], corpus)
    (corpus / "questions.jsonl").write_text("mine\n")
    before = (corpus / "documents.jsonl").read_bytes()
    for n in range(8):
        (folder / f"doc{n}.txt").write_text(text_about(50 + n))

    def interrupted(file: Path, data: bytes | None) -> Extracted:
        if len(reader.read) == 12:  # nine of the first run and three of this
            raise KeyboardInterrupt
        return reader(file, data)

    monkeypatch.setattr(sources, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect([folder], corpus)
    assert (corpus / "documents.jsonl").read_bytes() == before
    monkeypatch.setattr(sources, "_read", reader)
    (folder / "late.txt").write_text(text_about(90))  # other work than what was interrupted
    reader.read.clear()
    collect([folder], corpus)
    assert len(reader.read) == 6  # five that the interrupted run had not reached, and the late one
    assert (corpus / "questions.jsonl").read_text() == "mine\n"


def test_a_damaged_cache_entry_is_read_again(folder: Path, tmp_path: Path, reader: Reader) -> None:
    collect([folder], tmp_path / "corpus")
    entries = sorted((tmp_path / "corpus" / "extracted").iterdir())
    entries[0].write_text('{"id": ')
    entries[1].write_text(json.dumps({"other": "shape"}))
    reader.read.clear()
    collect([folder], tmp_path / "corpus", CollectConfig(seed=2))
    assert len(reader.read) == 2


# ---------------------------------------------------------------- sources


def test_hidden_lock_and_unfinished_files_and_our_own_folders_are_passed_over(folder: Path, reader: Reader) -> None:
    for name in (".hidden", "~$open.docx", ".~lock.a.odt#", "Thumbs.db", "film.crdownload", ".DS_Store"):
        (folder / name).write_text("x")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("x")
    collect([folder], folder / "corpus")  # inside what is collected
    first = [f.path for f in find_files([folder], folder / "corpus")[0]]
    assert first == [*(f"doc{n}.txt" for n in range(8)), "news/week.txt"]
    assert [f.path for f in find_files([folder])[0]] == first  # known by its manifest, too
    assert not collect([folder], folder / "corpus").changed


def test_several_sources_are_told_apart(tmp_path: Path, reader: Reader) -> None:
    for place in ("a/docs", "b/docs", "c"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "x.txt").write_text(place)
    (tmp_path / "single.txt").write_text("x")
    paths = lambda *names: [f.path for f in find_files([tmp_path / n for n in names])[0]]  # noqa: E731
    assert paths("c") == ["x.txt"]
    assert paths("single.txt") == ["single.txt"]
    assert paths("a/docs", "c") == ["c/x.txt", "docs/x.txt"]
    assert paths("a/docs", "b/docs") == ["a/docs/x.txt", "b/docs/x.txt"]
    assert paths("c", "single.txt", "c/x.txt") == ["c/x.txt", "single.txt"]  # reached twice, counted once


@pytest.mark.parametrize(
    ("path", "pattern", "fits"),
    [
        ("news/a.md", "news/*", True),
        ("news/2024/a.md", "news/*", True),
        ("news/a.md", "news", True),
        ("newsroom/a.md", "news", False),
        ("old/news/a.md", "news/*", False),
        ("old/news/a.md", "*/news/*", True),
        ("mail.eml/list.pdf", "*.eml", True),
        ("a/prices.csv", "*prices*", True),
        ("A/Prices.csv", "*prices*", False),
    ],
)
def test_patterns(path: str, pattern: str, fits: bool) -> None:
    assert matches(path, [pattern]) is fits


def test_a_pattern_that_fits_nothing_is_said(
    folder: Path, tmp_path: Path, reader: Reader, capsys: pytest.CaptureFixture[str]
) -> None:
    collect([folder], tmp_path / "corpus", CollectConfig(volatile=("nwes/*",)))
    assert "volatile pattern 'nwes/*' matches no document" in capsys.readouterr().err


def test_a_missing_source_a_pipe_a_loop_and_a_name_that_is_not_utf8_do_not_end_the_run(
    folder: Path, tmp_path: Path, reader: Reader
) -> None:
    os.mkfifo(folder / "pipe.txt")
    (folder / "loop.txt").symlink_to("loop.txt")
    (folder / "dangling.txt").symlink_to("nowhere.txt")
    strays = 0
    try:
        (folder / os.fsdecode(b"caf\xe9.txt")).write_text("!encrypted")
        strays = 1
    except OSError:  # file systems that take only UTF-8
        pass
    summary = collect([folder, tmp_path / "nowhere"], tmp_path / "corpus")
    found = {Path(path).name: row["rule"] for path, row in rejected(tmp_path / "corpus").items()}
    assert found["nowhere"] == found["dangling.txt"] == "missing"
    assert found["pipe.txt"] == found["loop.txt"] == "unreadable"
    assert strays == 0 or found["caf?.txt"] == "encrypted"
    assert summary.unreadable == 4 + strays
    assert not collect([folder, tmp_path / "nowhere"], tmp_path / "corpus").changed


# ---------------------------------------------------------------- what is refused


def refused(match: str, error: type[LuthierError] = InputError):
    return pytest.raises(error, match=match)


def test_no_source_a_missing_source_and_nothing_to_keep_are_explained(tmp_path: Path, reader: Reader) -> None:
    out = tmp_path / "corpus"
    with refused("no source given"):
        collect([], out)
    with refused(r"nowhere: no such file or folder"):
        collect([tmp_path / "nowhere"], out)
    (tmp_path / "empty").mkdir()
    with refused("no file to read there"):
        collect([tmp_path / "empty"], out)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.pdf").write_text("!encrypted")
    (tmp_path / "bad" / "b.txt").write_text("Hi")
    with refused(r"none of the 2 documents can be kept: (encrypted 1, too-short 1|too-short 1, encrypted 1)"):
        collect([tmp_path / "bad"], out)
    assert not out.exists()


def test_another_stages_folder_is_not_overwritten(folder: Path, tmp_path: Path, reader: Reader) -> None:
    from luthier.core.artifacts import Artifact

    with Artifact(tmp_path / "model", "pretrain", {}, {}) as work:
        (work.folder / "model.bin").write_text("x")
    with refused("made by `luthier pretrain`", ArtifactError):
        collect([folder], tmp_path / "model")
    with refused("was not made by luthier", ArtifactError):
        collect([folder], folder)
    assert (tmp_path / "model" / "model.bin").exists()


@pytest.mark.parametrize("setting", [{"validation_fraction": 1.5}, {"near_duplicate": 0.0}, {"min_letters": -1.0}])
def test_settings_out_of_range_are_refused(setting: dict[str, float]) -> None:
    with refused(next(iter(setting)), ConfigError):
        CollectConfig(**setting)  # type: ignore[arg-type]


def test_a_file_that_cannot_be_opened_is_recorded(folder: Path, tmp_path: Path, reader: Reader) -> None:
    (folder / "broken.txt").symlink_to(folder / "gone.txt")
    summary = collect([folder], tmp_path / "corpus")
    assert rejected(tmp_path / "corpus")["broken.txt"]["rule"] == "missing"
    assert summary.unreadable == 1


def test_a_reader_that_stumbles_makes_a_document_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(path: Path, data: bytes | None = None) -> Extracted:
        raise KeyError("word/document.xml")

    monkeypatch.setattr("luthier.core.data.readers.read.read_document", stumble)
    with pytest.raises(DocumentError, match=r"KeyError: 'word/document\.xml'") as caught:
        sources._read(tmp_path / "x.docx", None)
    assert caught.value.rule == "unreadable"


def test_strict_exits_with_one_and_help_is_quick(
    folder: Path, tmp_path: Path, reader: Reader, capsys: pytest.CaptureFixture[str]
) -> None:
    from luthier.scripts.collect import main

    out = str(tmp_path / "corpus")
    assert main([str(folder), "--out", out, "--strict"]) == 0
    (folder / "bad.pdf").write_text("!encrypted")
    assert main([str(folder), "--out", out, "--volatile", "news/*"]) == 0
    assert main([str(folder), "--out", out, "--volatile", "news/*", "--strict"]) == 1  # nothing to do, still said
    assert "encrypted" in capsys.readouterr().out


def test_rows_are_documents(folder: Path, tmp_path: Path, reader: Reader) -> None:
    """rejected.jsonl has the same fields as documents.jsonl and the rule, its value and a message."""
    (folder / "short.txt").write_text("Hi there")
    assert isinstance(collect([folder], tmp_path / "corpus"), CollectSummary)
    row = rejected(tmp_path / "corpus")["short.txt"]
    extra = {key: row.pop(key) for key in ("rule", "value", "message")}
    assert extra["rule"] == "too-short"
    assert Document.from_row(row).to_row() == row
