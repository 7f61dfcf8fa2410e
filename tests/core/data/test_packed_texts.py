"""Packed and tabular text: .zst, .gz and Parquet give what the plain file gives; what is damaged is named."""

import builtins
import gzip
import json

import pytest
import zstandard

from luthier.core.data.encode import EncodeConfig, encode
from luthier.core.data.shards import open_shards
from luthier.core.data.texts import read_texts
from luthier.core.errors import InputError
from luthier.tokenizers.bpe_train import train_bpe
from luthier.tokenizers.formats import save_tokenizer

ROWS = [f"Row {i}: the ß of spruce, at {i * i}.\n" for i in range(2000)]


def files(folder):
    folder.mkdir(exist_ok=True)
    lines = "".join(json.dumps({"body": row, "n": i}) + "\n" for i, row in enumerate(ROWS)).encode()
    (folder / "a.jsonl").write_bytes(lines)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    half = len(lines) // 2  # two frames, one after the other, are one file
    pack = zstandard.ZstdCompressor().compress
    (folder / "c.jsonl.zst").write_bytes(pack(lines[:half]) + pack(lines[half:]))
    return [folder / name for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst")]


def parquet(folder, **columns):
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq  # pyright: ignore[reportMissingImports]

    pq.write_table(arrow.table(columns), folder / "d.parquet", row_group_size=300)
    return folder / "d.parquet"


def test_all_forms_hold_the_same_texts(tmp_path):
    for file in files(tmp_path):
        assert [t.text for t in read_texts([file], column="body")] == ROWS, file
    (tmp_path / "e.txt.zst").write_bytes(zstandard.ZstdCompressor().compress("".join(ROWS).encode()))
    assert [t.text for t in read_texts([tmp_path / "e.txt.zst"])] == ["".join(ROWS)]
    parts = [t.text for t in read_texts([tmp_path / "e.txt.zst"], part_size=5000)]
    assert len(parts) > 5 and "".join(parts) == "".join(ROWS)


def test_a_table_holds_the_same_texts(tmp_path):
    file = parquet(tmp_path, n=list(range(2000)), body=ROWS)
    assert [t.text for t in read_texts([file], column="body")] == ROWS


def test_shards_of_a_table(tmp_path):
    file = parquet(tmp_path, body=[*ROWS[:50], None, ""])
    tokenizer = train_bpe(ROWS[:50], 300)
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    encode([file], tmp_path / "tokenizer", tmp_path / "shards", EncodeConfig(column="body", validation_fraction=0))
    shards = open_shards(tmp_path / "shards")
    assert len(shards) == 50 and tokenizer.decode(shards.document(7)[:-1]) == ROWS[7]
    assert shards.names[7] == f"{file}:8"


def test_bad_files_are_named(tmp_path):
    whole = files(tmp_path)[2].read_bytes()
    for name, data, words in (
        ("cut.jsonl.zst", whole[: len(whole) // 3], "cut.jsonl.zst: damaged zstd file: the file ends in the middle"),
        ("no.jsonl.zst", b"plain text, really", "no.jsonl.zst: damaged zstd file"),
        ("flip.jsonl.zst", whole[:40] + b"\xff" * 40 + whole[80:], "flip.jsonl.zst: damaged zstd file"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=words):
            list(read_texts([tmp_path / name], column="body"))
    for file in files(tmp_path):
        with pytest.raises(InputError, match=rf"{file}:1: no field 'text'; it has body, n\nName .*: --column body$"):
            list(read_texts([file]))


def test_bad_tables_are_named(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "no.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(InputError, match=r"no\.parquet: not a Parquet file"):
        list(read_texts([tmp_path / "no.parquet"], column="body"))
    with pytest.raises(
        InputError, match=r"no column 'bod'; it has body, n; did you mean 'body'\?\nName .*: --column body$"
    ):
        list(read_texts([parquet(tmp_path, body=["x"], n=[1])], column="bod"))
    with pytest.raises(InputError, match=r"column 'n' holds int64, not text; it has body, n\nName .* --column body$"):
        list(read_texts([tmp_path / "d.parquet"], column="n"))
    with pytest.raises(InputError, match=r"holds list<element: string>, not text; it has a, n\nNone of these"):
        list(read_texts([parquet(tmp_path, a=[["x"]], n=[1])], column="a"))


def test_damaged_tables_are_named(tmp_path):
    """pyarrow's message names no file; what is read before it is right."""
    file = parquet(tmp_path, text=ROWS[:600])
    import pyarrow.parquet as pq  # pyright: ignore[reportMissingImports]

    whole = file.read_bytes()
    start = pq.ParquetFile(file).metadata.row_group(1).column(0).dictionary_page_offset
    file.write_bytes(whole[:start] + b"\xff" * 400 + whole[start + 400 :])
    seen = []
    with pytest.raises(InputError, match=r"d\.parquet: damaged Parquet file, after row \d+: .+\nGet it again"):
        seen.extend(t.text for t in read_texts([file]))
    assert seen == ROWS[: len(seen)]


def test_a_tables_checksums_are_looked_at(tmp_path):
    """One letter changed is still text; only the sum that the writer left tells."""
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq  # pyright: ignore[reportMissingImports]

    file = tmp_path / "d.parquet"
    for sums in (False, True):
        table = arrow.table({"text": ROWS[:50]})
        pq.write_table(table, file, compression="none", use_dictionary=False, write_page_checksum=sums)
        assert [t.text for t in read_texts([file])] == ROWS[:50]
        file.write_bytes(file.read_bytes().replace(b"Row 7: the", b"Row 7: thE"))
        if not sums:
            assert [t.text for t in read_texts([file])][7].startswith("Row 7: thE")
            continue
        with pytest.raises(InputError, match=r"d\.parquet: damaged Parquet file.*CRC"):
            list(read_texts([file]))


def test_every_type_that_holds_text(tmp_path):
    """What pyarrow itself gives for the column, null and bytes included."""
    arrow = pytest.importorskip("pyarrow")
    texts = [None if i % 3 == 0 else row for i, row in enumerate(ROWS[:700])]
    plain = arrow.array(texts)
    for kind in (plain, plain.cast("large_string"), plain.cast("binary"), plain.dictionary_encode()):
        file = parquet(tmp_path, text=kind, n=list(range(700)))
        assert [t.text for t in read_texts([file])] == [t for t in plain.to_pylist() if t]


def test_bytes_in_a_table_that_are_not_utf8(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    for kind in ("string", "binary"):
        file = parquet(tmp_path, text=arrow.array([b"ok", b"caf\xe9"], "binary").view(kind))
        with pytest.raises(InputError, match=r"d\.parquet: row 2: not UTF-8 at byte 3 \(0xe9\)"):
            list(read_texts([file]))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    known = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return known(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r'not installed: pip install "luthier\[parquet\]"'):
        list(read_texts([tmp_path / "a.parquet"]))
