"""Collect: files and folders become a corpus, again and again, reading only what changed.

    find files ─▶ read (or remember) ─▶ clean ─▶ quality ─▶ drop copies ─▶ split ─▶ documents.jsonl
                        └───────────────── each drop, with rule and value ─────────▶ rejected.jsonl

A document is its path and its bytes: that pair is its id. What a reader made of it is kept in `extracted/`, so an
update costs what changed. Everything after reading is done anew on the whole corpus each time, because copies and the
split concern all documents together; so an update gives the same corpus as a first run would.

`kind` says whether a document is stable (trained on) or volatile (looked up, never trained), by patterns on its path.
The two kinds are compared for copies each on its own: one copy is trained, the other looked up, and both are wanted.
Only stable documents are split; a volatile one has split `train`, which no stage uses.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from luthier.core.artifacts import Artifact, read_jsonl, read_manifest, write_jsonl
from luthier.core.console import progress, say
from luthier.core.data.corpus import Document, Source
from luthier.core.data.sources import Extraction, Extractions, File, find_files, reader_state
from luthier.core.errors import ConfigError, InputError

__all__ = ["UNREADABLE", "CollectConfig", "CollectSummary", "collect"]

# Rules of files that a reader could not read, as opposed to documents that a cleaning rule left out.
UNREADABLE = ("missing", "empty", "unreadable", "encrypted", "no-text", "unknown-format", "low-confidence")
EXTRACTED = "extracted"


@dataclass(frozen=True)
class CollectConfig:
    """What is kept of the documents read, and which of them are held out."""

    volatile: tuple[str, ...] = ()
    """Patterns on the path or a folder of it of what changes (`news`, `*prices*`): looked up, never trained."""
    validation: tuple[str, ...] = ()
    """Patterns of documents that are always held out of training, with whatever resembles them."""
    validation_fraction: float = 0.1
    """Share of the stable text, in characters, held out to measure on."""
    near_duplicate: float = 0.8
    """Documents of this similarity (Jaccard, word 5-grams, 0 to 1) are copies, and one is kept; above 1: only exact."""
    split_similarity: float = 0.4
    """Documents of this similarity are held out together or not at all."""
    min_words: int = 3
    """Fewer words and numbers than this are no document."""
    min_letters: float = 0.3
    """Share of letters and digits among visible characters below which a file is not text."""
    max_repetition: float = 0.7
    """Share of repeated lines, or of words in repeated 10-grams, above which a long document is left out."""
    seed: int = 0
    """Decides which documents are held out."""

    def __post_init__(self) -> None:
        for name in ("validation_fraction", "split_similarity", "min_letters", "max_repetition"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected a share between 0 and 1")
        if self.near_duplicate <= 0:
            raise ConfigError(f"near_duplicate = {self.near_duplicate}: expected a similarity above 0")


@dataclass
class CollectSummary:
    """What a run of `collect` did. `rejected` counts documents by rule, `unreadable` those that no reader could read;
    `read` is all documents looked at, `reread` the files really read in this run."""

    read: int = 0
    kept: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    unreadable: int = 0
    reread: int = 0
    characters: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    validation: int = 0
    changed: bool = True

    def __str__(self) -> str:
        rows = [("documents looked at", self.read), ("  files read in this run", self.reread), ("kept", self.kept)]
        rows += [(f"  {kind}", count) for kind, count in sorted(self.kinds.items())]
        rows += [("  held out for validation", self.validation), ("  characters", self.characters)]
        rows += [("left out", sum(self.rejected.values()))]
        rows += [(f"  {rule}", count) for rule, count in sorted(self.rejected.items())]
        return "\n".join(f"{name:<28}{count:>12,}" for name, count in rows)


def collect(sources: Sequence[Path], out: Path, config: CollectConfig | None = None) -> CollectSummary:
    """Read `sources` (files and folders) into the corpus folder `out`, made or updated in place.

    Unreadable files are recorded in `rejected.jsonl` and the run goes on. `questions.jsonl` in the folder is kept as it
    is. If nothing changed, the folder is not touched. Raises InputError if there is nothing to read or nothing is kept,
    ArtifactError if `out` holds another stage's work, LockedError if another process writes it.
    """
    config, out = config or CollectConfig(), Path(out)
    if not sources:
        raise InputError(
            "no source given\nName the files and folders to collect: luthier collect SOURCE… --out corpus/"
        )
    files, unopened = find_files([Path(s) for s in sources], out)
    readers = reader_state()
    work = Artifact(
        out,
        "collect",
        asdict(config),
        {"documents": _listing(files, unopened), "readers": readers},
        overwrite=_is_corpus(out),
        caches=(EXTRACTED,),
    )
    if work.done:
        say(f"{out} is up to date")
        return summarise(out)
    if not files and not unopened:
        raise InputError(f"{', '.join(map(str, sources))}: no file to read there (hidden and lock files do not count)")
    for _, _, message in unopened:
        say(f"note: {message}")
    with work:
        cache = Extractions(work.folder / EXTRACTED, readers)
        extractions = _read_all(files, cache)
        documents, rejected = build_documents(extractions, unopened, config)
        if not documents:
            raise InputError(_why_empty(rejected))
        cache.forget(e.id for e, _ in extractions)
        write_jsonl(work.folder / "documents.jsonl", (d.to_row() for d in documents))
        write_jsonl(work.folder / "rejected.jsonl", rejected)
        work.documents = [{"path": d.source.path, "sha256": d.source.sha256} for d in documents]
    summary = summarise(out)
    summary.reread, summary.changed = cache.read, True
    return summary


def summarise(corpus: Path) -> CollectSummary:
    """The summary of a corpus that is there, from its two files."""
    summary = CollectSummary(changed=False)
    for row in read_jsonl(corpus / "documents.jsonl"):
        summary.kept += 1
        summary.characters += len(row["text"])
        summary.kinds[row["kind"]] = summary.kinds.get(row["kind"], 0) + 1
        summary.validation += row["split"] == "validation"
    whole = [row for row in read_jsonl(corpus / "rejected.jsonl") if not row.get("part")]
    summary.rejected = dict(Counter(row["rule"] for row in whole))
    summary.unreadable = sum(count for rule, count in summary.rejected.items() if rule in UNREADABLE)
    summary.read = summary.kept + len(whole)
    return summary


# ---------------------------------------------------------------- steps


def _listing(files: Sequence[File], unopened: Sequence[tuple[str, str, str]]) -> str:
    """One hash over every file's path and content: what decides whether there is anything to do."""
    lines = [f"{f.path}\0{f.sha256}\n" for f in files] + [f"{path}\0unopened\n" for path, *_ in unopened]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _is_corpus(out: Path) -> bool:
    """Whether `out` may be updated in place; another stage's folder may not."""
    return (out / "manifest.json").is_file() and bool(read_manifest(out, "collect"))


def _read_all(files: Sequence[File], cache: Extractions) -> list[tuple[Extraction, str]]:
    """(extraction, time of change) of every document, attachments after their mail."""
    entries = []
    with progress("Reading", len(files), "files") as advance:
        for file in files:
            entries += [(entry, file.modified) for entry in cache.get(file)]
            advance(1, note=file.path)
    return entries


def build_documents(
    extractions: Sequence[tuple[Extraction, str]], unopened: Iterable[tuple[str, str, str]], config: CollectConfig
) -> tuple[list[Document], list[dict[str, Any]]]:
    """Everything after reading: clean, judge, drop copies, split. Returns documents and rows of rejected.jsonl, both in
    the order of their paths, stable documents first."""
    rejected = [
        _rejected(_bare(Extraction("", path, "", ""), ""), rule, 0, message) for path, rule, message in unopened
    ]
    readable = [(e, modified) for e, modified in extractions if e.error is None]
    for entry, modified in extractions:
        if entry.error is not None:
            rejected.append(_rejected(_bare(entry, modified), entry.error[0], entry.value, entry.error[1]))
    documents, parts = _clean_all(readable, config)
    rejected += parts
    for path_patterns in ("volatile", "validation"):
        _warn_of_idle_patterns(getattr(config, path_patterns), path_patterns, [d.source.path for d in documents])
    documents, copies = _without_copies(documents, config)
    rejected += copies
    _split(documents, config)
    documents.sort(key=lambda d: (d.kind != "stable", d.source.path))  # news come and go; the others keep their lines
    rejected.sort(key=lambda row: (row["source"]["path"], row["rule"], str(row["value"])))
    return documents, rejected


def _bare(entry: Extraction, modified: str) -> Document:
    """A document without text yet."""
    return Document(entry.id, "", Source(entry.path, entry.sha256, entry.media_type), modified=modified)


def _rejected(document: Document, rule: str, value: Any, message: str) -> dict[str, Any]:
    return {**document.to_row(), "rule": rule, "value": value, "message": message}


def _clean_all(
    entries: Sequence[tuple[Extraction, str]], config: CollectConfig
) -> tuple[list[Document], list[dict[str, Any]]]:
    from luthier.core.data.clean import assemble, clean_blocks, language_of, quality, vocabulary_of
    from luthier.core.data.readers.read import Block

    blocks = [[Block(**b) for b in entry.blocks] for entry, _ in entries]
    vocabulary = vocabulary_of(b.text for document in blocks for b in document)
    documents, rejected = [], []
    with progress("Cleaning", len(entries), "documents") as advance:
        for (entry, modified), parts in zip(entries, blocks, strict=True):
            document, cleaned = _bare(entry, modified), clean_blocks(parts, vocabulary)
            document.text, document.spans = assemble(cleaned.blocks)
            headings = [b.text for b in cleaned.blocks if b.kind == "heading"]
            document.title = " ".join((entry.title or next(iter(headings), "") or Path(entry.path).stem).split())
            document.rules = [*cleaned.rules, *entry.notes]
            document.kind = "volatile" if matches(entry.path, config.volatile) else "stable"
            for line, pages in cleaned.removed:
                rejected.append(_part(document, line, pages))
            broken = quality(
                document.text,
                min_words=config.min_words,
                min_letters=config.min_letters,
                max_repetition=config.max_repetition,
            )
            if broken:
                rule, value = broken[0]
                rejected.append(_rejected(document, rule, value, ", ".join(f"{r} {v}" for r, v in broken)))
            else:
                document.language = language_of(document.text)
                documents.append(document)
            advance(1)
    return documents, rejected


def _part(document: Document, line: str, pages: list[int]) -> dict[str, Any]:
    """The row of a running line: part of a document, which itself is kept."""
    where = f"on page{'' if len(pages) == 1 else 's'} {', '.join(map(str, pages[:20]))}"
    row = _rejected(document, "running-line", len(pages), where)
    return {**row, "text": line, "spans": [], "part": True}


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern fits a corpus path or one of its beginnings: a folder, or the mail that an attachment is in."""
    parts = path.split("/")
    beginnings = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
    return any(fnmatch.fnmatchcase(beginning, pattern) for pattern in patterns for beginning in beginnings)


def _warn_of_idle_patterns(patterns: Sequence[str], setting: str, paths: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(matches(path, [pattern]) for path in paths):
            say(
                f"note: {setting} pattern '{pattern}' matches no document; paths look like {paths[0] if paths else '-'}"
            )


def _without_copies(documents: list[Document], config: CollectConfig) -> tuple[list[Document], list[dict[str, Any]]]:
    from luthier.core.data.dedup import Text, drop_copies

    kept, rejected = [], []
    for kind in ("stable", "volatile"):
        group = [d for d in documents if d.kind == kind]
        texts = [Text(d.source.path, d.text, d.modified) for d in group]
        copies = {c.index: c for c in drop_copies(texts, config.near_duplicate)}
        for index, document in enumerate(group):
            if index not in copies:
                kept.append(document)
                continue
            copy = copies[index]
            of = group[copy.kept].source.path
            value = {"similarity": round(copy.similarity, 4), "kept": of}
            rejected.append(_rejected(document, copy.rule, value, f"{copy.similarity:.0%} like {of}, which is kept"))
    return kept, rejected


def _split(documents: Sequence[Document], config: CollectConfig) -> None:
    """Set `split` of the stable documents."""
    from luthier.core.data.dedup import Text, split

    stable = [d for d in documents if d.kind == "stable"]
    forced = [matches(d.source.path, config.validation) for d in stable]
    texts = [Text(d.source.path, d.text, d.modified) for d in stable]
    held = split(texts, config.validation_fraction, config.split_similarity, forced=forced, seed=config.seed)
    if stable and all(held):
        raise ConfigError(
            f"validation = {list(config.validation)} holds out every stable document or what resembles one\n"
            "Nothing would be left to train on: name fewer documents."
        )
    for document, out in zip(stable, held, strict=True):
        document.split = "validation" if out else "train"


def _why_empty(rejected: Sequence[dict[str, Any]]) -> str:
    whole = [row for row in rejected if not row.get("part")]
    counts = ", ".join(f"{rule} {n}" for rule, n in Counter(row["rule"] for row in whole).most_common())
    return f"none of the {len(whole)} documents can be kept: {counts}\nFor example: {whole[0]['message']}"
