"""Sentences and the words that matter in them, by rule, in English and German.

A sentence ends at `.`, `!` or `?` (and closing quotes or brackets) before white space and something that can begin a
sentence, unless the dot belongs to an abbreviation, an initial (`J. Smith`) or a German ordinal (`am 3. Mai`). Every
position is a code-point offset, so that an answer can cite exactly where it stands.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Rarity", "content_words", "decapitalise", "facts_of", "is_sentence", "join_lines", "sentence_spans"]

END = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s)")
ABBREVIATION_LIST = """
e.g i.e etc vs mr mrs ms dr prof st no nos approx ca cf al inc ltd co corp dept est fig jan feb mar apr jun jul aug
sep sept oct nov dec a.m p.m u.s u.k z.b d.h u.a bzw usw nr abs art bspw evtl ggf inkl exkl zzgl vgl str tel mio mrd
o.ä u.ä s.o s.u i.d.r
"""
ABBREVIATIONS = frozenset(ABBREVIATION_LIST.split())
ENGLISH_STOP_WORDS = """
a about above after again all also although always am an and any anyone are as at be because been before being both
but by can could did do does doing done during each either else every few for from further get given go had has have
having he her here hers him his how however i if in into is it its itself just may me might more most much must my
near need no nor not of off on once one only or other others our ours out over own per same shall she should since
so some such than that the their theirs them then there these they this those through to too under until up upon us
use used using very via was we well were what when where whether which while who whom whose why will with within
without would yes you your yours
"""
GERMAN_STOP_WORDS = """
aber alle allem allen aller alles als also am an auch auf aus bei beim bin bis da damit dann das dass dein dem den
der des dich die dies diese diesem diesen dieser dieses dir doch dort du durch ein eine einem einen einer eines er
es etwas euch euer für gegen hat hatte haben hier ich ihm ihn ihnen ihr ihre im in ist ja jede jedem jeden jeder
jedes kann kein keine können machen man mehr mein mit muss müssen nach nicht nichts noch nun nur ob oder ohne sehr
sein seine selbst sich sie sind so soll sollte über um und uns unser unsere unter viel vom von vor war waren was
weil weiter welche welcher welches wenn wer werden wie wieder will wir wird wo zu zum zur zwischen
"""
STOP_WORDS = frozenset((ENGLISH_STOP_WORDS + GERMAN_STOP_WORDS).split())
UNITS = (
    r"%|€|EUR|USD|CHF|GBP|euros?|dollars?|cents?|°C|°F|mm|cm|m|km|in|ft|g|kg|lb|ml|l|Hz|kHz|W|kW|V|MB|GB|TB|"
    r"seconds?|minutes?|hours?|days?|weeks?|months?|years?|percent|am|pm|a\.m\.|p\.m\.|people|times|"
    r"Sekunden?|Minuten?|Stunden?|Tagen?|Tage|Wochen?|Monaten?|Monate|Jahren?|Jahre|Prozent|Uhr|Euro|mal"
)
NUMBER = re.compile(rf"(?<![\w-])[$€£]?\d(?:[\d.,:/–-]*\d)?(?:\s?(?:{UNITS})(?!\w)|(?![\w-]))", re.IGNORECASE)
ADDRESS = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+|https?://[^\s)>\]]+")
NAME = re.compile(r"\b[A-ZÄÖÜ][\w’'&-]*\w(?:[ -](?:of |the |and |von |& )?[A-ZÄÖÜ0-9][\w’'&-]*)*")


@dataclass(frozen=True)
class Rarity:
    """In how many of a corpus' documents each content word stands."""

    counts: Mapping[str, int]
    documents: int

    def common(self, text: str) -> bool:
        """Whether all words of `text` stand in more than a tenth of the documents (where there are enough to tell)."""
        words = content_words(text)
        return self.documents >= 20 and all(self.counts.get(w, 0) > 0.1 * self.documents for w in words)


def sentence_spans(text: str, start: int = 0, end: int | None = None) -> list[tuple[int, int]]:
    """The sentences of `text[start:end]` as (start, end) offsets into `text`, white space trimmed.

    A line break ends a sentence only before a list item; tables are not for this function.
    """
    end = len(text) if end is None else end
    cuts = {start, end}
    cuts.update(start + m.start() + 1 for m in re.finditer(r"\n(?=\s*(?:[-*•–]|\d+[.)])\s)", text[start:end]))
    for match in END.finditer(text, start, end):
        if _ends_here(text, match, end):
            cuts.add(match.end())
    ordered = sorted(cuts)
    spans = []
    for a, b in itertools.pairwise(ordered):
        piece = text[a:b]
        left, right = len(piece) - len(piece.lstrip()), len(piece.rstrip())
        if right > left:
            spans.append((a + left, a + right))
    return spans


def _ends_here(text: str, match: re.Match[str], end: int) -> bool:
    rest = text[match.end() : end].lstrip()
    if not rest or not (rest[0].isupper() or rest[0].isdigit() or rest[0] in "\"'“„‚«»([-*•–‘¿¡"):
        return not rest
    if match.group()[0] != ".":
        return True
    before = re.search(r"[\w.]+$", text[: match.start()])
    word = before.group().strip(".") if before else ""
    if word.lower() in ABBREVIATIONS or (len(word) == 1 and word.isupper()):
        return False
    # `3. Mai`, `am 12. Oktober`: a short number before a capital is an ordinal unless the sentence was about numbers.
    return not re.fullmatch(r"[12]?\d|3[01]", word) or bool(
        re.match(r"(The|It|If|We|You|This|Die|Der|Das|Wir)\b", rest)
    )


def is_sentence(text: str) -> bool:
    """Whether `text` reads as whole sentences: begins with a capital, a digit or a quote, ends with a full stop."""
    return bool(re.match(r"[\"'“„‚«(]?[A-ZÄÖÜÀ-Þ0-9$€£]", text)) and bool(re.search(r"[.!?…][\"'”’“»)]*$", text))


def join_lines(text: str) -> str:
    """One line, single spaces: how a question or an answer is written."""
    return " ".join(text.split())


def content_words(text: str) -> list[str]:
    """The words of `text` in lower case without function words and single letters."""
    return [w for w in re.findall(r"[^\W_]+(?:[-’'][^\W_]+)*", text.casefold()) if len(w) > 1 and w not in STOP_WORDS]


def decapitalise(text: str, language: str) -> str:
    """`Price per hour` → `price per hour`; names, abbreviations and German nouns keep their capital."""
    first = text.split(" ", 1)[0]
    if language == "de" or not first[1:].islower() or any(w[:1].isupper() for w in text.split()[1:]):
        return text if first not in ("A", "An", "The") else text[0].lower() + text[1:]
    return text[0].lower() + text[1:]


def facts_of(answer: str, question: str, rarity: Rarity, limit: int = 2) -> list[str]:
    """Short strings that a right answer must contain and that the question does not give away.

    Numbers with their unit and addresses first, then names that are not all over the corpus, then the content word that
    stands in the fewest documents.
    """
    asked = question.casefold()
    for pattern in (ADDRESS, NUMBER, NAME):
        found: list[str] = []
        for match in pattern.finditer(answer):
            fact = _name(answer, match, rarity) if pattern is NAME else match.group().strip(" .,:;/–-")
            if fact and fact.casefold() not in asked and not any(fact.casefold() in f.casefold() for f in found):
                found.append(fact)
        if found:
            return found[:limit]
    words = [
        w for w in dict.fromkeys(content_words(answer)) if w[:5] not in asked and len(w) > 3 and w in answer.lower()
    ]
    # Nouns make better facts than adverbs and participles; their endings are all that a rule can see.
    words.sort(key=lambda w: (w.endswith(("ly", "ing", "ed")), len(w) < 6, rarity.counts.get(w, 0), -len(w), w))
    return [answer[answer.lower().index(w) :][: len(w)] for w in words[:1]]


def _name(answer: str, match: re.Match[str], rarity: Rarity) -> str:
    """A capitalised run without leading function words (`The EC2`); empty where only the beginning of a sentence or of
    a quotation made the capital, or where the name is all over the corpus."""
    words = match.group().split(" ")
    while words and words[0].casefold() in STOP_WORDS:
        words.pop(0)
    name = " ".join(words)
    before = answer[: match.end() - len(name)].rstrip()
    begins = not before or before[-1] in ".:;!?“„\"'(-–—*`"
    return name if content_words(name) and not begins and not rarity.common(name) else ""
