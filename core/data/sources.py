"""Which files there are, and what stood in them when they were last read.

`find_files` lists sources in a fixed order under POSIX paths relative to the folder given, so that a corpus is the same
wherever the folder lies. `Extractions` remembers what the readers made of each file, one JSON file under the document's
id, so that a second run reads only what is new: optical character recognition takes seconds a page, comparing a hash
takes none. An entry holds for one path, one content and one state of the readers' own source code.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.artifacts import atomic_open, hash_file
from luthier.core.errors import DocumentError, InputError

if TYPE_CHECKING:
    from luthier.core.data.readers.read import Extracted

__all__ = ["Extraction", "Extractions", "File", "document_id", "find_files", "reader_state"]

SYSTEM_FILES = {"thumbs.db", "desktop.ini", "icon\r"}
LOCK_PREFIXES = (".", "~$")  # hidden files; what Word and LibreOffice lay beside a document that is open
UNFINISHED = (".tmp", ".part", ".crdownload", ".download")
READ_WITH = ("pypdfium2", "rapidocr", "onnxruntime", "beautifulsoup4", "lxml", "markdown-it-py", "charset-normalizer")
ATTACHMENT_DEPTH = 4  # mails inside mails inside mails


@dataclass(frozen=True)
class File:
    """A file to collect: its name in the corpus, where it is, its content's sha256 and its time of change."""

    path: str
    file: Path
    sha256: str
    modified: str


# ---------------------------------------------------------------- finding


def find_files(sources: Sequence[Path], out: Path | None = None) -> tuple[list[File], list[tuple[str, str, str]]]:
    """All files of `sources` in the order of their corpus paths, and (path, rule, message) of those that cannot be
    opened, a source that does not exist among them.

    Hidden files, lock files, unfinished downloads and folders made by luthier (`out` among them) are passed over.
    Raises InputError if none of the sources exists.
    """
    missing = [s for s in sources if not s.exists()]
    if len(missing) == len(sources) > 0:
        raise InputError(f"{missing[0]}: no such file or folder\nGive the files and folders to collect.")
    names = _source_names(sources)
    found: dict[Path, tuple[str, Path]] = {}
    unreadable: list[tuple[str, str, str]] = []
    for source, name in zip(sources, names, strict=True):
        for file in _walk(source, out, unreadable):
            path = file.relative_to(source).as_posix() if source.is_dir() else file.name
            path = f"{name}/{path}" if name and source.is_dir() else name or path
            # A file reached twice counts once; a name that is not UTF-8 must still fit into the corpus.
            found.setdefault(Path(os.path.realpath(file)), (_utf8(path), file))
    files = []
    for path, file in sorted(found.values()):
        try:
            files.append(_opened(path, file))
        except FileNotFoundError:
            unreadable.append((path, "missing", _utf8(f"{file}: no such file or folder")))
        except OSError as error:
            unreadable.append((path, "unreadable", _utf8(f"{file} cannot be opened: {error.strerror}")))
    return files, unreadable


def _opened(path: str, file: Path) -> File:
    state = file.stat()
    if not stat.S_ISREG(state.st_mode):  # a pipe would be waited for without end
        raise OSError(0, "not a regular file")
    changed = datetime.fromtimestamp(state.st_mtime, UTC)
    return File(path, file, hash_file(file), changed.strftime("%Y-%m-%dT%H:%M:%SZ"))


def _utf8(text: str) -> str:
    """`text` with `?` for what UTF-8 cannot hold: the stray bytes of old file names and broken mails."""
    return text.encode("utf-8", "replace").decode()


def _source_names(sources: Sequence[Path]) -> list[str]:
    """The prefix of each source's paths: none for a single source, else the shortest end of its path that is unique."""
    if len(sources) == 1:
        return [""]
    parts = [s.resolve().parts for s in sources]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-length:]).strip("/") for p in parts]
        if len(set(names)) == len(set(parts)):
            return names
    return ["/".join(p) for p in parts]


def _walk(source: Path, out: Path | None, unreadable: list[tuple[str, str, str]]) -> Iterator[Path]:
    if not source.is_dir():
        yield source
        return

    def refuse(error: OSError) -> None:
        path = Path(error.filename).relative_to(source).as_posix()
        unreadable.append((_utf8(path), "unreadable", _utf8(f"{error.filename}: {error.strerror}")))

    skipped = out.resolve() if out is not None else None
    for folder, folders, names in os.walk(source, onerror=refuse):
        here = Path(folder)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and (here / name).resolve() != skipped and not _made_by_luthier(here / name)
        )
        yield from (here / name for name in sorted(names) if not _passed_over(name))


def _passed_over(name: str) -> bool:
    low = name.lower()
    return low.startswith(LOCK_PREFIXES) or low in SYSTEM_FILES or low.endswith(UNFINISHED)


def _made_by_luthier(folder: Path) -> bool:
    """Whether a folder is an output of a stage: its texts were collected already."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return False
    try:
        value = json.loads(manifest.read_bytes())
    except ValueError:
        return False
    return isinstance(value, dict) and {"format", "stage", "outputs"} <= value.keys()


# ---------------------------------------------------------------- reading


@dataclass
class Extraction:
    """What a reader made of one file, as kept between runs. `error` is (rule, message) where it could not be read,
    `value` what was measured then; `attachments` are the ids of the documents inside."""

    id: str
    path: str
    sha256: str
    readers: str
    media_type: str = ""
    title: str = ""
    blocks: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    attachments: list[str] = field(default_factory=list)
    error: tuple[str, str] | None = None
    value: float = 0


def document_id(path: str, sha256: str) -> str:
    """A document's id: sha256 of its corpus path and its content's hash, 64 hexadecimal digits."""
    return hashlib.sha256(f"{path}\0{sha256}".encode()).hexdigest()


def reader_state() -> str:
    """A hash of everything that decides what a reader makes of a file: the readers' source and what they stand on."""
    digest = hashlib.sha256()
    for file in sorted((Path(__file__).parent / "readers").glob("*.py")):
        digest.update(file.read_bytes())
    for package in READ_WITH:
        try:
            digest.update(f"{package} {metadata.version(package)}\n".encode())
        except metadata.PackageNotFoundError:
            digest.update(f"{package} absent\n".encode())
    return digest.hexdigest()[:16]


class Extractions:
    """The folder of extractions: `get` reads a file or remembers it; `forget` drops what no document needs now."""

    def __init__(self, folder: Path, readers: str) -> None:
        self.folder = folder
        self.readers = readers
        self.read = 0
        """How many files were really read in this run."""
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, file: File) -> list[Extraction]:
        """The extraction of a file, followed by those of its attachments, theirs included."""
        known = self._known(document_id(file.path, file.sha256))
        if known is None:
            self.read += 1
            known = self._extract(file.path, file.file, None, file.sha256, 0)
        return known

    def _known(self, identity: str) -> list[Extraction] | None:
        """The entry of that id and of all attachments in it, or None if one is missing or of other readers."""
        path = self.folder / f"{identity}.json"
        if not path.is_file():
            return None
        try:
            entry = Extraction(**json.loads(path.read_bytes()))
        except (ValueError, TypeError):  # damaged, or of another version: read the file again
            return None
        if entry.readers != self.readers:
            return None
        entries = [entry]
        for attachment in entry.attachments:
            inner = self._known(attachment)
            if inner is None:
                return None
            entries += inner
        return entries

    def _extract(self, path: str, file: Path, data: bytes | None, sha256: str, depth: int) -> list[Extraction]:
        entry = Extraction(document_id(path, sha256), path, sha256, self.readers)
        inner: list[Extraction] = []
        try:
            extracted = _read(file, data)
        except DocumentError as error:
            entry.error, entry.value = (error.rule, str(error)), error.value
        else:
            entry.media_type, entry.title = extracted.media_type, extracted.title
            entry.blocks = [asdict(block) for block in extracted.blocks]
            entry.notes, entry.metadata = list(extracted.notes), dict(extracted.metadata)
            for name, content in _named(extracted.attachments):
                if depth < ATTACHMENT_DEPTH:
                    digest = hashlib.sha256(content).hexdigest()
                    documents = self._extract(f"{path}/{name}", Path(name), content, digest, depth + 1)
                    entry.attachments.append(documents[0].id)
                    inner += documents
                else:
                    entry.notes.append(f"attachment {name} left out: more than {ATTACHMENT_DEPTH} mails deep")
        written = json.dumps(asdict(entry), ensure_ascii=False).encode("utf-8", "replace")
        with atomic_open(self.folder / f"{entry.id}.json", "wb") as out:
            out.write(written)
        return [Extraction(**json.loads(written)), *inner]  # what a later run will find, to the letter

    def forget(self, used: Iterable[str]) -> None:
        """Delete the entries of documents that are not among `used` ids."""
        keep = set(used)
        for file in self.folder.glob("*.json"):
            if file.stem not in keep:
                file.unlink()


def _read(file: Path, data: bytes | None) -> Extracted:
    """Read one document; whatever a damaged file makes a reader stumble over becomes a DocumentError."""
    from luthier.core.data.readers.read import read_document

    try:
        return read_document(file, data)
    except (DocumentError, KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:
        logging.getLogger("luthier").debug("reading %s", file, exc_info=True)
        what = re.sub(r" at 0x[0-9a-fA-F]+", "", str(error))  # a place in memory is another one each time
        raise DocumentError("unreadable", f"{file}: {type(error).__name__}: {what}") from error


def _named(attachments: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    """Attachments under names that can stand in a path, each once: `a.pdf`, `a-2.pdf`."""
    seen: set[str] = set()
    for number, (given, data) in enumerate(attachments, 1):
        name = _utf8(given).replace("\\", "/").rsplit("/", 1)[-1].strip() or f"attachment-{number}"
        stem, suffix = Path(name).stem, Path(name).suffix
        count = 1
        while name in seen:
            count += 1
            name = f"{stem}-{count}{suffix}"
        seen.add(name)
        yield name, data
