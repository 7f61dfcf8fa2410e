"""Content from a template and a table: one text a row, facts filled in by the assistant.

    # file: {customer}.txt
    Dear {customer},
    your {instrument} is ready. {ask: What does the set-up of a {instrument} cost?}

`{column}` is the row's value; `{ask: question}` is the assistant's answer to the question, whose columns are filled in
first. `{{` and `}}` are braces. A first line `# file: NAME` names each output; without it they are row-0001.txt, ….

A row is one unit of work. Its text appears whole, then one line in `answers.jsonl` says how it came about: the row's
number and file, a hash of all that went in, and every answer with its path and source. A row whose line is there is not
written again, so an interrupted run goes on, and a text that a person corrected since stays as it is.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from luthier.core.artifacts import atomic_open, content_hash, locked, read_jsonl
from luthier.core.assistant.assistant import Answer, Assistant, AssistantConfig
from luthier.core.console import progress, say
from luthier.core.errors import ArtifactError, InputError, did_you_mean

__all__ = ["Template", "WriteSummary", "read_rows", "read_template", "write"]

JOURNAL = "answers.jsonl"
FILE_LINE = re.compile(r"#\s*file:\s*(?P<name>.+?)\s*$")
BATCH = 32  # rows whose questions are asked together


@dataclass(frozen=True)
class Ask:
    """A question in a template; its parts are texts and columns."""

    parts: tuple[str | Column, ...]


@dataclass(frozen=True)
class Column:
    """A column's value."""

    name: str


@dataclass(frozen=True)
class Template:
    """A template taken apart, and the name of each output likewise (None: by number)."""

    parts: tuple[str | Column | Ask, ...]
    name: tuple[str | Column, ...] | None


@dataclass
class WriteSummary:
    """How many rows were written, were there already, and how many questions found no answer."""

    out: Path
    written: int = 0
    kept: int = 0
    asked: int = 0
    not_found: int = 0
    files: list[Path] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [("texts written", self.written), ("there already", self.kept)]
        rows += [("questions asked", self.asked), ("  without an answer", self.not_found)]
        return "\n".join(f"{name:<28}{count:>12,}" for name, count in rows)


# ---------------------------------------------------------------- the template


def read_template(path: Path) -> Template:
    """Read and take apart a template. Raises InputError naming file and line of a brace that does not fit."""
    text = _read(path)
    first, _, rest = text.partition("\n")
    match = FILE_LINE.match(first)
    if not match:
        return Template(tuple(_parts(text, path)), None)
    name = [p for p in _parts(match["name"], path) if not isinstance(p, Ask)]
    return Template(tuple(_parts(rest, path, offset=1)), tuple(name))


def _parts(text: str, path: Path, offset: int = 0) -> Iterator[str | Column | Ask]:
    """Texts, columns and questions in order. `offset` is the number of lines before `text`."""
    at = 0
    while at < len(text):
        match = re.compile(r"\{\{|\}\}|\{|\}").search(text, at)
        if match is None:
            yield text[at:]
            return
        if match.start() > at:
            yield text[at : match.start()]
        if match.group() in ("{{", "}}"):
            yield match.group()[0]
            at = match.end()
            continue
        where = f"{path}:{offset + text.count(chr(10), 0, match.start()) + 1}"
        if match.group() == "}":
            raise InputError(f"{where}: a closing brace without its opening one; write }}}} for a brace")
        at = _closing(text, match.start(), where)
        yield _placeholder(text[match.end() : at - 1], path, where)


def _closing(text: str, start: int, where: str) -> int:
    """The position after the brace that closes the one at `start`."""
    depth = 0
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return position + 1
    raise InputError(f"{where}: an opening brace that is never closed; write {{{{ for a brace")


def _placeholder(body: str, path: Path, where: str) -> Column | Ask:
    kind, colon, question = body.partition(":")
    if colon and kind.strip() == "ask":
        parts = tuple(_parts(" ".join(question.split()), path))
        if not parts or any(isinstance(p, Ask) for p in parts):
            raise InputError(f"{where}: {{ask: …}} needs one question, with text and {{columns}} only")
        return Ask(parts)  # type: ignore[arg-type]
    if not body.strip() or "{" in body or colon:
        raise InputError(f"{where}: {{{body}}} is neither a {{column}} nor {{ask: question}}")
    return Column(body.strip())


def columns(template: Template) -> list[str]:
    """The columns that a template needs, in order."""
    found = []
    for part in (*(template.name or ()), *template.parts):
        found += [p.name for p in (part.parts if isinstance(part, Ask) else (part,)) if isinstance(p, Column)]
    return list(dict.fromkeys(found))


# ---------------------------------------------------------------- the table


def read_rows(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header; comma, semicolon or tab. Raises InputError naming the row and column."""
    text = _read(path)
    header_line = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header_line.count)
    lines = csv.reader(text.splitlines(keepends=True), delimiter=delimiter, strict=True)
    try:
        header, *rows = [(lines.line_num, [cell.strip() for cell in row]) for row in lines if any(row)]
    except ValueError as error:
        raise InputError(f"{path} is empty: expected a first line with the names of the columns") from error
    except csv.Error as error:
        raise InputError(f"{path}:{lines.line_num}: not a CSV table: {error}") from error
    names = header[1]
    for name in needed:
        if name not in names:
            raise InputError(
                f"{path} has no column '{name}'{did_you_mean(name, names)}\nIts columns: {', '.join(names)}"
            )
    return [_row(path, names, line, cells, number, needed) for number, (line, cells) in enumerate(rows, 1)]


def _row(
    path: Path, names: Sequence[str], line: int, cells: Sequence[str], number: int, needed: Sequence[str]
) -> dict[str, str]:
    where = f"{path}:{line}: row {number}"
    if len(cells) != len(names):
        raise InputError(f"{where} has {len(cells)} cells, the header has {len(names)}")
    row = dict(zip(names, cells, strict=True))
    for name in needed:
        if not row[name]:
            raise InputError(f"{where}: column '{name}' is empty")
    return row


def _read(path: Path) -> str:
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start:,}; save it as UTF-8") from error


# ---------------------------------------------------------------- writing


def write(
    template: Path,
    data: Path,
    out: Path,
    *,
    model: Path | None,
    index: Path | None,
    config: AssistantConfig | None = None,
    overwrite: bool = False,
) -> WriteSummary:
    """Write one text a row of `data` into the folder `out`.

    Rows that are there are kept; rows whose template, values or assistant changed are refused, or written anew with
    `overwrite`. Raises InputError for a template or table that does not fit, ArtifactError for texts of other work.
    """
    config, out = config or AssistantConfig(), Path(out)
    if (out / "manifest.json").exists():
        raise ArtifactError(
            f"{out} holds what another stage made; its next run would drop the texts\nGive another --out."
        )
    parsed = read_template(template)
    rows = read_rows(data, columns(parsed))
    files = _file_names(parsed, rows, data)
    asks = any(isinstance(part, Ask) for part in parsed.parts)
    state = [_read(template), asdict(config) if asks else None, *(_hash(p) if asks else None for p in (model, index))]
    keys = [
        hashlib.sha256(json.dumps([state, row, name]).encode()).hexdigest()
        for row, name in zip(rows, files, strict=True)
    ]
    summary = WriteSummary(out, files=[out / name for name in files])
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        done = _journal(out)
        todo = [n for n in range(len(rows)) if not ((out / files[n]).is_file() and done.get(files[n]) == keys[n])]
        _refuse_others(out, [files[n] for n in todo], done, overwrite)
        summary.kept = len(rows) - len(todo)
        assistant = Assistant(model, index, config) if asks and todo else None
        with progress("Writing", len(todo), "texts") as advance:
            for batch in (todo[i : i + BATCH] for i in range(0, len(todo), BATCH)):
                _write_batch(parsed, [(n + 1, rows[n], files[n], keys[n]) for n in batch], out, assistant, summary)
                advance(len(batch))
    if not todo:
        say(f"{out} is up to date")
    return summary


def _hash(path: Path | None) -> str | None:
    return content_hash(Path(path)) if path is not None else None


def _file_names(template: Template, rows: Sequence[Mapping[str, str]], data: Path) -> list[str]:
    """The name of each output, without what a file name cannot hold; two rows of one name are refused."""
    names: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        raw = _filled(template.name, row) if template.name else f"row-{number:04d}.txt"
        name = re.sub(r'[\\/:*?"<>|\x00-\x1f]+', "-", raw).strip(" .") or f"row-{number:04d}.txt"
        if name in names or name == JOURNAL:
            other = f"row {names[name]}" if name in names else "the record of answers"
            raise InputError(f"{data}: row {number} and {other} would both be written to {name}; change `# file:`")
        names[name] = number
    return list(names)


def _filled(parts: Sequence[str | Column], row: Mapping[str, str]) -> str:
    return "".join(row[p.name] if isinstance(p, Column) else p for p in parts)


def _journal(out: Path) -> dict[str, str]:
    """File name → key of its last finished row; a half-written last line of a killed run is left out."""
    file = out / JOURNAL
    if not file.is_file():
        return {}
    whole = file.read_bytes()
    if whole and not whole.endswith(b"\n"):
        with atomic_open(file, "wb") as mended:
            mended.write(whole[: whole.rfind(b"\n") + 1])
    return {row["file"]: row["key"] for row in read_jsonl(file)}


def _refuse_others(out: Path, files: Sequence[str], done: Mapping[str, str], overwrite: bool) -> None:
    there = [name for name in files if (out / name).exists()]
    if there and not overwrite:
        made = (
            "was written from another template, row or assistant" if there[0] in done else "was not written by luthier"
        )
        raise ArtifactError(f"{out / there[0]} exists and {made}\nGive another --out, or --overwrite to replace it.")


def _write_batch(
    template: Template,
    batch: Sequence[tuple[int, Mapping[str, str], str, str]],
    out: Path,
    assistant: Assistant | None,
    summary: WriteSummary,
) -> None:
    """Ask the questions of some rows together, then write the texts one by one."""
    asks = [part for part in template.parts if isinstance(part, Ask)]
    questions = [_filled(ask.parts, row) for _, row, _, _ in batch for ask in asks]
    answers = assistant.answers(questions) if assistant is not None else []
    for i, (number, row, name, key) in enumerate(batch):
        mine = list(zip(questions, answers, strict=True))[i * len(asks) : (i + 1) * len(asks)]
        with atomic_open(out / name) as file:
            file.write(_text(template, row, mine))
        _append(out / JOURNAL, {"row": number, "file": name, "key": key, "answers": [_said(q, a) for q, a in mine]})
        summary.written += 1
        summary.asked += len(mine)
        summary.not_found += sum(a.path == "none" for _, a in mine)


def _text(template: Template, row: Mapping[str, str], answers: Sequence[tuple[str, Answer]]) -> str:
    """The row's text. What was not found is marked, so that nobody sends it unread."""
    said = iter(answers)
    pieces = []
    for part in template.parts:
        if isinstance(part, Ask):
            question, answer = next(said)
            pieces.append(f"[not found: {question}]" if answer.path == "none" else answer.text)
        else:
            pieces.append(_filled([part], row))
    return "".join(pieces)


def _said(question: str, answer: Answer) -> dict[str, Any]:
    source = asdict(answer.source) if answer.source else None
    return {"question": question, "answer": answer.text, "path": answer.path, "score": answer.score, "source": source}


def _append(path: Path, row: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
