"""Encode: texts become shards of token ids (their format: core/data/shards.py).

    corpus documents      train or validation as `collect` decided; volatile ones are left out
    other texts           train, but for a share of them chosen by the hash of their text, so that the choice neither
                          depends on order nor changes when other files come or go; where it falls on none, on the
                          nearest to it and its copies, unless one's own text is nothing else
    general text          train

A long plain text (a novel, a dump) would be on one side as a whole. Where a share is held out, such a text is therefore
cut between paragraphs into sections of about 64,000 characters, which become documents of their own.

Each document ends with the tokenizer's end-of-text id. What anyone wrote in a document is ordinary text: the characters
`<|endoftext|>` in a web page end nothing. Today's news change no shard: of a corpus only the stable part is an input.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.core.artifacts import Artifact, apart, hash_file, read_json, write_json, write_jsonl
from luthier.core.compiling import announce_compiling
from luthier.core.console import progress, say
from luthier.core.data.corpus import Split
from luthier.core.data.shards import FACTS, MAX_TOKENS, SOURCES, ShardWriter, write_facts
from luthier.core.data.texts import COLUMN, General, Text, find_texts, hash_texts, read_texts
from luthier.core.errors import ConfigError, InputError

if TYPE_CHECKING:
    from luthier.tokenizers.bpe import Tokenizer

__all__ = ["EncodeConfig", "EncodeSummary", "encode", "tokenizer_file", "tokenizer_hash"]

SPLITS: tuple[Split, ...] = ("train", "validation")
SECTION = 64_000  # characters
BATCH = 4_000_000  # characters encoded in one call


@dataclass(frozen=True)
class EncodeConfig:
    """What is encoded beside the inputs, what is held out, and how the files are cut."""

    general: General = "none"
    """General text beside the inputs: `python` is the documentation inside Python's own standard library."""
    validation_fraction: float = 0.05
    """Share of the texts that do not come from a corpus to hold out (0 to 1, by hash of the text), of several at least
    one; a corpus brings its own split."""
    column: str = COLUMN
    """Field of JSON lines, or column of a Parquet table, that holds the text."""
    max_shard_tokens: int = MAX_TOKENS
    """Most tokens in one file; 500 million are 1 GB at 2 bytes each. A longer document gets a file of its own."""
    num_threads: int = 0
    """Threads that encode; 0: one a core. Changes nothing but the time."""

    def __post_init__(self) -> None:
        if not 0 <= self.validation_fraction <= 1:
            raise ConfigError(f"validation_fraction = {self.validation_fraction}: expected a share between 0 and 1")
        if self.max_shard_tokens < 1:
            raise ConfigError(f"max_shard_tokens = {self.max_shard_tokens}: expected at least 1")
        if self.num_threads < 0:
            raise ConfigError(f"num_threads = {self.num_threads}: expected 0 (one a core) or more")


@dataclass
class EncodeSummary:
    """What the shards hold, by split: documents, tokens, bytes of text, files."""

    out: Path
    vocab_size: int
    dtype: str
    splits: dict[str, dict[str, int]] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = [f"{'split':<12}{'documents':>12}{'tokens':>16}{'bytes':>16}{'bytes/token':>14}"]
        for split, n in self.splits.items():
            ratio = f"{n['bytes'] / n['tokens']:.2f}" if n["tokens"] else "-"
            rows.append(f"{split:<12}{n['documents']:>12,}{n['tokens']:>16,}{n['bytes']:>16,}{ratio:>14}")
        return "\n".join([*rows, f"{self.dtype} ids of a vocabulary of {self.vocab_size:,} in {self.out}"])


def encode(
    inputs: Sequence[Path], tokenizer: Path, out: Path, config: EncodeConfig | None = None, *, overwrite: bool = False
) -> EncodeSummary:
    """Encode `inputs` (see core/data/texts.py) with the tokenizer of a folder or tokenizer.json into a shards folder.

    Does nothing if the same work is there. Raises InputError for inputs without text or two corpora, ArtifactError for
    other work in `out` (unless `overwrite`).
    """
    config, out = config or EncodeConfig(), Path(out)
    inputs = apart(inputs, out)
    _one_corpus(inputs)
    hashes, documents = hash_texts(inputs, general=config.general)
    hashes["tokenizer"] = tokenizer_hash(tokenizer)
    settings = {key: value for key, value in asdict(config).items() if key != "num_threads"}
    work = Artifact(out, "encode", settings, hashes, documents=documents, overwrite=overwrite)
    if work.done:
        say(f"{out} is up to date")
        return _summary(out)
    with work:
        from luthier.tokenizers.formats import load_tokenizer

        given = {"inputs": [str(path.resolve()) for path in inputs], "tokenizer": str(Path(tokenizer).resolve())}
        write_json(work.folder / "run.json", {"stage": "encode", "given": given})

        announce_compiling(numba=False)
        _write(
            work.folder,
            read_texts(inputs, general=config.general, column=config.column),
            load_tokenizer(tokenizer),
            hashes,
            config,
        )
        _copy_tokenizer(Path(tokenizer), work.folder)
    return _summary(out)


def _one_corpus(inputs: Sequence[Path]) -> None:
    corpora = [file for path in inputs for file in find_texts(path) if file.is_dir()]
    if len(corpora) > 1:
        raise InputError(
            f"{len(corpora)} corpora ({', '.join(map(str, corpora))}): a shard's document numbers refer to one\n"
            "Collect their sources together: luthier collect SOURCE SOURCE …"
        )


def tokenizer_hash(path: Path) -> str:
    """sha256 of a tokenizer's tokenizer.json (or SentencePiece .model), whatever folder (a model's, too) it lies in."""
    file = tokenizer_file(Path(path))
    if not file.is_file():
        raise InputError(
            f"{file} does not exist\nGive a folder with a tokenizer.json; luthier train-tokenizer makes one."
        )
    return hash_file(file)


def tokenizer_file(path: Path) -> Path:
    """The file that says what the tokenizer does: tokenizer.json, or tokenizer.model where there is no other."""
    if not path.is_dir():
        return path
    pieces, file = path / "tokenizer.model", path / "tokenizer.json"
    return pieces if pieces.is_file() and not file.is_file() else file


def _copy_tokenizer(source: Path, folder: Path) -> None:
    """Put the tokenizer beside the ids, so that whoever has the shards can read them."""
    home = source if source.is_dir() else source.parent
    file = tokenizer_file(source)
    shutil.copyfile(file, folder / ("tokenizer.model" if file.suffix == ".model" else "tokenizer.json"))
    if (home / "tokenizer_config.json").is_file():
        shutil.copyfile(home / "tokenizer_config.json", folder / "tokenizer_config.json")


# ---------------------------------------------------------------- writing


def _write(
    folder: Path, texts: Iterable[Text], tokenizer: Tokenizer, hashes: dict[str, str], config: EncodeConfig
) -> None:
    """Encode in batches, each text into the file of its split; then the facts and the names."""
    sizes: dict[Split, int] = dict.fromkeys(SPLITS, 0)
    sources: list[dict[str, Any]] = []
    with ExitStack() as stack, progress("Encoding", None, "characters") as advance:
        writers: dict[Split, ShardWriter] = {
            split: stack.enter_context(ShardWriter(folder, split, tokenizer.vocab_size, config.max_shard_tokens))
            for split in SPLITS
        }
        batches = _batches(placed(texts, config.validation_fraction))
        for batch, documents in _encoded(tokenizer, batches, config.num_threads or os.cpu_count() or 1):
            for text, ids in zip(batch, documents, strict=True):
                writers[text.split].add(ids, text.line)
                sizes[text.split] += len(text.text.encode())
                sources.append({"split": text.split, "line": text.line, "name": text.name})
            advance(sum(len(text.text) for text in batch), note=batch[-1].name)
    if not writers["train"].documents:
        raise InputError(
            "every text is held out and none is left to train on\nSet --validation-fraction 0, or add texts."
        )
    splits: dict[Split, dict[str, int]] = {
        split: {"files": w.files, "documents": w.documents, "tokens": w.count, "bytes": sizes[split]}
        for split, w in writers.items()
    }
    write_facts(
        folder,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        tokenizer=hashes["tokenizer"],
        splits=splits,
    )
    write_jsonl(folder / SOURCES, sources)


def placed(texts: Iterable[Text], validation_fraction: float) -> Iterator[Text]:
    """The texts with their split decided: those of files by the hash of their text, long ones in sections, each called
    `file:line` by the line that it begins with. Until one is held out, the section that would be next waits with its
    copies: at the end they are, if another is there to train on and no document of a corpus or general text says the
    same."""
    waits: list[Text] = []
    least, held_out, others = 1.0, validation_fraction == 0, False
    fixed: set[float] = set()
    for text in texts:
        if text.origin != "file" or validation_fraction == 0:
            held_out |= text.split == "validation"
            others |= text.origin == "corpus"  # beside general text, one's only text is to be learned
            if not held_out:
                fixed.add(_share(text.text))
            yield text
            continue
        line = 1
        for section in sections(text.text):
            name = text.name if len(section) == len(text.text) else f"{text.name}:{line}"
            line, share = line + section.count("\n"), _share(section)
            one = Text(section, "validation" if share < validation_fraction else "train", -1, name)
            held_out |= one.split == "validation"
            if held_out or share > least:
                others = True
                yield one
                continue
            if share < least:
                others |= bool(waits)
                yield from waits
                waits, least = [], share
            waits.append(one)
    split: Split = "train" if held_out or not others or least in fixed else "validation"
    yield from (replace(one, split=split) for one in waits)


def _share(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def sections(text: str) -> Iterator[str]:
    """Cut a text longer than one and a half SECTION at the first blank line past each SECTION, or at a line's end where
    the next blank line is far. Joined, the sections are the text; white space alone at its end makes none."""
    start = 0
    while len(text) - start > SECTION * 3 // 2:
        end = _cut(text, start + SECTION)
        if end == 0:
            break
        yield text[start:end]
        start = end
    if text[start:].strip():
        yield text[start:]


def _cut(text: str, after: int) -> int:
    """Where to cut past `after`; 0: nowhere."""
    blank = text.find("\n\n", after, after + SECTION // 2)
    return blank + 2 if blank >= 0 else text.find("\n", after) + 1


def _batches(texts: Iterable[Text]) -> Iterator[list[Text]]:
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text.text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encoded(
    tokenizer: Tokenizer, batches: Iterable[list[Text]], num_threads: int
) -> Iterator[tuple[list[Text], Iterator[np.ndarray]]]:
    """Each batch and the ids of its texts. While one is written, the next is read and encoded."""
    ends = np.array([tokenizer.eos_id], np.int32)
    with ThreadPoolExecutor(1) as ahead:
        waiting: list[tuple[list[Text], Future[tuple[np.ndarray, np.ndarray]]]] = []
        for batch in batches:
            waiting.append((batch, ahead.submit(tokenizer.encode_batch, [t.text for t in batch], num_threads)))
            if len(waiting) > 1:
                first, future = waiting.pop(0)
                yield first, _documents(future.result(), ends)
        for last, future in waiting:
            yield last, _documents(future.result(), ends)


def _documents(encoded: tuple[np.ndarray, np.ndarray], ends: np.ndarray) -> Iterator[np.ndarray]:
    """The ids of each text with the end-of-text id after them."""
    ids, offsets = encoded
    for start, end in pairwise(offsets.tolist()):
        yield np.concatenate((ids[start:end], ends))


def _summary(out: Path) -> EncodeSummary:
    facts: dict[str, Any] = read_json(out / FACTS)
    return EncodeSummary(out, facts["vocab_size"], facts["dtype"], facts["splits"])
