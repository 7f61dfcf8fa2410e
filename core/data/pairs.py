"""Question-and-answer pairs by rule: where a document itself says what is asked and what is answered.

    faq         a heading or line that ends in "?" and what follows; "Q:" with "A:"
    glossary    `Term: definition`, line by line, and two-column tables of terms
    definition  "A relief is a …", "X means …", "Ein Steg ist ein …", "Unter X versteht man …"
    table       row × column: "What is the price of fret levelling?"
    heading     what the section under a heading begins with
    mail        a question in a mail and the reply to it (core/data/mails.py)

No model writes anything here: an answer is a whole sentence of the document, or a sentence made of one table row, and
it cites the span it rests on. A rule that is not sure makes nothing: few pairs that read well train better than many
that do not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from luthier.core.data.corpus import Document
from luthier.core.data.passages import Pair, Reading, passages
from luthier.core.data.prose_pairs import definition, faq, heading
from luthier.core.data.sentences import Rarity, join_lines
from luthier.core.data.table_pairs import glossary, table

__all__ = ["pairs_of"]


def pairs_of(
    document: Document, rules: Iterable[str], *, rarity: Rarity, max_words: int, max_per_table: int
) -> list[Pair]:
    """All pairs of one document by the named rules, in the order of the text within a rule."""
    language = document.language or _guess_language(document.text)
    title = join_lines(document.title).strip(" .:")
    reading = Reading(document, title, language, passages(document), rarity, max_words)
    found: list[Pair] = []
    for name, rule in (("faq", faq), ("glossary", glossary), ("definition", definition), ("heading", heading)):
        if name in rules:
            found += sorted(rule(reading), key=lambda p: p.start)
    if "table" in rules:
        found += sorted(table(reading, max_per_table), key=lambda p: p.start)
    return found


def _guess_language(text: str) -> str:
    words = Counter(re.findall(r"\w+", text.casefold()))
    german = sum(words[w] for w in ("der", "die", "das", "und", "ist", "nicht", "ein", "eine", "wie", "für"))
    english = sum(words[w] for w in ("the", "and", "is", "of", "to", "a", "not", "how", "for", "what"))
    return "de" if german > english else "en"
