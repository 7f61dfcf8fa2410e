"""Texts: one stream of plain text out of whatever a stage is given.

    corpus folder          its stable documents (volatile ones are looked up, never trained), with split and line
    .txt .md               one text a file
    .jsonl                 one text a line, under the key "text" or another (`column`)
    .gz .zst of those      the same, unpacked while reading
    .parquet               one text a row, in the column "text" or another; read a group of rows at a time
    any other folder       the files above in it and below, in the order of their names
    general="python"       the documentation inside Python's standard library (core/data/general.py)

The tokenizer, the vectors and the shards all read through here, so that they see the same text in the same order. Bytes
must be UTF-8: a file in another encoding stops the reading at its first wrong byte; a guess would be trained on. What
holds no text, a row of null as much as a file of white space, is left out and counted.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from luthier.core.artifacts import MANIFEST, hash_file, read_json, read_manifest
from luthier.core.console import counted, say
from luthier.core.data.corpus import Split, read_corpus, trained_part
from luthier.core.data.packed import DAMAGED, PACKED, decoded, open_file
from luthier.core.data.text_rows import COLUMN, of_lines, of_table
from luthier.core.errors import InputError

__all__ = ["COLUMN", "General", "Text", "find_texts", "hash_texts", "read_texts", "without_default"]

General = Literal["none", "python"]

PLAIN = (".txt", ".md")
SUFFIXES = (*PLAIN, ".jsonl", ".parquet")


@dataclass(frozen=True)
class Text:
    """One text to learn from. `line` counts from 0 in the corpus' documents.jsonl and is −1 for anything else.

    `split` is the corpus' own; everything else is `train`, and `origin` tells whether that was anybody's decision:
    `encode` holds out a share of what came from a `file`.
    """

    text: str
    split: Split = "train"
    line: int = -1
    name: str = ""
    """The document's path in the corpus, `file:line` of a JSONL row, a file's path, or the name of a general text."""
    origin: Literal["corpus", "file", "general"] = "file"
    part: int = 0
    """0, 1, 2 … where a long file is read in parts."""


def read_texts(
    inputs: Sequence[Path], *, general: General = "none", part_size: int = 0, column: str = COLUMN
) -> Iterator[Text]:
    """Yield the texts of `inputs` in the order given, then the general text. Texts of white space only, and rows of
    null, are left out, and at the end it is said how many.

    `part_size` > 0 keeps memory small: a text file of more characters comes in parts of about that size, cut where a
    tokenizer's pattern cuts anyway. `column` names the field of JSON lines, or the column of a Parquet table, that
    holds the text.

    Raises InputError at once for an input that is missing or of a kind that holds no text; while reading, for bytes
    that are not UTF-8 (naming file and byte), a row without the field (naming file and line), a table without the
    column, a damaged file, and if nothing was found.
    """
    files = [file for path in inputs for file in find_texts(Path(path), tell=True)]
    return _read(files, inputs, general, part_size, column)


def _read(
    files: Sequence[Path], inputs: Sequence[Path], general: General, part_size: int, column: str
) -> Iterator[Text]:
    empty, left_out, first = True, 0, ""
    for file in files:
        try:
            for text in _read_one(file, part_size, column):
                if text.text.strip() or text.part or 0 < part_size <= len(text.text):
                    empty = False
                    yield text
                else:
                    left_out, first = left_out + 1, first or text.name
        except DAMAGED as error:
            kind, _ = PACKED[file.suffix.lower()]
            raise InputError(
                f"{file}: damaged {kind} file: {error}\nGet it again; if it is not packed at all, name it {file.stem}."
            ) from error
    if general == "python":
        from luthier.core.data.general import python_documentation

        for name, text in python_documentation():
            empty = False
            yield Text(text, name=f"python: {name}", origin="general")
    if empty:
        where = ", ".join(map(str, inputs)) or "no inputs"
        found = f": found {counted(left_out, 'text')} of white space or null" if left_out else ""
        raise InputError(f"no text in {where}{found}\nGive a corpus, text files, JSON lines or a table that hold text.")
    if left_out:
        say(f"left out {counted(left_out, 'text')} of white space or null; the first is {first}")


def without_default(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without a `column` that is the default. A stage that came to have the setting identifies its work by
    these: what was made before is the same work."""
    return {name: value for name, value in settings.items() if (name, value) != ("column", COLUMN)}


def hash_texts(inputs: Sequence[Path], *, general: General = "none") -> tuple[dict[str, str], list[dict[str, str]]]:
    """What identifies the texts of `inputs`, a hash each (of a corpus, the part that is trained on), and the documents
    among them as {path, sha256}."""
    hashes: dict[str, str] = {}
    documents: list[dict[str, str]] = []
    for number, path in enumerate(file for given in inputs for file in find_texts(Path(given))):
        if path.is_dir():
            hashes[f"input {number}"], own = trained_part(path)
        else:
            digest = hash_file(path)
            hashes[f"input {number}"], own = digest, [{"path": path.name, "sha256": digest}]
        documents += own
    if general == "python":
        hashes["general"] = f"python {platform.python_version()}"
    return hashes, documents


# ---------------------------------------------------------------- finding


def find_texts(path: Path, *, tell: bool = False) -> list[Path]:
    """The files and corpus folders behind one input; `tell`: say what was passed over in a folder."""
    if path.is_file():
        if not _suffix(path):
            ending = "".join(path.suffixes[-2:] if path.suffix.lower() in PACKED else path.suffixes[-1:])
            raise InputError(
                f"{path}: cannot read {repr(ending) if ending else 'a file without an ending'} as text; expected .txt, "
                ".md, .jsonl (each also packed, .gz or .zst), .parquet, or a folder\n"
                f"Rename it if it is one of these; documents are read by `luthier collect {path}`."
            )
        return [path]
    if not path.is_dir():
        wrong = (
            "neither a file nor a folder (a pipe cannot be read twice)" if path.exists() else "no such file or folder"
        )
        raise InputError(f"{path}: {wrong}")
    if stage := _stage(path):
        if stage != "collect":
            raise InputError(f"{path} was made by `luthier {stage}`; expected a corpus, text files or a folder of them")
        return [path]
    chosen, passed_over = _walk(path)
    if not chosen:
        raise InputError(f"{path} holds no {', '.join(SUFFIXES)} file\nRead documents first: luthier collect {path}")
    if passed_over and tell:
        kinds = ", ".join(f"{kind} {n}" for kind, n in passed_over.most_common())
        say(f"{path}: passed over what is no text ({kinds}); `luthier collect` reads documents")
    return chosen


def _walk(folder: Path, above: Sequence[Path] = ()) -> tuple[list[Path], Counter[str]]:
    """The texts in a folder and below, in order of name, and a count of the rest. A corpus in it is read as a corpus;
    what other stages made is not text. `above` are the folders that it is in: a link back to one is not followed."""
    above = (*above, folder.resolve())
    chosen: list[Path] = []
    passed_over: Counter[str] = Counter()
    for path in sorted(p for p in folder.iterdir() if not p.name.startswith(".")):
        if path.is_dir() and (stage := _stage(path)):
            chosen += [path] if stage == "collect" else []
            passed_over.update([f"output of {stage}"] if stage != "collect" else [])
        elif path.is_dir() and path.resolve() in above:
            passed_over["link back"] += 1
        elif path.is_dir():
            inner, rest = _walk(path, above)
            chosen += inner
            passed_over.update(rest)
        elif _suffix(path):
            chosen.append(path)
        else:
            passed_over[path.suffix or path.name] += 1
    return chosen, passed_over


def _suffix(file: Path) -> str:
    """`.txt` of `a.txt`, `a.txt.gz` and `a.txt.zst`; empty for anything that is not read here."""
    packed = file.suffix.lower() in PACKED
    suffix = (Path(file.stem) if packed else file).suffix.lower()
    return suffix if suffix in SUFFIXES and not (packed and suffix == ".parquet") else ""


def _stage(folder: Path) -> str:
    """The stage that made a folder; empty for a folder that is no artefact."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return ""
    value = read_json(manifest)
    return read_manifest(folder)["stage"] if isinstance(value, dict) and "stage" in value else ""


# ---------------------------------------------------------------- reading


def _read_one(path: Path, part_size: int, column: str) -> Iterator[Text]:
    if path.is_dir():
        for line, document in enumerate(read_corpus(path)):
            if document.kind == "stable":
                yield Text(document.text, document.split, line, document.source.path, "corpus")
    elif _suffix(path) in PLAIN and part_size:
        for number, part in enumerate(_parts(path, part_size)):
            yield Text(part, name=str(path), part=number)
    elif _suffix(path) in PLAIN:
        with open_file(path) as file:
            yield Text(decoded(file.read(), path), name=str(path))
    else:
        rows = of_table(path, column) if _suffix(path) == ".parquet" else of_lines(path, column)
        for number, text in rows:
            yield Text(text, name=f"{path}:{number}")


def _parts(path: Path, size: int) -> Iterator[str]:
    """A long text, read a block at a time; what stands behind the last place to cut waits for the next block."""
    from luthier.tokenizers.word_counts import cut_place

    kept, held, offset = "", b"", 0
    with open_file(path) as file:
        while block := file.read(size):
            data = held + block
            whole = _whole_characters(data)
            held = data[whole:]
            kept += decoded(data[:whole], path, offset)
            offset += whole
            if len(kept) >= size and (end := cut_place(kept) or len(kept)):
                yield kept[:end]
                kept = kept[end:]
    yield kept + decoded(held, path, offset)


def _whole_characters(data: bytes) -> int:
    """Bytes of `data` without the character, or the line end \\r\\n, that its end cuts in two."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        size = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
        return len(data) - back if size > back or byte == 0x0D else len(data)
    return len(data)
