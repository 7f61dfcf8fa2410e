"""What a file is: by its content, whatever it is called; and what is said of files that cannot be read."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import pytest

from luthier.core.data.collect import UNREADABLE
from luthier.core.data.readers import office
from luthier.core.data.readers.formats import format_of
from luthier.core.data.readers.ole import OleFile
from luthier.core.data.readers.read import READERS, read_document
from luthier.core.errors import DocumentError


def archive(**parts: str | bytes) -> bytes:
    """A zip archive; `__` in a name stands for a slash, `_dot_` for a dot."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in parts.items():
            target.writestr(name.replace("__", "/").replace("_dot_", "."), content)
    return out.getvalue()


def ole(streams: dict[str, bytes]) -> bytes:
    """An OLE file after [MS-CFB]: all streams under 4,096 bytes, so they lie in the mini stream; names are a chain of
    right siblings, folders are written as `folder/stream`."""
    mini, mini_fat = b"", []
    entries: list[list] = [["Root Entry", 5, 0, 0, -1, -1, -1]]  # name, kind, first, size, left, right, child
    folders = {"": 0}
    last_child: dict[int, int] = {}

    def add(name: str, parent: int, kind: int, first: int, size: int) -> int:
        entries.append([name, kind, first, size, -1, -1, -1])
        number = len(entries) - 1
        if parent in last_child:
            entries[last_child[parent]][5] = number
        else:
            entries[parent][6] = number
        last_child[parent] = number
        return number

    for path, content in streams.items():
        folder, _, name = path.rpartition("/")
        if folder not in folders:
            folders[folder] = add(folder, 0, 1, 0, 0)
        first, count = len(mini) // 64, -(-len(content) // 64)
        mini += content.ljust(64 * count, b"\0")
        mini_fat += [*range(first + 1, first + count), 0xFFFFFFFE] if count else []
        add(name, folders[folder], 2, first, len(content))
    sectors_of = lambda data: -(-len(data) // 512)  # noqa: E731
    entries[0][2], entries[0][3] = 3, len(mini)
    directory = b"".join(
        struct.pack("<64sHBB3i36sIII", n.encode("utf-16-le"), 2 * len(n) + 2, k, 1, left, r, c, b"", f, s, 0)
        for n, k, f, s, left, r, c in entries
    )
    fat = [0xFFFFFFFD, 0, 0xFFFFFFFE]  # the table itself, the directory (set below), the mini table
    minis = sectors_of(mini)
    fat += [*range(4, 3 + minis), 0xFFFFFFFE] if minis else []
    start = len(fat)
    directories = sectors_of(directory)
    fat += [*range(start + 1, start + directories), 0xFFFFFFFE]
    header = struct.pack("<8s16sHHHHH6sIIIIIIIII", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"", 62, 3, 65534, 9, 6, b"",
                         0, 1, start, 0, 4096, 2, 1, 0xFFFFFFFE, 0)  # fmt: skip
    header += struct.pack("<109I", 0, *[0xFFFFFFFF] * 108)
    fill = lambda numbers: struct.pack("<128I", *numbers, *[0xFFFFFFFF] * (128 - len(numbers)))  # noqa: E731
    body = fill(fat) + b"\0" * 512 + fill(mini_fat) + mini.ljust(512 * minis, b"\0")
    return header + body + directory.ljust(512 * directories, b"\0")


PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 20
MAIL = b"From: a@x.example\r\nTo: b@x.example\r\nSubject: Neck\r\n\r\nHow long is the warranty?"


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("notes.txt", b"%PDF-1.7\n...", "pdf"),
        ("scan.pdf", PNG, "image"),
        ("a.bin", archive(word__document_dot_xml="<x/>"), "docx"),
        ("a.zip", archive(ppt__presentation_dot_xml="<x/>"), "pptx"),
        ("a", archive(xl__workbook_dot_xml="<x/>"), "xlsx"),
        ("a.docx", archive(mimetype="application/vnd.oasis.opendocument.text"), "odt"),
        ("a", archive(mimetype="application/vnd.oasis.opendocument.spreadsheet\n"), "ods"),
        ("book", archive(mimetype="application/epub+zip"), "epub"),
        ("a.doc", rb"{\rtf1 Hello}", "rtf"),
        ("a.doc", b"<html><body>Hello</body></html>", "html"),
        ("a.txt", b"<!DOCTYPE html><p>Hello", "html"),
        ("a.txt", MAIL, "eml"),
        ("a.md", b"From: us\nTo: you\nSubject: mail\n\nA page.", "markdown"),
        ("A.MD", b"# Title", "markdown"),
        ("a.csv", b"a,b\n1,2", "csv"),
        ("a.json", b'{"a": 1}', "code"),
        ("a.txt", "Grüße".encode("utf-16-le"), "plain"),
        ("a.docx", b"only text", "plain"),
        ("a.msg", ole({"__properties_version1.0": b"\0" * 32}), "msg"),
    ],
)
def test_content_decides_and_the_name_helps(name: str, data: bytes, expected: str) -> None:
    assert format_of(Path(name), data) == expected
    assert expected in READERS


@pytest.mark.parametrize(
    ("name", "data", "rule", "says"),
    [
        ("a.txt", b"", "empty", "empty"),
        ("a.txt", b" \r\n\t\0", "empty", "empty"),
        ("a.zip", archive(x="1", y="2"), "unknown-format", "2 files"),
        ("a.gz", b"\x1f\x8b\x08abc", "unknown-format", "Unpack"),
        ("a.mp4", b"\0\0\0\x18ftypmp42" + b"\0" * 9, "unknown-format", "video"),
        ("a.heic", b"\0\0\0\x18ftypheic" + b"\0" * 9, "unknown-format", "JPEG"),
        ("a.dat", bytes(range(256)) * 3, "unknown-format", "begins 00 01 02"),
        ("a.doc", ole({"WordDocument": b"x"}), "unknown-format", ".docx"),
        ("a.xls", ole({"Workbook": b"x"}), "unknown-format", ".xlsx"),
        ("a.xlsb", archive(xl__workbook_dot_bin="x"), "unknown-format", ".xlsx"),
        ("a.docx", ole({"EncryptionInfo": b"x", "EncryptedPackage": b"y"}), "encrypted", "password"),
        ("a.docx", archive(word__document_dot_xml="<x/>" * 999)[:-40], "unreadable", "damaged"),
        ("a.docx", archive(word__document_dot_xml=""), "unreadable", "body"),
        ("a.pdf", b"%PDF-1.4 and nothing more", "unreadable", "damaged"),
        ("a.png", PNG, "unreadable", "damaged"),
        ("a.msg", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 40, "unreadable", "damaged"),
        ("a.md", b"---\ntitle: x\n---\n", "no-text", "no text"),
        ("a.html", b"<html><script>run()</script></html>", "no-text", "no text"),
    ],
)
def test_what_cannot_be_read_says_why(name: str, data: bytes, rule: str, says: str) -> None:
    with pytest.raises(DocumentError, match=says) as caught:
        read_document(Path(name), data)
    assert caught.value.rule == rule
    assert rule in UNREADABLE
    assert name in str(caught.value)
    assert len(str(caught.value).split("\n")) <= 3
    assert " at 0x" not in str(caught.value)  # a place in memory: rejected.jsonl would be another at each run


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="no such file") as caught:
        read_document(tmp_path / "gone.txt")
    assert caught.value.rule == "missing"
    with pytest.raises(DocumentError) as caught:
        read_document(tmp_path)
    assert caught.value.rule == "unreadable"


def test_an_encrypted_part_of_a_zip() -> None:
    data = bytearray(archive(word__document_dot_xml="<document><body/></document>"))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    with pytest.raises(DocumentError) as caught:
        read_document(Path("a.docx"), bytes(data))
    assert caught.value.rule == "encrypted"


def test_a_zip_bomb_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(office, "LARGEST_PART", 10_000)
    bomb = archive(word__document_dot_xml="<a>" + " " * 1_000_000 + "</a>")
    assert len(bomb) < 5_000
    with pytest.raises(DocumentError, match="refused") as caught:
        read_document(Path("a.docx"), bomb)
    assert caught.value.rule == "unreadable"


def test_entities_are_not_expanded_and_nothing_is_fetched() -> None:
    lol = '<!DOCTYPE d [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;"><!ENTITY f SYSTEM "file:///etc/passwd">]>'
    ns = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    body = f"{lol}<w:document {ns}><w:body><w:p><w:r><w:t>Open &b; here &f;</w:t></w:r></w:p></w:body></w:document>"
    extracted = read_document(Path("a.docx"), archive(word__document_dot_xml=body))
    text = " ".join(b.text for b in extracted.blocks)
    assert "Open" in text
    assert "ha" not in text
    assert "root:" not in text


def test_an_ole_file_gives_its_streams_back() -> None:
    streams = {"a": b"x" * 100, "folder/b": b"y" * 64, "folder/c": "ü".encode("utf-16-le"), "d": b""}
    opened = OleFile(Path("x"), ole(streams))
    assert {name: opened.read(name) for name in streams} == streams
    assert set(opened.names()) == {*streams, "folder"}
    assert opened.read("nothing") == b""


def test_a_chain_that_runs_in_a_circle_ends() -> None:
    data = bytearray(ole({"a": b"x" * 100}))
    struct.pack_into("<I", data, 512 + 4 * 4, 4)  # the directory's sector follows itself
    with pytest.raises(DocumentError, match="leads nowhere"):
        OleFile(Path("x"), bytes(data))
