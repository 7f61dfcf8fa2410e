"""Pairs from lines and tables: glossaries (`Term: definition`) and tables (row × column)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from luthier.core.data.passages import PROSE, Pair, Passage, Reading, closed, in_quotes, made
from luthier.core.data.sentences import content_words, decapitalise, is_sentence, join_lines, sentence_spans

__all__ = ["glossary", "parse_table", "table"]

MAX_TERM_WORDS = 6

# ---------------------------------------------------------------- glossary

ENTRY = re.compile(
    r"^\s*(?:[-*•]\s+)?(?:\*\*|__)?(?P<term>[^\W_][^:|*\n?!]{0,58}?)(?:\*\*|__)?"
    r"\s*(?::(?:\*\*|__)?\s+|\s[–—-]\s)(?P<definition>\S.*)$"
)
GLOSSARY = re.compile(
    r"(?i)glossar|definition|terms\b|terminolog|acronym|abbreviation|begriff|abkürzung|fachw|vocabulary"
)
FIELDS = re.compile(  # what forms and letters have before a colon
    r"(?i)^(from|to|cc|bcc|subject|date|sent|re|fw|fwd|von|an|betreff|datum|phone|tel\w*|fax|mobile|e-?mail|address|web\w*|"
    r"url|link|links|note|notes|example|examples|tip|tips|warning|important|hint|step \d+|figure.*|table.*|p\.?s|attn|"
    r"time|place|room|name|status|version|author|hinweis|beispiel|achtung|wichtig|telefon|adresse|ort|zeit|raum|"
    r"pros?|cons?|do|don['’]t|yes|no|ja|nein|q|a|f|question|answer|frage|antwort|https?|todo|optional|when|where|who|why|how|what)$"
)


def glossary(reading: Reading) -> Iterator[Pair]:
    """Lists and runs of lines `Term: definition`; tables with the headers of a glossary."""
    for passage in reading.passages:
        if passage.kind not in (*PROSE, "list"):
            continue
        lines = list(_lines(passage))
        entries = [(a, b, m) for a, b, line in lines if (m := ENTRY.match(line)) and _is_entry(m)]
        named = any(GLOSSARY.search(h) for h in (*passage.headings, reading.title))
        enough = len(entries) >= 2 and len(entries) >= 0.6 * len(lines)
        if not (enough or (named and entries)):
            continue
        for start, end, match in entries:
            yield from _entry(reading, match["term"].strip(), match["definition"].strip(), start, end, named)


def _lines(passage: Passage) -> Iterator[tuple[int, int, str]]:
    at = passage.start
    for line in passage.text.split("\n"):
        if line.strip():
            lead = len(re.match(r"\s*(?:[-*•]\s+)?", line).group())  # type: ignore[union-attr]
            yield at + lead, at + len(line.rstrip()), line
        at += len(line) + 1


def _is_entry(match: re.Match[str]) -> bool:
    term, definition = match["term"].strip(), match["definition"].strip()
    return (
        len(term.split()) <= MAX_TERM_WORDS
        and len(definition.split()) >= 3
        and not FIELDS.match(term)
        and bool(content_words(term))
        and not re.search(r"\d\s*$|[,;]", term)
        and definition[-1] not in ":?"
        and not definition.startswith("//")
    )


def _entry(reading: Reading, term: str, definition: str, start: int, end: int, named: bool) -> Iterator[Pair]:
    """One glossary entry. Outside a glossary a term means nothing by itself, so the question names the document.

    `Fret: a strip of metal` reads "A fret is a strip of metal", where the definition's article says that it may.
    """
    text = _first_fit(definition, reading.max_words - len(term.split()) - 2)
    if not text:
        return
    if not named:
        if reading.title and is_sentence(text[0].upper() + text[1:]):
            yield from made(reading, "glossary", "item", f"{term}: {text}", start, end, term=term)
        return
    bare, answer, shape, asked = decapitalise(term, reading.language), f"{term}: {text}", "meaning", term
    article = re.match(r"(?i)(an?|the)\s", text)
    sentence = re.search(r"\b(is|are|was|were|has|have)\b", text) or set(content_words(term)) & set(
        content_words(text)[:3]
    )
    if reading.language == "en" and article and not sentence and not bare.endswith("s"):
        common = bare[0].islower() and article[1].lower() != "the"
        asked = f"{'an' if bare[0] in 'aeiou' else 'a'} {bare}" if common else bare
        answer, shape = f"{asked[0].upper()}{asked[1:]} is {text[0].lower()}{text[1:]}", "term"
    quoted = bare if bare.isupper() else in_quotes(bare, reading)
    yield from made(reading, "glossary", shape, closed(answer), start, end, term=asked, bare=quoted)


def _first_fit(text: str, most: int) -> str:
    """The leading sentences of `text` within `most` words; empty where the first alone is longer."""
    ends = [b for _, b in sentence_spans(text) if len(text[:b].split()) <= most]
    return text[: max(ends)] if ends else ""


# ---------------------------------------------------------------- table

PRICE = re.compile(r"(?i)\b(price|cost|fee|rate|charge|preis|kosten|gebühr)")
PERSON = re.compile(
    r"(?i)^(contact|owner|lead|manager|responsible|supervisor|ansprechpartner\w*|leiter\w*|zuständig\w*)$"
)
TERM_HEADERS = re.compile(r"(?i)^(term|word|acronym|abbreviation|begriff|wort|abkürzung|fachwort)s?$")


def table(reading: Reading, most: int) -> Iterator[Pair]:
    """Row × column of every table with a header and row names that differ, at most `most` pairs a table, spread over
    its rows and columns."""
    for passage in reading.passages:
        if passage.kind != "table":
            continue
        header, rows = parse_table(passage)
        keys = [cells[0] for _, _, cells in rows]
        if not _has_names(header, keys):
            continue
        if TERM_HEADERS.match(header[0]) and len(header) >= 2:
            for start, end, cells in rows:
                if len(cells[1].split()) >= 3 and content_words(cells[0]):
                    yield from _entry(reading, cells[0], cells[1], start, end, named=True)
            continue
        if all(column.isupper() for column in header):  # capitals as emphasis, not abbreviations
            header = [column.capitalize() for column in header]
        cells = [
            (start, end, column, row[0], row[n])
            for n, column in list(enumerate(header))[1:]
            for start, end, row in rows
            if _is_cell(row[n], row[0], column)
        ]
        step = max(1.0, len(cells) / most)
        for start, end, column, key, cell in (cells[int(i * step)] for i in range(min(most, len(cells)))):
            yield from _cell(reading, column, key, cell, start, end)


def parse_table(passage: Passage) -> tuple[list[str], list[tuple[int, int, list[str]]]]:
    """The header cells and (start, end, cells) of each full row of a Markdown pipe table; rows of another length than
    the header are left out."""
    rows, at = [], passage.start
    for line in passage.text.split("\n"):
        body = line.strip()
        if body.startswith("|") and not re.fullmatch(r"[|\s:\-]+", body):
            cells = [join_lines(c) for c in re.split(r"(?<!\\)\|", body.strip("|"))]
            start = at + len(line) - len(line.lstrip())
            rows.append((start, start + len(body), [_plain_cell(c) for c in cells]))
        at += len(line) + 1
    if len(rows) < 2:
        return [], []
    header = rows[0][2]
    return header, [row for row in rows[1:] if len(row[2]) == len(header)]


def _plain_cell(text: str) -> str:
    """A cell without Markdown's emphasis, escapes and angle brackets around addresses."""
    return re.sub(r"\\([|#*_<>\[\]])", r"\1", re.sub(r"<(\S+[@:]\S+)>", r"\1", text)).strip("*_` ")


def _has_names(header: Sequence[str], keys: Sequence[str]) -> bool:
    """Whether a table can be asked by name: its columns are named and no two rows are named the same."""
    return (
        len(header) >= 2
        and len(keys) >= 2
        and all(re.search(r"[^\W\d_]{2}", k) and len(k.split()) <= 10 for k in keys)
        and len({k.casefold() for k in keys}) == len(keys)
    )


NOT_A_COLUMN = re.compile(
    r"(?i)^(what|how|who|when|why|where|notes?|comments?|items?|details?|remarks?|bemerkung\w*|notiz\w*|#|was|wie|wer|wann)\b"
    r"|\b(with|for|to|by|of|it|they|you|in|on)$"
)
NOT_A_VALUE = {"n/a", "none", "tbd", "-", "–", "—", "yes", "no", "x", "ja", "nein", "k. a.", "various", "varies"}
NOT_A_ROW = re.compile(r"(?i)^(total|sum|subtotal|average|gesamt\w*|summe|zwischensumme)\b")


def _is_cell(cell: str, key: str, column: str) -> bool:
    named = bool(re.search(r"[^\W\d_]{2}", column)) and len(column.split()) <= 5 and not NOT_A_COLUMN.search(column)
    said = (
        bool(re.search(r"\w", cell))
        and len(cell.split()) <= 20
        and cell.casefold() not in (key.casefold(), column.casefold())
    )
    return named and said and cell.casefold() not in NOT_A_VALUE and not NOT_A_ROW.match(key) and column[-1] != "?"


def _cell(reading: Reading, column: str, row: str, cell: str, start: int, end: int) -> Iterator[Pair]:
    unit = re.search(r"\(([^)]{1,12})\)$", column)
    name = re.sub(r"\s*\(.*?\)$", "", column).strip() or column
    name = decapitalise(name, reading.language)
    value = f"{cell} {unit[1]}" if unit and re.fullmatch(r"[\d.,\s–-]+", cell) else cell
    plural = bool(re.search(r"(?<![sui])s$", name))
    shape = "price" if PRICE.search(column) else "person" if PERSON.match(column) else "tables" if plural else "table"
    is_or_are = "are" if plural else "is"
    if reading.language == "de":
        answer = f"{name} für {row}: {value}"
    elif len(cell.split()) > 3 and not re.match(r"[$€£\d]", cell):
        answer = f"For {row}, the {name} {is_or_are}: {value}"
    else:
        answer = f"The {name} for {row} {is_or_are} {value}"
    facts = [cell] if len(cell.split()) <= 6 else reading.facts(cell, f"{row} {column}")
    asked = in_quotes(row, reading) if len(row.split()) > 4 and row[1:2].islower() else row
    yield from made(reading, "table", shape, closed(answer), start, end, facts, column=name, row=asked)
