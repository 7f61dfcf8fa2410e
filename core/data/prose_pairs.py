"""Pairs from prose: questions that the text asks itself, sentences that define, and what stands under a heading."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping

from luthier.core.data.passages import PROSE, Pair, Passage, Reading, closed, first_sentences, in_quotes, made, stems
from luthier.core.data.sentences import content_words, decapitalise, is_sentence, join_lines, sentence_spans

__all__ = ["definition", "faq", "heading"]

# ---------------------------------------------------------------- faq


def faq(reading: Reading) -> Iterator[Pair]:
    """A heading or a paragraph that is a question, and the passage after it; lines "Q: …" with "A: …"."""
    yield from _lettered(reading)
    for passage, after in itertools.pairwise(reading.passages):
        question = join_lines(passage.text).strip("*_ ")
        if not _is_question(question) or passage.kind not in ("heading", *PROSE) or after.kind not in (*PROSE, "list"):
            continue
        question = _in_context(question, passage, reading)
        if not question:
            continue
        if after.kind == "list":
            yield from made(reading, "faq", "asked", _listed(after), after.start, after.end, question=question)
        elif span := first_sentences(reading, after, alone=False):
            yield from made(reading, "faq", "asked", reading.answer_at(*span), *span, question=question)


ASKING = re.compile(
    r"(?i)(what|how|why|when|where|who|whom|whose|which|can|could|do|does|did|is|are|was|were|should|shall|will|would|may|"
    r"must|have|has|am|in wh\w+|at wh\w+|for wh\w+|if .*(what|how|can|do|should|will)|was|wie\w*|warum|wieso|weshalb|"
    r"wann|wo\w*|wer|wen|wem|wessen|welche\w*|an wen|bei wem|ab wann|bis wann|kann|können|darf|dürfen|muss|müssen|"
    r"ist|sind|gibt|hat|haben|soll\w*|wird|werden|\w+(en|t) (sie|ihr|ich|wir|man|der|die|das))\b"
)
VAGUE = {"learn", "questions", "question", "help", "info", "information", "contact", "know", "find", "work", "mean"}


def _is_question(text: str) -> bool:
    """One question that asks for something that can be told."""
    return (
        text.endswith("?")
        and text.count("?") == 1
        and 3 <= len(text.split()) <= 25
        and len(sentence_spans(text)) == 1
        and bool(ASKING.match(text))
        and not re.search(r"(?i)\b(any|more) (questions?|information)\b|learn more|mehr erfahren", text)
    )


def _in_context(question: str, passage: Passage, reading: Reading) -> str:
    """A question that names its subject as it is; one that leans ("How does it work?") with the title before it."""
    leaning = re.search(r"(?i)\b(this|these|it|they|them|that|dies\w*|davon|dafür|damit)\b", question)
    if leaning or len(set(content_words(question)) - VAGUE) < 2:
        subject = next((h for h in reversed(passage.headings) if not h.endswith("?")), reading.title).rstrip(" :.")
        return f"{subject}: {question}" if set(content_words(subject)) - set(content_words(question)) else ""
    return question


def _listed(passage: Passage) -> str:
    """The items of a list in one line: `one; two; three.`"""
    items = (re.sub(r"^\s*(?:[-*•]|\d+[.)])\s+", "", line).strip(" .;") for line in passage.text.split("\n"))
    return closed("; ".join(item for item in items if item) or passage.text)


def _lettered(reading: Reading) -> Iterator[Pair]:
    """`Q: …` and `A: …` (also Question/Answer, Frage/Antwort, F), in one block or in two that follow each other."""
    pattern = re.compile(r"(?im)^\s*(?:[-*]\s+)?(q|question|f|frage|a|answer|antwort)\s*\d*\s*[:.)]\s+(\S.*)$")
    lines = [
        (m.group(1).lower()[0], p.start + m.start(2), p.start + m.end(2))
        for p in reading.passages
        if p.kind in (*PROSE, "list")
        for m in pattern.finditer(p.text)
    ]
    for (ask, a, b), (reply, c, d) in itertools.pairwise(lines):
        question = reading.answer_at(a, b)
        if ask in "qf" and reply == "a" and question.endswith("?"):
            spans = sentence_spans(reading.document.text, c, d)
            end = max((e for _, e in spans if len(reading.document.text[c:e].split()) <= reading.max_words), default=c)
            if end > c and is_sentence(reading.document.text[c:end]):
                yield from made(reading, "faq", "asked", reading.answer_at(c, end), c, end, question=question)


# ---------------------------------------------------------------- definition

NOT_A_TERM = re.compile(
    r"(?i)\b(if|when|who|that|which|what|where|why|how|you|your|we|our|us|they|their|it|its|this|these|there|here|he|she|"
    r"one|each|every|any|all|some|most|many|another|other|not|only|also|and|because|as|to|for|from|by|with|but|"
    r"wenn|was|wer|wie|wo|sie|ihr|ihre|wir|unser\w*|dies\w*|es|hier|da|jede\w*|alle|und|aber|man|nicht|auch|für|mit)\b"
)
ENGLISH_DEFINITION = re.compile(
    r"(?P<term>(?:(?:An?|The) )?[^\s,;:.!?][^,;:.!?]{1,60}?) (?:(?P<verb>is|are) (?=(?:an?|the|any) )|"
    r"(?P<means>means|refers to|stands for) )(?P<rest>\S.+)$"
)
GERMAN_DEFINITION = re.compile(
    r"(?:Unter (?P<under>[^,;:.!?]{2,60}?) versteht man |(?P<term>[A-ZÄÖÜ][^,;:.!?]{1,60}?) "
    r"(?:(?P<verb>ist|sind) (?=(?:ein|eine|der|die|das) )|(?P<means>bedeutet|bezeichnet|steht für) ))(?P<rest>\S.+)$"
)


def definition(reading: Reading) -> Iterator[Pair]:
    """Sentences that define: `A relief is a …`, `X means …`, `Ein Steg ist ein …`."""
    pattern = GERMAN_DEFINITION if reading.language == "de" else ENGLISH_DEFINITION
    text = reading.document.text
    for passage in reading.passages:
        if passage.kind not in PROSE:
            continue
        for start, end in sentence_spans(text, passage.start, passage.end):
            sentence = join_lines(text[start:end])
            match = pattern.match(sentence)
            if match is None or not is_sentence(sentence) or len(sentence.split()) < 6:
                continue
            groups = match.groupdict()
            term = (groups.get("under") or groups["term"]).strip()
            if _defines(term, groups, passage, reading):
                yield from _defined(reading, term, groups, sentence, start, end)


EVALUATES = re.compile(  # complements that praise or place a thing instead of saying what it is
    r"(?i)(an?|the|ein\w*|der|die|das)\s+(very |really |most |more |less |equally )*(important|good|great|necessary|"
    r"critical|crucial|key|useful|best|better|first|second|next|last|main|only|right|wrong|recommended|big|huge|little|bit|"
    r"lot|few|number|part|way|result|same|default|preferred|common|valuable|powerful|fun|must|art|"
    r"wichtig\w*|gut\w*|best\w*|erste\w*|nächste\w*|letzte\w*|einzige\w*|richtige\w*|gleiche\w*|teil|reihe)\b"
)


def _defines(term: str, groups: Mapping[str, str | None], passage: Passage, reading: Reading) -> bool:
    """Whether the subject is a thing that can be asked for by itself: short, no pronoun in it, not something that only
    this paragraph knows ("The first step"); and whether the sentence says what it is."""
    bare = re.sub(r"^(?:An?|The|Ein|Eine|Der|Die|Das)\s+", "", term)
    words = bare.split()
    rest = groups["rest"] or ""
    if len(words) > 5 or NOT_A_TERM.search(bare) or not content_words(bare) or re.match(r"\W*\d", bare):
        return False
    if EVALUATES.match(rest) or re.match(r"(?i)(you|that|we|it|there|if|when|dass|sie|wir)\b", rest):
        return False
    if len(words) > 1 and words[0].lower().endswith("ing") and reading.language == "en":  # "Using GitHub is a …"
        return False
    if re.match(r"(?:The|Der|Die|Das)\s", term) and groups.get("means") is None:
        known = " ".join((*passage.headings[-1:], reading.title)).casefold()
        named = any(w[:1].isupper() for w in words) and reading.language != "de"
        return named or bare.casefold() in known
    return bool(re.match(r"(?:An?|Ein|Eine)\s", term)) or len(words) <= 4


def _defined(
    reading: Reading, term: str, groups: Mapping[str, str | None], sentence: str, start: int, end: int
) -> Iterator[Pair]:
    term = re.sub(r"[“”„\"*_]", "", term)
    article = re.match(r"(?:An?|The|Ein|Eine|Der|Die|Das)\s", term)
    plural = groups.get("verb") == "are"  # names are rarely plural
    first = term if article else decapitalise(term, "en") if plural else _as_inside(term, reading)
    asked = first[0].lower() + first[1:] if article else first
    bare = re.sub(r"^(?:an?|the|ein|eine|der|die|das)\s+", "", asked, flags=re.IGNORECASE)
    if groups.get("means") or groups.get("under"):
        shape = "meaning"
    else:
        shape = "terms" if groups["verb"] in ("are", "sind") else "term"
    quoted = bare if bare.isupper() else in_quotes(bare, reading)
    yield from made(reading, "definition", shape, sentence, start, end, term=asked, bare=quoted)


def _as_inside(term: str, reading: Reading) -> str:
    """A term as it is written inside sentences: `Relief` becomes `relief` if the document has it so."""
    inside = decapitalise(term, reading.language)
    return inside if re.search(rf"(?<=[ (]){re.escape(inside)}(?!\w)", reading.document.text) else term


# ---------------------------------------------------------------- heading

GENERIC = re.compile(
    r"(?i)^(introduction|overview|summary|background|(table of )?contents|(additional |further |more |other |related )?"
    r"(reading|resources?|links?|information|info|notes?|references?|questions?|details|documents?)|see also|"
    r"next steps?|welcome.*|(step|phase|part|chapter|section|week|day|schritt|teil|kapitel) \d+|"
    r"misc\w*|other|general|example\w*|faq\w*|appendix.*|changelog|history|contact( us)?|"
    r"einleitung|überblick|übersicht|inhalt\w*|zusammenfassung|sonstiges|weiteres|anhang.*|links|hinweise?|allgemeines)$"
)


def heading(reading: Reading) -> Iterator[Pair]:
    """What the section under a heading begins with. Headings that occur twice, say nothing or ask are passed over."""
    counts = Counter(p.text.casefold() for p in reading.passages if p.kind == "heading")
    opened = False
    for before, passage in zip([None, *reading.passages], reading.passages, strict=False):
        if passage.kind == "paragraph" and not opened and (before is None or before.kind == "heading"):
            opened = True
            yield from _about(reading, passage)
        if before is None or before.kind != "heading" or passage.kind not in PROSE:
            continue
        topic = join_lines(before.text).strip("*_ .:")
        if topic.casefold() == reading.title.casefold() or not _is_topic(topic) or counts[before.text.casefold()] > 1:
            continue
        span = first_sentences(reading, passage, alone=True)
        if span and reading.title and _speaks_of(reading.answer_at(*span), topic):
            yield from made(reading, "heading", "topic", reading.answer_at(*span), *span, term=topic)


def _is_topic(text: str) -> bool:
    words = text.split()
    return 1 <= len(words) <= 9 and bool(content_words(text)) and not GENERIC.match(text) and not text.endswith("?")


def _speaks_of(sentence: str, topic: str) -> bool:
    """Whether a section's first sentence is on its topic (shares the beginning of a word) or tells a number."""
    return bool(stems(sentence) & stems(topic)) or bool(re.search(r"(?<![\w-])\d+(?![\w-])", sentence))


def _about(reading: Reading, passage: Passage) -> Iterator[Pair]:
    """What a document is about: its first sentence, if that begins with speaking of the title."""
    span = first_sentences(reading, passage, alone=True)
    if span is None or not reading.title or GENERIC.match(reading.title):
        return
    sentence = reading.answer_at(*span)
    if stems(reading.title) & stems(" ".join(sentence.split()[:8])):
        yield from made(reading, "heading", "about", sentence, *span)
