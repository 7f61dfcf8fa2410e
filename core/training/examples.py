"""Examples to tune on: question pairs and conversations as token ids with the trained part marked.

A pair is trained in every wording it has, question and phrasings, each an example of its own:

    <|im_start|>user↵What does a set of strings cost?<|im_end|>↵<|im_start|>assistant↵A set costs 24 euros.<|im_end|>
    ································ read, not trained ·······························██████████ trained ██████████

What is never trained: pairs of volatile documents (looked up instead), pairs of the validation split, and every
wording that some pair holds out. A wording that is both trained somewhere and held out elsewhere counts as held out.

A small model holds on to the exact words of a question. `vary` can show it each question a little differently in
each epoch: in lower case, without its question mark, with a word left out now and then (Wei & Zou 2019,
arXiv:1901.11196, "random deletion"). Which, is a function of (seed, epoch, example). It is off by default.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.core.data.conversations import Message, check_example, encode_conversation, read_conversations
from luthier.core.data.preferences import Preference, read_preferences
from luthier.core.data.questions import Question, read_questions, wording
from luthier.core.training.batches import IGNORED, Example

if TYPE_CHECKING:
    from luthier.tokenizers.bpe import Tokenizer

__all__ = ["Found", "Wording", "encode_wording", "read_pairs", "read_wordings", "split_wording", "vary"]

LEAST_WORDS = 4  # shorter questions lose no word


@dataclass(frozen=True)
class Wording:
    """One example before it is encoded. `row` is its line in trained_pairs.jsonl, None for a longer conversation."""

    messages: tuple[Message, ...]
    source: str
    row: dict[str, Any] | None = None
    part: tuple[int, int] | None = None
    """The stretch of its tokens that is meant, where it was split."""


@dataclass
class Found:
    """What was read: the wordings to train, those to measure on, and why the others are left out."""

    wordings: list[Wording] = field(default_factory=list)
    held_out: list[Wording] = field(default_factory=list)
    preferences: list[Preference] = field(default_factory=list)
    pairs: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def hash(self) -> str:
        """What identifies the data: the wordings themselves, so that today's news make no tuned model stale."""
        digest = hashlib.sha256()
        for part in (self.wordings, self.held_out):
            digest.update(json.dumps([[asdict(m) for m in w.messages] for w in part]).encode() + b"\0")
        for both in self.preferences:
            digest.update(json.dumps([[asdict(m) for m in both.conversation(c)] for c in (True, False)]).encode())
        return digest.hexdigest()


def read_wordings(data: Sequence[Path]) -> Found:
    """Everything trainable in questions files (or folders that hold questions.jsonl) and conversation files."""
    found, questions = Found(), []
    for path in data:
        if _holds_questions(Path(path)):
            questions += read_questions(Path(path))
        else:
            conversations = read_conversations(Path(path))
            found.pairs += len(conversations)
            found.wordings += [Wording(c.messages, c.where, _row_of(c.messages, c.where)) for c in conversations]
    _add_questions(found, questions)
    return found


def read_pairs(data: Sequence[Path]) -> Found:
    """The preferences in all files; those whose two answers are the same teach nothing and are left out."""
    found = Found()
    for path in data:
        both = read_preferences(Path(path))
        found.preferences += [p for p in both if p.chosen != p.rejected]
        found.left_out["preferences whose two answers are the same"] += sum(p.chosen == p.rejected for p in both)
    found.pairs = len(found.preferences)
    found.left_out = +found.left_out
    return found


def _holds_questions(path: Path) -> bool:
    """Whether a file is rows of questions rather than conversations: by the keys of its first row, if it has one."""
    if path.is_dir() or not path.is_file() or path.suffix == ".gz":
        return path.is_dir()
    with path.open("rb") as file:
        first = next((line for line in file if line.strip()), b"")
    if not first and path.name == "questions.jsonl":  # documents that gave no pair
        return True
    return b'"question"' in first and b'"messages"' not in first and b'"conversations"' not in first


def _add_questions(found: Found, questions: Sequence[Question]) -> None:
    trained = [q for q in questions if q.kind == "stable" and q.split == "train"]
    for q in questions:
        if q.kind != "stable":
            found.left_out["volatile pairs, looked up instead"] += 1
        elif q.split != "train":
            found.left_out["pairs of the validation split"] += 1
    held = {wording(h) for q in questions for h in q.held_out}
    held |= {wording(q.question) for q in questions if q.split != "train" or q.kind != "stable"}
    seen: set[str] = set()
    for q in trained:
        fresh = [w for w in dict.fromkeys((q.question, *q.phrasings)) if wording(w) not in held]
        found.left_out["wordings that are held out"] += 1 + len(q.phrasings) - len(fresh)
        found.pairs += bool(fresh)
        found.wordings += [_wording(q, w) for w in fresh]
        seen.update(map(wording, fresh))
    found.held_out = [_wording(q, h) for q in trained for h in q.held_out if wording(h) not in seen]
    found.left_out = +found.left_out


def _wording(q: Question, question: str) -> Wording:
    row = {"id": q.id, "question": question, "answer": q.answer, "facts": q.facts, "language": q.language}
    messages = (Message("user", question), Message("assistant", q.answer))
    return Wording(messages, f"{q.id} ({q.path or q.question})", {**row, "path": q.path})


def _row_of(messages: Sequence[Message], where: str) -> dict[str, Any] | None:
    """A conversation of one question and one answer is a pair too."""
    if [m.role for m in messages] != ["user", "assistant"]:
        return None
    question, answer = messages
    row = {"id": where, "question": question.content, "answer": answer.content}
    return {**row, "facts": [], "language": "", "path": ""}


# ---------------------------------------------------------------- encoding


def encode_wording(tokenizer: Tokenizer, messages: Sequence[Message], source: str) -> Example:
    """Ids and labels, without what follows the last trained token: nothing is learned there."""
    ids, trained = encode_conversation(tokenizer, messages)
    check_example(tokenizer, ids, trained, source)
    places = np.flatnonzero(trained)
    ids, trained = ids[: places[-1] + 1].astype(np.int64), trained[: places[-1] + 1]
    labels = np.where(trained[1:], ids[1:], IGNORED)
    return Example(ids[:-1], labels, np.zeros(len(labels), np.int64), source)


def split_wording(wording: Wording, example: Example, row: int) -> list[Wording]:
    """An over-long example as stretches of at most `row` tokens, each trained apart; those with nothing to train are
    left out. Every label is in one of them; the later ones do not see what stands before."""
    parts = [(start, start + row) for start in range(0, len(example), row)]
    kept = [p for p in parts if (example.labels[slice(*p)] != IGNORED).any()]
    return [replace(wording, part=p, row=wording.row if p == kept[0] else None) for p in kept]


def vary(question: str, random: np.random.Generator, *, share: float, drop: float) -> str:
    """The question, or with chance `share` a variation of it; each of its words is left out with chance `drop`."""
    if random.random() >= share:
        return question
    words = question.split()
    if len(words) >= LEAST_WORDS:
        kept = random.random(len(words)) >= drop
        words = [w for w, keep in zip(words, kept, strict=True) if keep] if kept.sum() >= LEAST_WORDS - 1 else words
    varied = " ".join(words)
    if random.random() < 0.5:
        varied = varied.lower()
    return re.sub(r"\s*[?.!]+$", "", varied) or question if random.random() < 0.5 else varied


def with_question(messages: Sequence[Message], question: str) -> tuple[Message, ...]:
    """The conversation with its last question replaced."""
    last = max(i for i, m in enumerate(messages) if m.role == "user")
    return tuple(Message(m.role, question) if i == last else m for i, m in enumerate(messages))


def wordings_of(found: Iterable[Wording]) -> set[str]:
    """What makes two questions the same, for a set of examples."""
    return {wording(w.row["question"]) for w in found if w.row is not None}
