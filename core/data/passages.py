"""A document as the rules of question-making read it: passages under their headings, and the checks every pair passes.

A pair's answer is short enough, whole, free of left-over markup, understood without what stood before it, and points at
nothing outside itself ("see the form below"). These checks stand here; what is asked stands with the rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from luthier.core.data.corpus import Document
from luthier.core.data.phrasings import SHAPES, Wordings, wordings
from luthier.core.data.sentences import Rarity, content_words, facts_of, is_sentence, join_lines, sentence_spans

__all__ = [
    "PROSE",
    "Pair",
    "Passage",
    "Reading",
    "closed",
    "first_sentences",
    "in_quotes",
    "made",
    "passages",
    "points",
    "reads_clean",
    "stems",
]

PROSE = ("paragraph", "note", "ocr", "caption", "comment")


@dataclass(frozen=True)
class Pair:
    """One pair as a rule made it; `start` and `end` are offsets into the document's text."""

    rule: str
    wordings: Wordings
    answer: str
    facts: tuple[str, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Passage:
    """A block with the headings above it, outermost first, and its text without heading marks."""

    text: str
    kind: str
    start: int
    end: int
    headings: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """What the rules know while they read a document."""

    document: Document
    title: str
    language: str
    passages: list[Passage]
    rarity: Rarity
    max_words: int

    def facts(self, answer: str, question: str) -> tuple[str, ...]:
        return tuple(facts_of(answer, question, self.rarity))

    def answer_at(self, start: int, end: int) -> str:
        return join_lines(self.document.text[start:end])


def passages(document: Document) -> list[Passage]:
    """The document's blocks in order, each with the headings it stands under."""
    out: list[Passage] = []
    above: list[tuple[int, str]] = []
    for span in document.spans:
        text = document.text[span.start : span.end]
        if span.block == "heading":
            marks = len(text) - len(text.lstrip("#"))
            text = re.sub(r"^\s*\d+(?:\.\d+)*[.)]?\s+", "", text[marks:].strip())
            above = [h for h in above if h[0] < marks]
            out.append(Passage(text, "heading", span.start, span.end, tuple(h for _, h in above)))
            above.append((marks, text))
        else:
            out.append(Passage(text, span.block, span.start, span.end, tuple(h for _, h in above)))
    return out


def made(
    reading: Reading, rule: str, shape: str, answer: str, start: int, end: int, facts: Sequence[str] = (), **fields: str
) -> Iterator[Pair]:
    """A pair, if its language has the wording, and its answer is short enough, reads clean and says something that the
    question does not."""
    if shape != "asked" and reading.language not in SHAPES:
        return
    if len(answer.split()) > reading.max_words or answer.endswith("?") or not reads_clean(answer) or points(answer):
        return
    words = wordings(shape, reading.language, fields={"title": reading.title, **fields})
    facts = tuple(facts) or reading.facts(answer, words.question)
    if facts and reads_clean(words.question):
        yield Pair(rule, words, answer, tuple(facts), start, end)


LEFTOVER = re.compile(r"\]\[|\]\(|\{[%{#]|</?[a-z]+\b|&[a-z]+;|\\|\b(TK|TODO|TBD)\b|(?i:coming soon|lorem ipsum)")


def reads_clean(text: str) -> bool:
    """No left-over markup, and every bracket and quotation mark has its partner."""
    if LEFTOVER.search(text):
        return False
    return all(text.count(a) == text.count(b) for a, b in ("()", "[]", "“”")) or "„" in text


def points(sentence: str) -> bool:
    """Whether a sentence points at something that is not in it: a link, a form, what stands above or below."""
    return bool(POINTING.search(sentence))


POINTING = re.compile(
    r"(?i)\b(below|above|there are (a few|several|many|some|other|different|multiple|a number)|(as|the) follow(s|ing)|"
    r"here (is|are)|click|see (the|also|our|this|here)|"
    r"(this|these|the following) (form|link|page|guide|document|section|table|list|video|template|instructions?|steps?|"
    r"questions?|resources?|tips|examples?)|unten|oben|folgende\w*|siehe|hier (ist|sind|finden))\b"
)


def first_sentences(reading: Reading, passage: Passage, *, alone: bool) -> tuple[int, int] | None:
    """The span of the first sentence of a passage, with the second where the first is short and both fit; None unless
    it is whole. `alone`: it must be understood without what stood before."""
    spans = sentence_spans(reading.document.text, passage.start, passage.end)
    text = reading.document.text
    if not spans or not is_sentence(text[slice(*spans[0])]):
        return None
    start, end = spans[0]
    if alone and (leans(text[start:end]) or len(text[start:end].split()) < 5):
        return None
    count = len(text[start:end].split())
    if count > reading.max_words:
        return None
    if count < 9 and len(spans) > 1:
        more = text[start : spans[1][1]]
        if is_sentence(text[slice(*spans[1])]) and len(more.split()) <= reading.max_words:
            end = spans[1][1]
    return start, end


def leans(sentence: str) -> bool:
    """Whether a sentence leans on the one before it."""
    return bool(LEANING.match(sentence))


LEANING = re.compile(
    r"(?i)[\"'“„]?(this|these|that|those|it|they|he|she|such|both|also|but|and|or|so|then|here|there|however|instead|"
    r"otherwise|therefore|additionally|for example|for instance|in addition|as well|again|note|see|click|"
    r"dies\w*|jene\w*|es|sie|er|auch|aber|und|oder|dann|hier|dort|dabei|dazu|daher|deshalb|außerdem|siehe|"
    r"zum beispiel)\b"
)


def closed(text: str) -> str:
    """`text` with a full stop, if it has none."""
    return text if text[-1] in ".!?…" or text[-2:] in ('."', ".”", ".“", ".)") else f"{text}."


def in_quotes(bare: str, reading: Reading) -> str:
    return f"„{bare}“" if reading.language == "de" else f'"{bare}"'


def stems(text: str) -> set[str]:
    """Content words cut to five letters: `tuning` and `tuned` are two, `cleaning` and `cleaned` are one."""
    return {word[:5] for word in content_words(text)}
