"""Folders that pass between stages: whole or absent, never half.

Every stage turns input folders into one output folder. Three promises hold for each of them:

1. **Atomic.** The folder is built beside its place (`.NAME.building`) and exchanged by two renames, old → `.NAME.old`,
   new → `NAME`. A kill between the two is repaired at the next start. `manifest.json` is written last; a folder
   without it is incomplete and never read.
2. **Known by content.** The manifest holds the stage, its settings, the hashes of its inputs and outputs, and the
   documents that went in. Two runs of the same work have the same `identity`, so a run that would repeat work that is
   already there does nothing, and an interrupted run of the same work goes on in its `.building` folder. Other work in
   either place is not replaced unasked.
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

from luthier.core.console import say
from luthier.core.errors import ArtifactError, InputError, LockedError

__all__ = [
    "Artifact",
    "apart",
    "atomic_open",
    "content_hash",
    "documents_of",
    "hash_file",
    "locked",
    "manifest_hash",
    "parse_line",
    "read_json",
    "read_jsonl",
    "read_manifest",
    "write_json",
    "write_jsonl",
]

FORMAT = 1
MANIFEST = "manifest.json"
MARK = "work.json"  # in a folder being built: whose work it is
# Written by people or by other stages into a finished folder: not part of what the stage made, and carried over when
# the folder is made anew.
CARRIED = ("questions.jsonl", "questions.manifest.json")
NOT_OUTPUT = {MANIFEST, MARK, "run.json", "clock.jsonl", *CARRIED}


# ---------------------------------------------------------------- files


@contextlib.contextmanager
def atomic_open(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file for writing that appears under its name only when whole: temporary file, fsync, rename."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    encoding, newline = (None, None) if "b" in mode else ("utf-8", "\n")
    try:
        with temporary.open(mode, encoding=encoding, newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.filename is None:  # a write does not say where
            error.filename = str(path)
        raise
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
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"{path}:{number}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
            row = parse_line(text, f"{path}:{number}")
            if not isinstance(row, dict):
                raise InputError(f"{path}:{number}: expected one JSON object a line, found {type(row).__name__}")
            yield row


def parse_line(text: str, where: str) -> Any:
    """The value of a line of JSON; a broken one is an InputError that says where."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON: {error.msg}\nExpected one JSON object a line.") from error
    except RecursionError as error:
        raise InputError(f"{where}: its values are nested too deeply to be read; take the line out") from error
    except ValueError:  # a number of more than 4,300 digits, which JSON allows
        return json.loads(text, parse_int=float)


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
    if _is_artifact(path):
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
    if not _is_manifest(manifest):
        raise ArtifactError(f"{path} was not written by luthier; {folder} is not the output of a stage")
    if manifest["format"] > FORMAT:
        raise ArtifactError(
            f"{path} has format {manifest['format']}, this luthier reads up to {FORMAT}; upgrade luthier"
        )
    if stage is not None and manifest["stage"] != stage:
        raise ArtifactError(
            f"{folder} was made by `luthier {manifest['stage']}`, expected the output of `luthier {stage}`"
        )
    return manifest


def _is_manifest(value: Any) -> bool:
    """Whether a manifest.json is ours: web applications and browsers' extensions have files of that name too."""
    return isinstance(value, dict) and isinstance(value.get("format"), int) and {"stage", "outputs"} <= value.keys()


def _is_artifact(folder: Path) -> bool:
    """Whether `folder` holds a manifest of ours; another program's manifest.json makes no artefact."""
    if not (folder / MANIFEST).is_file():
        return False
    try:
        return _is_manifest(read_json(folder / MANIFEST))
    except InputError:
        return False


# ---------------------------------------------------------------- the exchange


def _beside(folder: Path, role: str) -> Path:
    return folder.with_name(f".{folder.name}.{role}")


def _exchange(folder: Path) -> None:
    """Put the finished `.building` folder into its place. Each step may be the last before a kill; done again from the
    start by `_repair`, all of them lead to the same end."""
    old, building = _beside(folder, "old"), _beside(folder, "building")
    if folder.exists():
        _remove(old)
        folder.rename(old)
    # Only now, with the old folder out of a person's reach, is its questions.jsonl final.
    for name in CARRIED:
        if (old / name).is_file():
            with atomic_open(building / name, "wb") as file:
                file.write((old / name).read_bytes())
    building.rename(folder)
    _sync_folder(folder.parent)
    _remove(old)


def _repair(folder: Path) -> None:
    """Finish an exchange that a kill interrupted: the old folder was moved away and the new one not yet in."""
    old = _beside(folder, "old")
    if not old.exists():
        return
    try:
        with locked(folder):
            _repair_locked(folder)
    except LockedError:  # its writer is alive and in the middle of the exchange, which takes milliseconds
        deadline = time.monotonic() + 5
        while not folder.exists() and time.monotonic() < deadline:
            time.sleep(0.01)


def _repair_locked(folder: Path) -> None:
    old, building = _beside(folder, "old"), _beside(folder, "building")
    if old.exists() and not folder.exists():
        if (building / MANIFEST).is_file():
            _exchange(folder)
        else:
            old.rename(folder)
    _remove(old)


def _remove(path: Path) -> None:
    """Delete a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold `.NAME.lock` beside `path`; LockedError names the process that holds it already."""
    import fcntl

    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _beside(path, "lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise ArtifactError(f"{path} cannot be written: {error.strerror}: {error.filename}") from error
    with file:
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


def apart(inputs: Iterable[Path], out: Path) -> list[Path]:
    """`inputs` as paths. Raises InputError for one that is `out` or lies in it, where it would be replaced."""
    paths = [Path(path) for path in inputs]
    for path in paths:
        if path.resolve().is_relative_to(Path(out).resolve()):
            raise InputError(f"{path} is to be read, and --out {out} would replace it\nGive another --out.")
    return paths


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
        caches: Iterable[str] = (),
        progress: str = "",
    ) -> None:
        """`inputs` maps a name to a path (hashed here) or to a ready hash; `documents` are {path, sha256} of what went
        in, taken from the inputs' manifests where left out. `caches` are sub-folders whose files stay good whatever
        else changes: they come along from the old folder and from an interrupted try of other work, and are not
        counted among the outputs. `progress` is a pattern of what an interrupted try leaves once it has done work worth
        going on with. Raises ArtifactError if `out` holds other work, and on entering if a try of other work left
        `progress` (unless `overwrite`); InputError if an input lies in `out`."""
        self.out = Path(out)
        self.stage = stage
        self.caches, self.progress, self.overwrite = tuple(caches), progress, overwrite
        _repair(self.out)
        apart((value for value in inputs.values() if isinstance(value, Path)), self.out)
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
        self.documents = [dict(d) for d in documents] or documents_of(inputs.values())
        self.folder = _beside(self.out, "building")
        self.done = self.resumed = False
        self._stack = contextlib.ExitStack()
        if _is_artifact(self.out):
            manifest = read_manifest(self.out)
            same = all(manifest.get(key) == value for key, value in self.identity.items())
            self.done = same and all((self.out / name).is_file() for name in manifest["outputs"])
            if not same and not overwrite:
                raise ArtifactError(
                    f"{self.out} exists and holds different work: {_differences(manifest, self.identity)}\n"
                    "Give another --out, or --overwrite to replace it."
                )
        elif self.out.exists() and not overwrite and (not self.out.is_dir() or any(self.out.iterdir())):
            raise ArtifactError(f"{self.out} exists and was not made by luthier\nGive another --out, or --overwrite.")

    def __enter__(self) -> Artifact:
        self._stack.enter_context(locked(self.out))
        try:
            self._prepare()
        except BaseException:
            self._stack.close()
            raise
        self._started = time.time()
        return self

    def _prepare(self) -> None:
        """Go on in the folder of an interrupted try, or make a fresh one."""
        begun = _mark(self.folder)
        if begun == self.identity:
            self.resumed = True
        else:
            self._leave(begun)
            spare = _beside(self.out, "caches")
            for name in self.caches:
                if (self.folder / name).is_dir() and not (spare / name).exists():
                    spare.mkdir(exist_ok=True)
                    (self.folder / name).rename(spare / name)
            _remove(self.folder)
            self.folder.mkdir(parents=True)
            for name in self.caches:
                if (spare / name).is_dir():
                    (spare / name).rename(self.folder / name)
            _remove(spare)
            write_json(self.folder / MARK, self.identity)
        for name in self.caches:
            _link_missing(self.out / name, self.folder / name)

    def _leave(self, begun: Mapping[str, Any]) -> None:
        """Say that an interrupted try of other work is thrown away, or refuse to."""
        if not begun or not self.progress or not any(self.folder.glob(self.progress)):
            return
        what = f"{self.out} is begun and not finished, as different work: {_differences(begun, self.identity)}"
        if not self.overwrite:
            raise ArtifactError(
                f"{what}\nGive what it was begun with to go on with it; or another --out; or --overwrite to begin anew."
            )
        say(f"note: {what}: begun anew")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if kind is None:
                self._finish()

    def _finish(self) -> None:
        (self.folder / MARK).unlink()
        outputs = {}
        for file in sorted(p for p in self.folder.rglob("*") if p.is_file()):
            name = file.relative_to(self.folder)
            if name.parts[0] not in self.caches and name.name not in NOT_OUTPUT:
                outputs[name.as_posix()] = hash_file(file)
        manifest = {
            "format": FORMAT,
            **self.identity,
            "outputs": outputs,
            "documents": self.documents,
            "run": run_facts(time.time() - self._started),
        }
        write_json(self.folder / MANIFEST, manifest)
        _exchange(self.out)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In which settings and inputs one work is not another, in words."""
    if before["stage"] != now["stage"]:
        return f"made by `luthier {before['stage']}`"
    old, new = before["settings"], now["settings"]
    settings = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    words = [f"{name} was {_brief(old.get(name))}, is {_brief(new.get(name))}" for name in settings]
    old, new = before["inputs"], now["inputs"]
    words += [
        f"{name} {'was not given' if name not in old else 'is not given' if name not in new else 'has changed'}"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]
    return "; ".join(words)


def _brief(value: Any, most: int = 40) -> str:
    text = "not given" if value is None else str(value)
    return text if len(text) <= most else f"{text[:most]}…"


def _mark(folder: Path) -> dict[str, Any]:
    """Whose work a folder being built is; nobody's, if that cannot be read."""
    try:
        mark = read_json(folder / MARK) if (folder / MARK).is_file() else {}
    except InputError:
        return {}
    return mark if isinstance(mark, dict) and {"stage", "settings", "inputs"} <= mark.keys() else {}


def _link_missing(source: Path, target: Path) -> None:
    """Bring the files of `source` into `target` where they are not there yet: as hard links, or copies where the file
    system has none. Files written by `atomic_open` are never changed in place, so a link is as good as a copy."""
    if not source.is_dir():
        return
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and not (target / file.name).exists():
            try:
                os.link(file, target / file.name)
            except OSError:
                shutil.copyfile(file, target / file.name)


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


def documents_of(inputs: Iterable[Path | str | None]) -> list[dict[str, str]]:
    """The documents that the input artefacts were made from, in order and without repeats."""
    seen: dict[str, dict[str, str]] = {}
    for path in inputs:
        if isinstance(path, Path) and _is_artifact(path):
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
