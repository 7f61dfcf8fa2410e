"""A corpus and its questions in the terminal: what is in them, what was left out and why, and a piece to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.artifacts import read_jsonl
from luthier.core.console import counted
from luthier.core.data.corpus import Document, read_corpus
from luthier.core.data.questions import Question, is_edited, read_questions

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["show_corpus", "show_questions"]

EXCERPT = 700  # characters
REJECTED_ROWS = 20


def show_corpus(path: Path) -> None:
    """Print the human view of a corpus folder to stdout. Raises ArtifactError if it is none."""
    path, console = Path(path), _console()
    documents = list(read_corpus(path))
    rejected = list(read_jsonl(path / "rejected.jsonl"))
    characters = sum(len(d.text) for d in documents)
    words = sum(len(d.text.split()) for d in documents)
    size = f"{counted(len(documents), 'document')}, {words:,} words, {characters:,} characters"
    _say(console, f"{path}: a corpus of {size}\n")
    _counts(console, "format", (d.source.media_type for d in documents))
    _counts(console, "kind", (d.kind for d in documents))
    _counts(console, "split of the stable ones", (d.split for d in documents if d.kind == "stable"))
    _counts(console, "language", (d.language or "not told" for d in documents))
    _counts(console, "blocks", (s.block for d in documents for s in d.spans))
    _rejections(console, rejected)
    _excerpt(console, max(documents, key=lambda d: (d.kind == "stable", len(d.text))))
    if (path / "questions.jsonl").is_file():
        _say(console, f"\nPairs of question and answer: luthier show {path / 'questions.jsonl'}")


def show_questions(path: Path) -> None:
    """Print the human view of a questions file, or of a corpus folder's, to stdout. Raises InputError on a bad row."""
    path, console = Path(path), _console()
    questions = read_questions(path)
    wordings = counted(sum(1 + len(q.phrasings) for q in questions), "wording")
    _say(console, f"{path}: {counted(len(questions), 'pair')} of question and answer, {wordings} to train on\n")
    _counts(console, "made by", (q.made_by for q in questions))
    _counts(console, "kind", (q.kind for q in questions))
    _counts(console, "split", (q.split for q in questions))
    _counts(console, "language", (q.language or "not told" for q in questions))
    _say(console, f"edited by hand: {sum(map(is_edited, questions)):,}")
    for question in _one_of_each(questions):
        _pair(console, question)


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    return console


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(text, markup=False, style=style or None, soft_wrap=True)


def _counts(console: Console, title: str, values: Iterable[str]) -> None:
    counts = Counter(values)
    if counts:
        _say(console, f"{title}: " + ", ".join(f"{name} {n:,}" for name, n in counts.most_common()))


def _rejections(console: Console, rejected: Sequence[dict[str, Any]]) -> None:
    """What was left out, by rule, and the first rows with their reasons."""
    from rich.table import Table

    if not rejected:
        _say(console, "\nNothing was left out.")
        return
    whole = [row for row in rejected if not row.get("part")]
    lines = counted(len(rejected) - len(whole), "running line")
    _say(console, f"\nLeft out: {counted(len(whole), 'document')}, {lines}")
    table = Table("path", "rule", "value", "reason", box=None, padding=(0, 1), header_style="bold")
    for column in table.columns[:3]:
        column.no_wrap = True
    for row in (whole + [r for r in rejected if r.get("part")])[:REJECTED_ROWS]:
        value = row["value"]["similarity"] if isinstance(row["value"], dict) else row["value"]
        reason = f"“{row['text']}” {row['message']}" if row.get("part") else _reason(row)
        path = _shortened(row["source"]["path"], console.width // 3)
        table.add_row(*(_escaped(str(cell)) for cell in (path, row["rule"], value, reason)))
    console.print(table)
    if len(rejected) > REJECTED_ROWS:
        _say(console, f"… and {len(rejected) - REJECTED_ROWS:,} more in rejected.jsonl")


def _reason(row: dict[str, Any]) -> str:
    """Why, without the file that the message begins with: it stands in the row already."""
    before, found, why = row["message"].partition(f"{row['source']['path'].rsplit('/', 1)[-1]}: ")
    return why if found and (not before or before.endswith(("/", "\\"))) else row["message"]


def _shortened(path: str, most: int) -> str:
    """A path of at most so many characters: its middle is left out, since names that differ do so at the end."""
    end = 2 * most // 3
    return path if len(path) <= most else f"{path[: most - end - 1]}…{path[-end:]}"


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _excerpt(console: Console, document: Document) -> None:
    where = f"{document.source.path}, {len(document.spans)} blocks, rules: {', '.join(document.rules) or 'none'}"
    _say(console, f"\nThe longest stable document begins ({where}):\n", style="bold")
    _say(console, document.text[:EXCERPT] + (" …" if len(document.text) > EXCERPT else ""))


def _one_of_each(questions: Sequence[Question]) -> list[Question]:
    """The first pair of each maker."""
    first: dict[str, Question] = {}
    for question in questions:
        first.setdefault(question.made_by, question)
    return list(first.values())


def _pair(console: Console, q: Question) -> None:
    place = (
        f"{q.path}{f', page {q.page}' if q.page else ''}, characters {q.start:,} to {q.end:,}" if q.path else "yours"
    )
    _say(console, f"\n{q.question}", style="bold")
    _say(console, f"  {q.answer}")
    _say(
        console, f"  facts: {', '.join(q.facts) or 'none'}   also asked: {' / '.join(q.phrasings) or '-'}", style="dim"
    )
    _say(console, f"  held out: {' / '.join(q.held_out) or '-'}   ({q.made_by}; {place})", style="dim")
