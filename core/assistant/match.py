"""How much of a question does a sentence cover?

A question and the sentence that answers it rarely use the same forms: *What do repairs cost?* meets *The price of a
repair is …*. Words are compared by stem, by the part of a compound that they share, and by a short list of words that
mean the same in questions to any company. What is left is weighed by rarity (the idf of BM25, Robertson & Zaragoza
2009, eq. 3.3):

    idf(w)   = log((N − n + ½) / (n + ½) + 1)                 w in n of N sentences
    coverage = Σ_w idf(w) · credit(w) / Σ_w idf(w)            over the question's content words, in [0, 1]

    credit   1 in the sentence, 0.9 in its headings, 0.8 by meaning, 0.7 as part of a compound, 0 nowhere

A word that stands nowhere in the documents has the largest idf, so a question about something that they do not know
scores low: that is what makes a threshold on the coverage mean "not found". A question for a number (how much, when,
wie lange) whose sentence holds none loses a fifth.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache

from luthier.core.data.sentences import STOP_WORDS

__all__ = [
    "NO_NUMBER",
    "asked_words",
    "coverage",
    "focus",
    "has_number",
    "idf",
    "same_meaning",
    "stem",
    "stems",
    "wants_number",
]

IN_TEXT, IN_CONTEXT, BY_MEANING, IN_COMPOUND = 1.0, 0.9, 0.8, 0.7
NO_NUMBER = 0.8  # where the question wants a number or a time and the sentence has none
MIN_PART = 5  # letters that two words must share at an end to count as parts of one compound

# Endings of English and German words, longest first. A plural's s goes first, then one ending, where three letters with
# a vowel stay (light stemming, Savoy 2006: plural and case endings carry most of the gain, for German as for English).
ENDING_LIST = "ings ing edly ed er ern ie en em e y ly ity ungen ung et"
ENDINGS = sorted(ENDING_LIST.split(), key=len, reverse=True)
VOWEL = re.compile(r"[aeiouy]")

ASKING_LIST = """
tell know like please explain define mean means meaning meant describe give gives say says said happen happens want
wonder wondering question questions help understand called call find information info details exactly there's what's
who's hello hi thanks thank let see get many long much often far old big anything something someone anybody does
bedeutet bedeuten erkläre erklären sage sagen sagt bitte frage gibt geben möchte würde gern wissen heißt versteht
number numbers right good best correct proper suitable possible allowed kind type sort nummer richtig gut gute beste
passend möglich erlaubt art meint meinen viel viele lange oft weit hallo danke eigentlich etwas jemand gilt
"""
ASKING = frozenset(ASKING_LIST.split())
SAME_WORDS = """
price prices cost costs charge charges fee fees rate pay preis preise kosten kostet gebühr bezahlen zahlen
hours open opens opening close closes closed closing geöffnet öffnungszeiten öffnen öffnet offen geschlossen schließt
phone telephone tel telefon telefonnummer
mail email e-mail
warranty guarantee garantie gewährleistung
lead leads head heads manager responsible leitet leiter leiterin zuständig verantwortlich
duration takes take lasts time needed dauert dauer zeit
stock available vorrätig lager lieferbar
humidity humid luftfeuchtigkeit luftfeuchte
repair repairs fix fixing mend reparatur reparaturen reparieren
founded founding established started gegründet gründung
address located location where adresse standort
holiday holidays vacation leave urlaub ferien
"""
NUMBER_WANTED = re.compile(
    r"(?i)\bhow (much|many|long|often|far|old|big|large|wide|thick|high|tall|hot|cold|heavy|late|early|soon)\b|"
    r"\bwhen\b|\bwhat (time|year|date|price|temperature|percentage|number|humidity)\b|\bcosts?\b|\bprice\b|"
    r"\bwie (viel\w*|lang\w*|oft|weit|alt|groß|hoch|schwer|spät|dick|breit)\b|\bwann\b|\bkostet\b|\bkosten\b|\bpreis\b"
)
HAS_NUMBER = re.compile(
    r"(?i)\d|\b(one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|once|twice|daily|weekly|monthly|yearly|"
    r"every|annually|never|always|monday|tuesday|wednesday|thursday|friday|saturday|sunday|january|february|march|april|"
    r"june|july|august|september|october|november|december|spring|summer|autumn|winter|free|"
    r"eins|zwei|drei|vier|fünf|sechs|sieben|acht|neun|zehn|elf|zwölf|einmal|zweimal|täglich|wöchentlich|monatlich|"
    r"jährlich|jede[rnsm]?|montags?|dienstags?|mittwochs?|donnerstags?|freitags?|samstags?|sonntags?|kostenlos|immer|nie)\b"
)


@lru_cache(maxsize=200_000)
def stem(word: str) -> str:
    """The word without accents, doubled last letter and ending.

    >>> [stem(w) for w in ("repairs", "repairing", "levelling", "level", "Öffnungszeiten", "Zeit")]
    ['repair', 'repair', 'level', 'level', 'offnungszeit', 'zeit']
    """
    plain = unicodedata.normalize("NFKD", word.casefold().replace("ß", "ss"))
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    plain = re.sub(r"['’]s?$", "", plain).replace("-", "").replace("’", "").replace("'", "")
    if not plain.isalpha():
        return plain
    if len(plain) > 3 and plain[-1] == "s" and plain[-2] not in "sui":
        plain = plain[:-1]
    if len(plain) > 6 and plain.endswith(("eln", "elt")):  # wechseln, wechselt
        return plain[:-1]
    for ending in ENDINGS:
        rest = plain[: -len(ending)]
        if plain.endswith(ending) and len(rest) >= 3 + ("r" in ending) and VOWEL.search(rest):
            plain = rest
            break
    return plain[:-1] if len(plain) > 3 and plain[-1] == plain[-2] else plain


WORD = re.compile(r"\d+(?:[.,:/]\d+)+|[^\W_]+(?:[-’'][^\W_]+)*")


def telling_words(text: str) -> list[str]:
    """The words in lower case without function words and single letters; numbers whole, `3/4` as `3x4`."""
    words = (re.sub(r"(?<=\d)[.,:/](?=\d)", "x", w) for w in WORD.findall(text.casefold()))
    return [w for w in words if (len(w) > 1 or w.isdigit()) and w not in STOP_WORDS]


def stems(text: str) -> list[str]:
    """The stems of a text's telling words in order; both halves of a hyphenated word too."""
    out = []
    for word in telling_words(text):
        out.append(stem(word))
        if "-" in word:
            out += [stem(part) for part in word.split("-") if len(part) > 1]
    return out


@lru_cache(maxsize=1)
def _meanings() -> dict[str, frozenset[str]]:
    """Stem → the stems of its line in SAME_WORDS."""
    table: dict[str, set[str]] = {}
    for line in SAME_WORDS.strip().splitlines():
        group = {stem(word) for word in line.split()}
        for word in group:
            table.setdefault(word, set()).update(group - {word})
    return {word: frozenset(same) for word, same in table.items()}


def asked_words(question: str) -> list[str]:
    """The stems that a sentence should cover: telling words but those that only ask; all of them if none is left."""
    words = telling_words(question)
    telling = [w for w in words if w not in ASKING] or words
    return list(dict.fromkeys(stem(w) for w in telling))


def same_meaning(word: str) -> frozenset[str]:
    """The stems that count as the same as this one in a question."""
    return _meanings().get(word, frozenset())


def wants_number(question: str) -> bool:
    return bool(NUMBER_WANTED.search(question))


def idf(count: int, total: int) -> float:
    """BM25's idf of a word that stands in `count` of `total` sentences, above 0."""
    return math.log((total - count + 0.5) / (count + 0.5) + 1)


def credit(word: str, text: frozenset[str], context: frozenset[str], joined: str) -> float:
    """How well a sentence covers one stem of the question. `text` and `context` are the stems of the sentence and of
    its headings, `joined` is all of them with a blank before and after each."""
    if word in text:
        return IN_TEXT
    if word in context:
        return IN_CONTEXT
    same = same_meaning(word)
    if same & text or same & context:
        return BY_MEANING
    return IN_COMPOUND if _compound(word, text, context, joined) else 0.0


def _compound(word: str, text: frozenset[str], context: frozenset[str], joined: str) -> bool:
    """Whether the word begins or ends a longer one there (`wechsel` in `saitenwechsel`), or the other way round."""
    if len(word) < MIN_PART:
        return False
    parts = (part for n in range(MIN_PART, len(word)) for part in (word[:n], word[-n:]))
    return f" {word}" in joined or f"{word} " in joined or any(p in text or p in context for p in parts)


def coverage(words: Mapping[str, float], text: str, context: str) -> float:
    """The share of the question's information in a sentence. `words` are the question's stems with their idf, `text`
    and `context` the stems of the sentence and of its headings, parted by blanks."""
    inside, above, joined = _sets(text, context)
    total = sum(words.values())
    return sum(idf * credit(word, inside, above, joined) for word, idf in words.items()) / total if total else 0.0


def focus(words: Mapping[str, float], fields: Iterable[str]) -> float:
    """How much of a field (a known question, a heading, the sentence) the question speaks of, at most 1: of two chunks
    that cover the question alike, the one that says little else is meant."""
    parts = (field.split() for field in fields)
    return max((sum(w in words for w in part) / len(part) for part in parts if part), default=0.0)


@lru_cache(maxsize=20_000)
def _sets(text: str, context: str) -> tuple[frozenset[str], frozenset[str], str]:
    return frozenset(text.split()), frozenset(context.split()), f" {text} {context} "


def has_number(text: str) -> bool:
    """Whether a sentence says how much, how many or when."""
    return bool(HAS_NUMBER.search(text))
