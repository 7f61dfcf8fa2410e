"""Texts: what is read from a corpus, files and folders, in which order, and what bad input gets."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.artifacts import Artifact, write_jsonl
from luthier.core.data.corpus import Document, Source
from luthier.core.data.texts import Text, read_texts
from luthier.core.errors import InputError


def make_corpus(folder: Path, documents: list[Document]) -> Path:
    with Artifact(folder, "collect", {}, {}) as work:
        write_jsonl(work.folder / "documents.jsonl", (d.to_row() for d in documents))
        write_jsonl(work.folder / "rejected.jsonl", ())
    return folder


def document(name: str, text: str, **kwargs: str) -> Document:
    return Document(id=name, text=text, source=Source(name, "0" * 64, "text/plain"), **kwargs)  # type: ignore[arg-type]


def test_a_corpus_gives_its_stable_documents_with_line_and_split(tmp_path: Path) -> None:
    corpus = make_corpus(
        tmp_path / "corpus",
        [
            document("a.txt", "A"),
            document("news.txt", "N", kind="volatile"),
            document("empty.txt", " \n"),
            document("b.txt", "B", split="validation"),
        ],
    )
    assert list(read_texts([corpus])) == [
        Text("A", "train", 0, "a.txt", "corpus"),
        Text("B", "validation", 3, "b.txt", "corpus"),
    ]
    assert [t.name for t in read_texts([tmp_path])] == ["a.txt", "b.txt"]  # a folder that holds a corpus


def test_files_and_folders_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / "b.md").write_text("B")
    (tmp_path / "a.TXT").write_bytes(b"\xef\xbb\xbfA\r\nA")
    (tmp_path / "sub" / "c.jsonl").write_text('{"text": "C1"}\n\n{"text": "C2", "more": 1}\n')
    (tmp_path / "sub" / "d.txt.gz").write_bytes(gzip.compress(b"D"))
    (tmp_path / "sub" / "e.jsonl.gz").write_bytes(gzip.compress(b'{"text": "E"}\n'))
    (tmp_path / "x.pdf").write_bytes(b"%PDF")
    texts = list(read_texts([tmp_path / "sub" / "d.txt.gz", tmp_path]))
    assert [t.text for t in texts] == ["D", "A\nA", "B", "C1", "C2", "D", "E"]
    assert {(t.split, t.line, t.origin) for t in texts} == {("train", -1, "file")}
    assert texts[4].name == f"{tmp_path}/sub/c.jsonl:3"
    assert ".pdf 1" in capsys.readouterr().err


def test_general_text_comes_last_and_stands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.core.data import general

    monkeypatch.setattr(general, "MODULES", ["abc", "queue"])
    (tmp_path / "a.txt").write_text("A")
    assert next(read_texts([tmp_path], general="python")).text == "A"
    texts = list(read_texts([], general="python"))
    assert len(texts) > 50
    assert {(t.origin, t.line, t.split) for t in texts} == {("general", -1, "train")}
    assert texts[0].name == "python: abc"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip), min_size=1))
def test_any_text_survives_jsonl(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    file = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    file.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    assert [t.text for t in read_texts([file])] == [t.replace("\r\n", "\n") for t in texts]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"caf\xe9 x", "a.txt: not UTF-8 at byte 3 (0xe9)"),
        ("a.txt", "ab".encode("utf-16"), "not UTF-8 at byte 0 (0xff)"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', "a.jsonl: not UTF-8 at byte 24"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "a.jsonl:2: not valid JSON"),
        ("a.jsonl", b'{"texts": "x"}\n', "a.jsonl:1: no field 'text'; it has texts; did you mean 'texts'?"),
        ("a.jsonl", b'{"n": 1, "body": "x"}\n', "it has body, n\nName the one that holds the text: --column body"),
        ("a.jsonl", b'{"q": "x", "a": "y"}\n', "it has q, a\nName the one that holds the text: --column NAME"),
        ("a.jsonl", b'{"text": 3}\n', "a.jsonl:1: field 'text' holds a number, not text; it has text\nNone of these"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "y"}\n', "a.jsonl:2: no field 'text'; it has body\nThe lines before"),
        ("a.jsonl", b'{"text": [{}]}\n', "a.jsonl:1: field 'text' holds a list, not text"),
        ("a.jsonl", b"{}\n", "a.jsonl:1: no field 'text'; it has none"),
        ("a.jsonl", b"[1]\n", "a.jsonl:1: found list"),
        (
            "a.jsonl",
            b'{"text": "x", "more": ' + b"[" * 99_999 + b"]" * 99_999 + b"}",
            "a.jsonl:1: its values are nested",
        ),
        ("a.jsonl", json.dumps({f"k{i}": i for i in range(300)}).encode(), "k18, k19 and 280 more"),
        ("a.jsonl", b'{"text": "\\ud83d"}\n', "a.jsonl:1: field 'text' holds half of a surrogate pair"),
        ("a.txt.gz", b"no gzip", "a.txt.gz: damaged gzip"),
        ("a.txt.gz", gzip.compress(b"abc" * 99, mtime=0)[:-9], "a.txt.gz: damaged gzip"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}', mtime=0)[:-9], "a.jsonl.gz: damaged gzip"),
        ("a.txt", "A line, ß.\n".encode("utf-16-le"), "a.txt: not UTF-8 at byte 16 (0xdf)"),
        ("a.txt", "A line.\n".encode("utf-16-le"), "not text in UTF-8: of 16 bytes from byte 0 on 8 are zero"),
        ("a.txt", b"A line." + bytes(99), "not text in UTF-8: of 106 bytes from byte 0 on 99 are zero"),
        ("a.txt.gz", b"", "a.txt.gz: damaged gzip file: it is empty"),
        ("a.jsonl.zst", b"", "a.jsonl.zst: damaged zstd file: it is empty"),
        ("a.txt", gzip.compress(b"x", mtime=0), "packed by gzip\nUnpack it, or name it a.txt.gz."),
        ("a.jsonl", zstandard.ZstdCompressor().compress(b"x"), "packed by zstd\nUnpack it, or name it a.jsonl.zst."),
        ("a.txt.gz", gzip.compress(gzip.compress(b"x", mtime=0), mtime=0), "packed by gzip\nUnpack it once more."),
        ("a.txt", b" \n", "no text in"),
        ("a.jsonl", b'{"text": null}\n{"text": " "}\n', "a.jsonl: found 2 texts of white space or null"),
        ("a.pdf", b"%PDF", "cannot read '.pdf' as text"),
        ("a.tar.gz", b"", "cannot read '.tar.gz' as text"),
        ("a", b"x", "cannot read a file without an ending as text"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        list(read_texts([tmp_path / name]))
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) <= 3


def test_rows_of_null_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [None, "A", "", " \n", "B\r\nB", None]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    assert [(t.text, t.name[-1]) for t in read_texts([tmp_path])] == [("A", "2"), ("B\nB", "5")]
    assert f"left out 4 texts of white space or null; the first is {tmp_path}/a.jsonl:1\n" in capsys.readouterr().err


def test_joined_files_and_long_numbers(tmp_path: Path) -> None:
    """`cat` puts the second file's byte order mark within; JSON has no longest number, Python's own has."""
    part = b'\xef\xbb\xbf{"text": "A", "n": ' + b"9" * 5000 + b"}\n"
    (tmp_path / "a.jsonl").write_bytes(part + part)
    assert [t.text for t in read_texts([tmp_path])] == ["A", "A"]


def test_links_back_are_not_followed(tmp_path: Path) -> None:
    for folder, other in (("a", "b"), ("b", "a")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "link").symlink_to(f"../{other}")
        (tmp_path / folder / "up").symlink_to("..")
        (tmp_path / folder / "here").symlink_to(".")
    (tmp_path / "a" / "x.txt").write_text("A")
    names = [t.name.removeprefix(f"{tmp_path}/") for t in read_texts([tmp_path])]
    assert names == ["a/x.txt", "b/link/x.txt"]


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(InputError, match="neither a file nor a folder"):
        read_texts([tmp_path / "a.txt"])


def test_bad_inputs_are_refused_before_reading(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_texts([tmp_path / "missing"])
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"holds no \.txt"):
        read_texts([tmp_path / "folder"])
    with Artifact(tmp_path / "vectors", "train-vectors", {}, {}):
        pass
    with pytest.raises(InputError, match="made by `luthier train-vectors`"):
        read_texts([tmp_path / "vectors"])


# ---------------------------------------------------------------- parts


def test_a_long_file_comes_in_parts_that_are_the_whole(tmp_path):
    """Cut anywhere else a part would end within a word; every size of block meets characters of 1 to 4 bytes, and
    line ends of two, at its border."""
    text = "Größe 12, 中文字 and 🎻; x\r\n" * 40
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    whole = text.replace("\r\n", "\n")
    for size in (*range(1, 24), 200):
        parts = list(read_texts([tmp_path / "a.txt"], part_size=size))
        assert "".join(t.text for t in parts) == whole, size
        assert [t.part for t in parts] == list(range(len(parts)))
    parts = [t.text for t in read_texts([tmp_path / "a.txt"], part_size=200)]
    assert len(parts) > 3
    assert all(part[-1].isalnum() and part[0] in " \n,;" for part in (*parts[1:-1],))
    [one] = read_texts([tmp_path / "a.txt"], part_size=1 << 20)
    assert (one.text, one.part) == (whole, 0)


def test_parts_name_the_byte_that_is_not_utf8(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"plain text, " * 10 + b"\xe9 more")
    (tmp_path / "b.txt").write_bytes(b"plain text, " * 10 + b"\xe4\xb8")
    for name in ("a.txt", "b.txt"):
        for size in (0, 7, 16, 1000):
            with pytest.raises(InputError, match=r"not UTF-8 at byte 120 \(0xe"):
                list(read_texts([tmp_path / name], part_size=size))


def test_parts_of_zeros_are_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"plain text, " * 10 + bytes(100))
    with pytest.raises(InputError, match=r"from byte 100 on \d+ are zero"):
        list(read_texts([tmp_path / "a.txt"], part_size=100))
    (tmp_path / "a.txt").write_bytes(b"one\0two\0" * 10)  # some are a text's own
    assert [t.text for t in read_texts([tmp_path / "a.txt"])] == ["one\0two\0" * 10]


def test_white_space_within_a_long_file_is_kept(tmp_path):
    for text in ("a" + " " * 300 + "b c", " " * 300 + "b c"):
        (tmp_path / "a.txt").write_text(text)
        assert "".join(t.text for t in read_texts([tmp_path / "a.txt"], part_size=50)) == text
    (tmp_path / "b.txt").write_text(" " * 300)
    with pytest.raises(InputError, match="no text"):
        list(read_texts([tmp_path / "b.txt"]))
