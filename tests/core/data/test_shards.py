"""Shards: what is written is read back, whatever the files it lies in; a damaged file is never read as ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.data.shards import Joined, Shards, ShardWriter, open_shards, token_dtype, write_shards
from luthier.core.errors import ArtifactError, InputError

EOS = 256
DOCUMENTS = st.lists(st.lists(st.integers(0, 299), max_size=12).map(lambda x: np.array(x, np.int32)), max_size=8)


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    train = [np.array([1, 2, 3]), np.array([], int), np.array([4, 5, 6, 7, 8]), np.array([9])]
    return open_shards(write_shards(tmp_path / "s", train, [np.array([7])], vocab_size=300, eos_id=EOS, max_tokens=5))


@settings(max_examples=25)
@given(train=DOCUMENTS, validation=DOCUMENTS, max_tokens=st.integers(1, 30))
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, train: list[np.ndarray], validation: list[np.ndarray], max_tokens: int
) -> None:
    folder = tmp_path_factory.mktemp("shards") / "s"
    write_shards(folder, train, validation, vocab_size=300, eos_id=EOS, max_tokens=max_tokens)
    for split, documents in (("train", train), ("validation", validation)):
        shards = open_shards(folder, split)  # type: ignore[arg-type]
        assert len(shards) == len(documents) == len(shards.names)
        assert shards.offsets.dtype == shards.documents.dtype == np.int64
        assert shards.dtype == np.uint16
        for i, ids in enumerate(documents):
            assert shards.document(i).tolist() == [*ids, EOS]
        whole = [t for ids in documents for t in (*ids, EOS)]
        assert np.asarray(shards.tokens).tolist() == whole
        assert shards.document_at(np.arange(len(whole))).tolist() == [
            i for i, d in enumerate(documents) for _ in (*d, 0)
        ]


def test_files_are_the_documented_ones(shards: Shards) -> None:
    """Read by hand, byte by byte, as another program would."""
    folder = shards.folder
    assert sorted(p.name for p in folder.glob("train*")) == [
        f"train-0000{i}.{suffix}" for i in range(3) for suffix in ("bin", "doc", "idx")
    ]
    assert (folder / "train-00000.bin").read_bytes() == b"".join(n.to_bytes(2, "little") for n in (1, 2, 3, EOS, EOS))
    assert np.fromfile(folder / "train-00000.idx", "<i8").tolist() == [0, 4, 5]
    assert np.fromfile(folder / "train-00001.idx", "<i8").tolist() == [0, 6]  # longer than a file may be: its own
    assert np.fromfile(folder / "train-00002.doc", "<i8").tolist() == [-1]
    assert shards.offsets.tolist() == [0, 4, 5, 11, 13]


def test_one_file_is_a_memmap_and_nothing_is_writable(tmp_path: Path) -> None:
    shards = open_shards(write_shards(tmp_path / "s", [np.arange(9)], vocab_size=10, eos_id=9))
    assert isinstance(shards.tokens, np.memmap)
    assert not shards.tokens.flags.writeable
    assert len(open_shards(tmp_path / "s", "validation")) == 0
    assert open_shards(tmp_path / "s", "validation").tokens.tolist() == []  # type: ignore[union-attr]
    with pytest.raises(IndexError):
        shards.document(1)


@given(st.data(), st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_joined_reads_like_one_array(data: st.DataObject, sizes: list[int]) -> None:
    whole = np.arange(sum(sizes), dtype=np.uint16)
    joined = Joined(np.split(whole, np.cumsum(sizes)[:-1]))
    key = data.draw(
        st.one_of(
            st.slices(len(whole)),
            st.integers(-len(whole), len(whole) - 1),
            st.lists(st.integers(-len(whole), len(whole) - 1)).map(lambda x: np.array(x, np.int64)),
        )
    )
    assert np.array_equal(joined[key], whole[key])
    assert (len(joined), joined.dtype, joined.shape) == (len(whole), whole.dtype, whole.shape)
    for outside in (len(whole), -len(whole) - 1):
        with pytest.raises(IndexError):
            joined[outside]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1, "<u2"), (65_536, "<u2"), (65_537, "<u4"), (200_000, "<u4")])
def test_ids_take_two_bytes_while_they_fit(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    assert token_dtype(vocab_size) == np.dtype(dtype)
    last = vocab_size - 1
    shards = open_shards(write_shards(tmp_path / "s", [np.array([last])], vocab_size=vocab_size, eos_id=0))
    assert shards.tokens.tolist() == [last, 0]  # type: ignore[union-attr]


@pytest.mark.parametrize("bad", [-1, 300, 70_000])
def test_an_id_outside_the_vocabulary_is_refused(tmp_path: Path, bad: int) -> None:
    with pytest.raises(InputError, match=f"document 1: id {bad} is outside the vocabulary of 300"):
        write_shards(tmp_path / "s", [np.array([1]), np.array([1, bad])], vocab_size=300, eos_id=EOS)
    assert not (tmp_path / "s").exists()
    with pytest.raises(InputError, match="max_tokens"):
        ShardWriter(tmp_path, "train", 300, 0)


@pytest.mark.parametrize("suffix", ["bin", "idx", "doc"])
@pytest.mark.parametrize("damage", ["gone", "cut", "cut to a whole number", "longer"])
def test_damage_is_found_on_opening(shards: Shards, suffix: str, damage: str) -> None:
    file = shards.folder / f"train-00000.{suffix}"
    size = 2 if suffix == "bin" else 8
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes({"cut": content[:-1], "longer": content + b"\0" * size}.get(damage, content[:-size]))
    with pytest.raises(ArtifactError, match="Delete the folder and make it again"):
        open_shards(shards.folder)


def test_what_is_no_finished_shards_folder_is_refused(tmp_path: Path, shards: Shards) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        open_shards(tmp_path / "nothing")
    (shards.folder / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="incomplete"):
        open_shards(shards.folder)


def test_same_ids_again_do_nothing_and_others_are_refused(tmp_path: Path) -> None:
    def write(ids: list[int], overwrite: bool = False) -> Path:
        return write_shards(tmp_path / "s", [np.array(ids)], vocab_size=300, eos_id=EOS, overwrite=overwrite)

    before = (write([1]) / "train-00000.bin").stat().st_mtime_ns
    assert (write([1]) / "train-00000.bin").stat().st_mtime_ns == before
    with pytest.raises(ArtifactError, match="different work"):
        write([2])
    assert open_shards(write([2], overwrite=True)).document(0).tolist() == [2, EOS]
