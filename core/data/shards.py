"""Shards: token ids on disk, read without loading them.

A corpus of 10 GB of text is 2.5 billion ids. Training touches a few thousand of them a step, in random places, so they
lie one after the other in plain files that the operating system pages in on demand (memory mapping):

    train-00000.bin   [tokens]         ids, little-endian uint16; uint32 if the vocabulary has more than 65,536 entries
    train-00000.idx   [documents + 1]  int64, where each document begins in the .bin, and the end of the last one
    train-00000.doc   [documents]      int64, the document's line in the corpus' documents.jsonl, from 0; −1: elsewhere
    shards.json       vocabulary size, dtype, end-of-text id, sha256 of tokenizer.json, counts by split
    sources.jsonl     split, line and name of every document in the order of the files

the same for `validation`. Every document ends with the end-of-text id. No document straddles two files: a new file
begins before the document that would overfill one. From a position in the ids, a binary search in `offsets` gives the
document, `documents` its line, and the corpus the file and page: any token of any batch can be traced.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from luthier.core.artifacts import Artifact, read_json, read_jsonl, read_manifest, write_json, write_jsonl
from luthier.core.data.corpus import Split
from luthier.core.errors import ArtifactError, InputError

__all__ = ["Joined", "ShardWriter", "Shards", "open_shards", "token_dtype", "write_shards"]

FACTS = "shards.json"
SOURCES = "sources.jsonl"
MAX_TOKENS = 500_000_000  # of one file: 1 GB of uint16


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest type that holds every id: uint16 up to 65,536 ids, uint32 beyond."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


# ---------------------------------------------------------------- reading


class Joined:
    """Several memory-mapped arrays that read like one: `joined[a:b]`, `joined[i]`, `joined[[3, 5]]`, `len(joined)`.

    A slice inside one file is a view of it; one that crosses files is a copy.
    """

    def __init__(self, parts: list[np.ndarray]) -> None:
        self.parts = parts
        self.starts = np.concatenate([[0], np.cumsum([len(p) for p in parts])]).astype(np.int64)
        self.dtype = parts[0].dtype
        self.shape = (int(self.starts[-1]),)
        self.ndim, self.size = 1, self.shape[0]

    def __len__(self) -> int:
        return self.size

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.concatenate(self.parts).astype(dtype or self.dtype, copy=False)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            start, stop, step = key.indices(self.size)
            if step != 1:
                return self[np.arange(start, stop, step)]
            return self._stretch(start, max(start, stop))
        at = np.asarray(key)
        if at.dtype == bool or not (at.size == 0 or np.issubdtype(at.dtype, np.integer)):
            raise IndexError(f"tokens are read by a whole number, a slice or an array of whole numbers, not {key!r}")
        at = np.where(at < 0, at + self.size, at).astype(np.int64)
        if at.size and (at.min() < 0 or at.max() >= self.size):
            raise IndexError(f"token {key} is outside 0 … {self.size - 1}")
        which = np.searchsorted(self.starts, at, side="right") - 1
        out = np.empty(at.shape, self.dtype)
        for i in np.unique(which):
            out[which == i] = self.parts[i][at[which == i] - self.starts[i]]
        return out[()]

    def _stretch(self, start: int, stop: int) -> np.ndarray:
        pieces = [
            part[max(0, start - begin) : max(0, stop - begin)]
            for part, begin in zip(self.parts, self.starts, strict=False)
            if begin < stop and begin + len(part) > start
        ]
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.empty(0, self.dtype)


@dataclass(frozen=True)
class Shards:
    """The documents of one split. `len` counts documents; document i is `tokens[offsets[i]:offsets[i + 1]]`."""

    folder: Path
    split: Split
    tokens: np.ndarray | Joined
    """Every id, 1-D, memory-mapped: an np.memmap, or Joined where the split has several files."""
    offsets: np.ndarray
    """int64 [documents + 1]: where each document begins in `tokens`."""
    documents: np.ndarray
    """int64 [documents]: the line of documents.jsonl, −1 for text from elsewhere."""
    vocab_size: int
    eos_id: int
    tokenizer: str
    """sha256 of the tokenizer.json that made the ids."""

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def dtype(self) -> np.dtype:
        return self.tokens.dtype

    def document(self, index: int) -> np.ndarray:
        """The ids of one document with its end-of-text id."""
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} is outside 0 … {len(self) - 1}")
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def document_at(self, position: Any) -> Any:
        """Which document holds the token at `position`; arrays too."""
        return np.searchsorted(self.offsets, position, side="right") - 1

    @cached_property
    def names(self) -> list[str]:
        """What each document is called: its path in the corpus, its file, or the general text's name."""
        return [row["name"] for row in read_jsonl(self.folder / SOURCES) if row["split"] == self.split]


def open_shards(folder: Path, split: Split = "train") -> Shards:
    """Open one split of a shards folder; a split without documents has length 0.

    Raises ArtifactError if `folder` is not a finished output of `encode`, or if its files do not fit together.
    """
    folder = Path(folder)
    read_manifest(folder, "encode")
    if not (folder / FACTS).is_file():
        raise ArtifactError(f"{folder / FACTS} is missing\nDelete the folder and make it again: luthier encode")
    facts = read_json(folder / FACTS)
    dtype = np.dtype(facts["dtype"]).newbyteorder("<")
    names = [f"{split}-{i:05d}" for i in range(facts["splits"].get(split, {}).get("files", 0))]
    parts = [_open_part(folder / name, dtype) for name in names]
    tokens = [t for t, _, _ in parts if len(t)]
    starts = np.concatenate([[0], np.cumsum([len(t) for t, _, _ in parts])]).astype(np.int64)
    offsets = [o[:-1] + start for (_, o, _), start in zip(parts, starts, strict=False)]
    return Shards(
        folder,
        split,
        Joined(tokens) if len(tokens) > 1 else (tokens or [np.empty(0, dtype)])[0],
        np.concatenate([*offsets, starts[-1:]]),
        np.concatenate([np.empty(0, np.int64), *(d for _, _, d in parts)]),
        facts["vocab_size"],
        facts["eos_id"],
        facts["tokenizer"],
    )


def _open_part(stem: Path, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, offsets and lines of one file; checked against each other, since a cut file would train on nonsense."""
    files = [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("bin", "idx", "doc")]
    for file, size in zip(files, (dtype.itemsize, 8, 8), strict=True):
        if not file.is_file() or file.stat().st_size % size:
            raise ArtifactError(f"{file} is missing or cut off\nDelete the folder and make it again: luthier encode")
    offsets, documents = (np.fromfile(file, "<i8").astype(np.int64, copy=False) for file in files[1:])
    count = files[0].stat().st_size // dtype.itemsize
    if len(offsets) != len(documents) + 1 or offsets[0] != 0 or offsets[-1] != count or (np.diff(offsets) < 0).any():
        raise ArtifactError(
            f"{files[1]} does not fit {files[0].name} ({count:,} tokens) and {files[2].name} "
            f"({len(documents):,} documents)\nDelete the folder and make it again: luthier encode"
        )
    tokens = np.memmap(files[0], dtype, mode="r") if count else np.empty(0, dtype)
    return tokens, offsets, documents


# ---------------------------------------------------------------- writing


class ShardWriter:
    """Writes one split of a shards folder, document after document; `close` (or the end of a `with`) writes the index.

    Attributes: `documents`, `count` (tokens) and `files` written so far.
    """

    def __init__(self, folder: Path, split: Split, vocab_size: int, max_tokens: int = MAX_TOKENS) -> None:
        if max_tokens < 1:
            raise InputError(f"max_tokens = {max_tokens}: expected at least 1")
        self.folder, self.split, self.vocab_size, self.max_tokens = Path(folder), split, vocab_size, max_tokens
        self.dtype = token_dtype(vocab_size)
        self.documents = self.count = self.files = 0
        self._file: Any = None
        self._offsets: list[int] = [0]
        self._lines: list[int] = []

    def add(self, ids: np.ndarray, line: int) -> None:
        """Append one document, its end-of-text id included. Raises InputError for an id outside the vocabulary."""
        ids = np.asarray(ids)
        if len(ids) and (ids.min() < 0 or ids.max() >= self.vocab_size):
            bad = ids.min() if ids.min() < 0 else ids.max()
            raise InputError(f"document {self.documents}: id {bad} is outside the vocabulary of {self.vocab_size:,}")
        if self._file is not None and self._offsets[-1] + len(ids) > self.max_tokens:
            self.close()
        if self._file is None:
            self._file = self._stem("bin").open("wb")
            self.files += 1
        self._file.write(ids.astype(self.dtype).tobytes())
        self._offsets.append(self._offsets[-1] + len(ids))
        self._lines.append(line)
        self.documents += 1
        self.count += len(ids)

    def close(self) -> None:
        """Finish the file being written; the next document begins another."""
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        np.array(self._offsets, "<i8").tofile(self._stem("idx"))
        np.array(self._lines, "<i8").tofile(self._stem("doc"))
        self._file, self._offsets, self._lines = None, [0], []

    def _stem(self, suffix: str) -> Path:
        number = self.files - (self._file is not None)
        return self.folder / f"{self.split}-{number:05d}.{suffix}"

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_facts(
    folder: Path, *, vocab_size: int, eos_id: int, tokenizer: str, splits: Mapping[Split, Mapping[str, int]]
) -> None:
    """Write shards.json: what a reader must know before it opens the ids."""
    dtype = token_dtype(vocab_size).name
    facts = {"vocab_size": vocab_size, "dtype": dtype, "eos_id": eos_id, "tokenizer": tokenizer, "splits": splits}
    write_json(folder / FACTS, facts)


def write_shards(
    out: Path,
    train: Iterable[np.ndarray],
    validation: Iterable[np.ndarray] = (),
    *,
    vocab_size: int,
    eos_id: int,
    tokenizer: str = "",
    max_tokens: int = MAX_TOKENS,
    overwrite: bool = False,
) -> Path:
    """Make a shards folder of ids that come from elsewhere, one array a document; each gets `eos_id` at its end."""
    parts: dict[Split, list[np.ndarray]] = {
        "train": [np.append(ids, eos_id) for ids in train],
        "validation": [np.append(ids, eos_id) for ids in validation],
    }
    digest = hashlib.sha256(
        b"|".join(ids.astype("<i8").tobytes() for p in parts.values() for ids in [*p, np.array([-1])])
    )
    settings = {"vocab_size": vocab_size, "eos_id": eos_id, "max_tokens": max_tokens}
    work = Artifact(out, "encode", settings, {"ids": digest.hexdigest(), "tokenizer": tokenizer}, overwrite=overwrite)
    if work.done:
        return Path(out)
    with work:
        splits: dict[Split, dict[str, int]] = {}
        for split, documents in parts.items():
            with ShardWriter(work.folder, split, vocab_size, max_tokens) as writer:
                for ids in documents:
                    writer.add(ids, -1)
            splits[split] = {"files": writer.files, "documents": writer.documents, "tokens": writer.count}
        write_facts(work.folder, vocab_size=vocab_size, eos_id=eos_id, tokenizer=tokenizer, splits=splits)
        write_jsonl(work.folder / SOURCES, _unnamed(parts))
    return Path(out)


def _unnamed(parts: Mapping[Split, list[np.ndarray]]) -> Iterator[dict[str, Any]]:
    for split, documents in parts.items():
        for number in range(len(documents)):
            yield {"split": split, "line": -1, "name": f"{split} {number}"}
