"""Folders that pass between stages: whole or absent, never half.

Every stage turns input folders into one output folder. Three promises hold for each of them:

1. **Atomic.** The folder is built beside its place (`.NAME.building`) and exchanged by two renames, old → `.NAME.old`,
   new → `NAME`. A kill between the two is repaired at the next start. `manifest.json` is written last; a folder
   without it is incomplete and never read.
2. **Known by content.** The manifest holds the stage, its settings, the hashes of its inputs and outputs, and the
   documents that went in. Two runs of the same work have the same `identity`, so a run that would repeat work that is
   already there does nothing, and an interrupted run of the same work goes on in its `.building` folder.
3. **One writer.** A lock beside the folder names its holder; the lock dies with the process.

    work = Artifact(out, stage="train-tokenizer", settings=asdict(config), inputs={"corpus": corpus_folder})
    if not work.done:
        with work:                                  # takes the lock, makes or resumes work.folder
            write_json(work.folder / "x.json", …)   # an exception leaves the old artefact as it was
    # on leaving the block: outputs hashed, manifest written, folders exchanged
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from luthier.core.errors import ArtifactError, InputError, LockedError

__all__ = [
    "Artifact",
    "atomic_open",
    "content_hash",
    "hash_file",
    "locked",
    "manifest_hash",
    "read_json",
    "read_jsonl",
    "read_manifest",
    "write_json",
    "write_jsonl",
]

FORMAT = 1
MANIFEST = "manifest.json"
# Written by people or by other stages into a finished folder; not part of what the stage made.
NOT_OUTPUT = {MANIFEST, "work.json", "questions.jsonl", "questions.manifest.json"}


# ---------------------------------------------------------------- files


@contextlib.contextmanager
def atomic_open(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file for writing that appears under its name only when whole: temporary file, fsync, rename."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        with open(temporary, mode, **text) as file:  # noqa: PTH123 - mode and text arguments are computed
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, atomically."""
    with atomic_open(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=2)
        file.write("\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; a broken one is an InputError with line and column."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}") from error


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write one JSON object a line, atomically; returns the number of rows."""
    count = 0
    with atomic_open(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file; a broken line is an InputError that names it."""
    with Path(path).open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{path}:{number}: not valid JSON: {error.msg}") from error
            if not isinstance(row, dict):
                raise InputError(f"{path}:{number}: expected one JSON object a line, found {type(row).__name__}")
            yield row


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(path: Path) -> str:
    """What identifies an input: the manifest's hash of an artefact folder, a file's sha256, or the hash of a plain
    folder's relative names and files."""
    path = Path(path)
    if path.is_file():
        return hash_file(path)
    if (path / MANIFEST).is_file():
        return manifest_hash(read_manifest(path))
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder")
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{hash_file(file)}\n".encode())
    return digest.hexdigest()


# ---------------------------------------------------------------- manifests


def manifest_hash(manifest: Mapping[str, Any]) -> str:
    """sha256 over the hashed part of a manifest: stage, settings, inputs, outputs (not time, host or versions)."""
    hashed = {key: manifest[key] for key in ("stage", "settings", "inputs", "outputs")}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def read_manifest(folder: Path, stage: str | None = None) -> dict[str, Any]:
    """The manifest of a finished artefact; `stage` checks that it is of that kind.

    Raises ArtifactError for a missing or incomplete folder, another stage's artefact, or a newer format.
    """
    folder = Path(folder)
    _repair(folder)
    path = folder / MANIFEST
    if not path.is_file():
        state = "is incomplete (no manifest.json)" if folder.is_dir() else "does not exist"
        made_by = f"; make it with `luthier {stage}`" if stage else ""
        raise ArtifactError(f"{folder} {state}{made_by}")
    manifest = read_json(path)
    if manifest.get("format", 0) > FORMAT:
        raise ArtifactError(
            f"{path} has format {manifest['format']}, this luthier reads up to {FORMAT}; upgrade luthier"
        )
    if stage is not None and manifest["stage"] != stage:
        raise ArtifactError(
            f"{folder} was made by `luthier {manifest['stage']}`, expected the output of `luthier {stage}`"
        )
    return manifest


def _repair(folder: Path) -> None:
    """Finish an exchange that a kill interrupted: the old folder was moved away and the new one not yet in."""
    old = folder.with_name(f".{folder.name}.old")
    building = folder.with_name(f".{folder.name}.building")
    if old.is_dir() and not folder.exists():
        (building if (building / MANIFEST).is_file() else old).rename(folder)
    if old.is_dir() and folder.exists():
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold `.NAME.lock` beside `path`; LockedError names the process that holds it already."""
    import fcntl

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with lock.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise LockedError(
                f"{path} is being written by {file.read().strip() or 'another process'}; wait for it"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        yield


class Artifact:
    """One output folder in the making. See the module's head for the pattern of use.

    Attributes: `out` the final folder; `folder` where to write while inside the `with` block; `done` whether the same
    work is already there, finished; `resumed` whether an interrupted try of the same work was found.
    """

    def __init__(
        self,
        out: Path,
        stage: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Path | str | None],
        *,
        documents: Iterable[Mapping[str, str]] = (),
        overwrite: bool = False,
    ) -> None:
        """`inputs` maps a name to a path (hashed here) or to a ready hash; `documents` are {path, sha256} of what went
        in, taken from the inputs' manifests where left out. Raises ArtifactError if `out` holds other work."""
        self.out = Path(out)
        self.stage = stage
        _repair(self.out)
        self.identity = json.loads(
            json.dumps(
                {
                    "stage": stage,
                    "settings": settings,
                    "inputs": {
                        name: content_hash(value) if isinstance(value, Path) else value
                        for name, value in inputs.items()
                        if value is not None
                    },
                },
                default=str,
            )
        )
        self.documents = [dict(d) for d in documents] or _documents_of(inputs.values())
        self.folder = self.out.with_name(f".{self.out.name}.building")
        self.done = self.resumed = False
        self._stack = contextlib.ExitStack()
        if (self.out / MANIFEST).is_file():
            manifest = read_manifest(self.out)
            self.done = all(manifest.get(key) == value for key, value in self.identity.items())
            if not self.done and not overwrite:
                raise ArtifactError(
                    f"{self.out} exists and holds different work (`luthier {manifest['stage']}` with other settings or "
                    f"inputs)\nGive another --out, or --overwrite to replace it."
                )
        elif self.out.exists() and not overwrite and (not self.out.is_dir() or any(self.out.iterdir())):
            raise ArtifactError(f"{self.out} exists and was not made by luthier\nGive another --out, or --overwrite.")

    def __enter__(self) -> Artifact:
        self._stack.enter_context(locked(self.out))
        mark = self.folder / "work.json"
        if mark.is_file() and read_json(mark) == self.identity:
            self.resumed = True
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            write_json(mark, self.identity)
        self._started = time.time()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if kind is None:
                self._finish()

    def _finish(self) -> None:
        (self.folder / "work.json").unlink()
        manifest = {
            "format": FORMAT,
            **self.identity,
            "outputs": {
                file.relative_to(self.folder).as_posix(): hash_file(file)
                for file in sorted(self.folder.rglob("*"))
                if file.is_file() and file.name not in NOT_OUTPUT
            },
            "documents": self.documents,
            "run": run_facts(time.time() - self._started),
        }
        write_json(self.folder / MANIFEST, manifest)
        old = self.out.with_name(f".{self.out.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if self.out.exists():
            self.out.rename(old)
        self.folder.rename(self.out)
        _sync_folder(self.out.parent)
        shutil.rmtree(old, ignore_errors=True)


def run_facts(seconds: float) -> dict[str, Any]:
    """Where and how long: the part of a manifest that is not hashed."""
    versions = {}
    for package in ("luthier", "numpy", "numba", "torch"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "seconds": round(seconds, 3),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": socket.gethostname(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": versions,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _documents_of(inputs: Iterable[Path | str | None]) -> list[dict[str, str]]:
    """The documents that the input artefacts were made from, in order and without repeats."""
    seen: dict[str, dict[str, str]] = {}
    for path in inputs:
        if isinstance(path, Path) and (path / MANIFEST).is_file():
            for document in read_manifest(path).get("documents", []):
                seen.setdefault(json.dumps(document, sort_keys=True), document)
        elif isinstance(path, Path) and path.is_file():
            seen.setdefault(path.name, {"path": path.name, "sha256": hash_file(path)})
    return list(seen.values())


def _sync_folder(folder: Path) -> None:
    """fsync a folder, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
