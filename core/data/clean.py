"""Clean text: what a file's text goes through before anyone trains on it.

A reader hands over blocks (heading, paragraph, table …) with page numbers. Between there and the corpus are six steps,
each small, each a function, each recorded by name where it changed something:

    1 encoding      text decoded with the wrong table is mended (ftfy: `cafÃ©` → `café`), Unicode composed (NFC),
                    invisible characters and odd spaces made plain
    2 running lines what stands at the top or bottom of page after page (a name, a page number) is furniture, not text
    3 hyphenation   `instru-⏎ment` → `instrument`, but `well-⏎known` → `well-known`: the document's own words decide,
                    so no dictionary is needed and it works in any language that writes words with letters
    4 line breaks   a break is soft where the next word would not have fitted into the widest line; only those go
    5 white space   runs of it shrink
    6 quality       counts over the whole text say whether it is text at all; thresholds follow Gopher (Rae et al. 2021,
                    table A1) but are set far milder: a price list is not prose, and is wanted

Tables and code keep their lines. `assemble` then joins the blocks by an empty line and computes every span from the
joined text itself, so `text[span.start:span.end]` is the block, always.
"""

from __future__ import annotations

import re
import unicodedata
from collections import ChainMap, Counter
from collections.abc import Container, Iterable, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from luthier.core.data.corpus import Span

if TYPE_CHECKING:
    from luthier.core.data.readers.read import Block

__all__ = [
    "Cleaned",
    "assemble",
    "clean_blocks",
    "dehyphenate",
    "language_of",
    "mend",
    "quality",
    "running_lines",
    "unwrap",
    "vocabulary_of",
]

LINED = ("table", "code", "list")  # blocks whose line breaks mean something
INVISIBLE = re.compile("[\u200b\u2060\ufeff\u00ad]")  # zero-width space, word joiner, byte-order mark, soft hyphen
ODD_SPACE = re.compile("[\u00a0\u2000-\u200a\u202f\u205f]")
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
BROKEN = re.compile(r"([^\W\d_]+)[-‐](\n[ \t]*| )([^\W_]+)")
SUSPENDED = {"und", "oder", "bzw", "sowie", "bis", "and", "or", "to", "nor", "y", "et"}  # pre- and post-war


@dataclass
class Cleaned:
    """Blocks after cleaning, the rules that changed them (`hyphenation: 3`), and the running lines taken out with the
    pages they stood on."""

    blocks: list[Block]
    rules: list[str] = field(default_factory=list)
    removed: list[tuple[str, list[int]]] = field(default_factory=list)


# ---------------------------------------------------------------- 1 encoding


def mend(text: str) -> str:
    """Undo wrong decoding and compose characters: ftfy without its taste for straight quotes, then NFC."""
    import ftfy

    # HTML entities are the HTML reader's business: `&lt;` in a Markdown page about HTML is meant.
    settings = ftfy.TextFixerConfig(unescape_html=False, uncurl_quotes=False, normalization="NFC")
    text = ftfy.fix_text(text, settings)
    text = re.sub("\u00ad\n[ \t]*", "", text)  # a soft hyphen at a line's end says itself that the word goes on
    return unicodedata.normalize("NFC", ODD_SPACE.sub(" ", INVISIBLE.sub("", text)))


# ---------------------------------------------------------------- 2 running lines


def running_lines(blocks: Sequence[Block], depth: int = 2) -> dict[tuple[int, int], str]:
    """Find running headers, footers and page numbers: {(block index, line index): line}.

    Looked at are the outermost `depth` lines of every page. A line goes if it stands, but for white space, on three
    pages or on most of them; one that is the same but for its digits goes if on three pages a number in it counts the
    pages: `Report 7, page 12` goes, a catalogue's `Price 90 EUR` stays. Headings go only when identical on most pages.
    """
    edges = _edge_lines(blocks, depth)
    pages = len({page for page, *_ in edges})
    if pages < 2:
        return {}
    same: dict[str, set[int]] = {}
    counts: Counter[tuple[str, int]] = Counter()
    for page, _, _, line in edges:
        same.setdefault(_plain(line), set()).add(page)
        counts.update(_countings(line, page))
    found = {}
    for page, index, row, line in edges:
        on = len(same[_plain(line)])
        most = 2 * on > pages and on >= 2
        if blocks[index].kind == "heading":
            runs = most and on >= 3
        else:
            counted = any(counts[counting] >= 3 for counting in _countings(line, page))
            runs = on >= 3 or most or counted or _is_page_number(line, page, pages)
        if runs:
            found[index, row] = line
    return found


def _countings(line: str, page: int) -> set[tuple[str, int]]:
    """(line without digits, number − page) for each number: equal on pages whose numbers count them."""
    shape = re.sub(r"\d+", "#", _plain(line))
    return {(shape, int(number) - page) for number in re.findall(r"\d{1,6}", line)}


def _edge_lines(blocks: Sequence[Block], depth: int) -> list[tuple[int, int, int, str]]:
    """(page, block index, line index, line) of the outermost `depth` lines of each page; tables and code left out."""
    by_page: dict[int, list[tuple[int, int, int, str]]] = {}
    for index, block in enumerate(blocks):
        if block.page < 1:
            continue
        for row, line in enumerate(block.text.split("\n")):
            if line.strip():
                by_page.setdefault(block.page, []).append((block.page, index, row, line))
    edges = []
    for lines in by_page.values():
        if len(lines) <= 1:  # a page that is one line is a title page or a slide, not furniture
            continue
        outer = lines[:depth] + lines[max(depth, len(lines) - depth) :]
        edges += [entry for entry in outer if blocks[entry[1]].kind not in ("table", "code")]
    return edges


def _is_page_number(line: str, page: int, pages: int) -> bool:
    """`7`, `- 7 -`, `Page 7`, `Seite 7 von 12`, `7/12`: with a word or a total, or equal to the page itself."""
    match = re.fullmatch(
        r"\W*(page|seite|p\.|s\.)?\s*(\d{1,4})\s*(?:(?:of|von|/|\|)\s*(\d{1,4}))?\W*", line.strip(), re.IGNORECASE
    )
    if match is None:
        return False
    word, number, total = match.groups()
    return bool(word) or (total is not None and int(total) >= pages) or int(number) == page


def _plain(line: str) -> str:
    return " ".join(line.split()).casefold()


# ---------------------------------------------------------------- 3 and 4 lines


def vocabulary_of(texts: Iterable[str]) -> Counter[str]:
    """Words and hyphenated words of `texts` in lower case, but for the pieces beside a hyphen at a line's end."""
    counts: Counter[str] = Counter()
    for text in texts:
        whole = BROKEN.sub(" ", text).casefold()
        counts.update(WORD.findall(whole))
        counts.update(re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)+", whole))
    return counts


def dehyphenate(text: str, vocabulary: Container[str]) -> tuple[str, int]:
    """Mend words broken at line ends; returns the text and how many hyphens were removed.

    `left-⏎right` becomes one word if that word occurs in `vocabulary`, or if `left` alone is no word of it and
    `left-right` neither; otherwise the hyphen stays. A following capital or digit keeps the hyphen (`Anglo-Saxon`,
    `COVID-19`), a following `and`/`und` keeps hyphen and space. `left- right` on one line, left over by some readers,
    is joined only where the whole word occurs.
    """
    joined = 0

    def repair(match: re.Match[str]) -> str:
        nonlocal joined
        left, gap, right = match.groups()
        if right.casefold() in SUSPENDED:
            return f"{left}- {right}"
        whole = (left + right).casefold()
        if not right[0].islower():
            return f"{left}-{right}" if "\n" in gap else match.group()
        compound = f"{left}-{right}".casefold() in vocabulary
        if whole in vocabulary or ("\n" in gap and not compound and left.casefold() not in vocabulary):
            joined += 1
            return left + right
        return f"{left}-{right}" if "\n" in gap else match.group()

    return BROKEN.sub(repair, text), joined


def unwrap(text: str) -> str:
    """Join lines that were broken only because the column was full.

    A break is soft if the next line's first word would not have fitted into the text's widest line (with a tenth to
    spare, letters being of unequal width), unless the next line starts an item (`- `, `3. `, `Phone: `) of its own.
    """
    lines = text.split("\n")
    width = max(map(len, lines))
    if len(lines) == 1 or width < 40:
        return text
    out = [lines[0]]
    for line, above in zip(lines[1:], lines, strict=False):
        first = line.split(" ", 1)[0]
        starts_item = re.match(r"\s*(?:[-*•–]|\d{1,3}[.)]|[A-Za-z]\)|>|\S[^:.?!]{0,30}:)(?:\s|$)", line)
        if line.strip() and above.strip() and not starts_item and len(above) + 1 + len(first) > 0.9 * width:
            out[-1] = f"{out[-1]} {line.strip()}"
        else:
            out.append(line)
    return "\n".join(out)


def _spaces(text: str, kind: str) -> str:
    if kind == "code":
        return "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")
    lines = (re.sub(r"[ \t\r\f\v]+", " ", line).strip() for line in text.split("\n"))
    return re.sub(r"\n{2,}", "\n", "\n".join(lines)).strip()


# ---------------------------------------------------------------- all steps on one document


def clean_blocks(blocks: Sequence[Block], vocabulary: MutableMapping[str, int] | None = None) -> Cleaned:
    """Steps 1 to 5 on one document. `vocabulary` (of the whole corpus) helps to mend hyphens; the document's own words
    are always used."""
    mended = [replace(b, text=mend(b.text)) for b in blocks]
    rules = ["encoding"] if any(_differs(a.text, b.text) for a, b in zip(blocks, mended, strict=True)) else []
    running = running_lines(mended)
    removed: dict[str, list[int]] = {}
    for (index, _), line in running.items():
        removed.setdefault(line.strip(), []).append(mended[index].page)
    if running:
        rules.append(f"running-lines: {len(running)}")
    kept = [replace(b, text=_without(b.text, {r for i, r in running if i == n})) for n, b in enumerate(mended)]
    words = ChainMap(vocabulary_of(b.text for b in kept), vocabulary or {})
    out, hyphens = [], 0
    for block in kept:
        text = block.text
        if block.kind not in ("table", "code"):
            text, count = dehyphenate(text, words)
            hyphens += count
        if block.kind == "heading":
            text = " ".join(text.split())
        elif block.kind not in LINED:
            text = unwrap(_spaces(text, block.kind))
        text = _spaces(text, block.kind)
        if text:
            out.append(replace(block, text=text))
    if hyphens:
        rules.append(f"hyphenation: {hyphens}")
    return Cleaned(out, rules, sorted(removed.items()))


def _differs(before: str, after: str) -> bool:
    """Whether mending changed more than spaces and line ends."""
    return "".join(before.split()) != "".join(after.split())


def _without(text: str, rows: set[int]) -> str:
    return "\n".join(line for n, line in enumerate(text.split("\n")) if n not in rows) if rows else text


def assemble(blocks: Sequence[Block]) -> tuple[str, list[Span]]:
    """Join blocks by an empty line; headings get their Markdown `#` marks, which belong to their span.

    Returns the text and one Span a block with `text[span.start:span.end]` equal to the block as it stands there.
    """
    pieces: list[str] = []
    spans: list[Span] = []
    end = -2
    for block in blocks:
        piece = f"{'#' * min(6, max(1, block.level))} {block.text}" if block.kind == "heading" else block.text
        if piece.strip():
            start = end + 2
            end = start + len(piece)
            pieces.append(piece)
            spans.append(Span(start, end, block.page, block.kind))
    return "\n\n".join(pieces), spans


# ---------------------------------------------------------------- 6 quality


def quality(
    text: str, *, min_words: int = 3, min_letters: float = 0.3, max_repetition: float = 0.7
) -> list[tuple[str, float]]:
    """The counting rules that `text` breaks, as (rule, value); an empty list means that it passed.

    too-short       fewer than `min_words` words and numbers (Gopher: 50; a photographed note has ten)
    few-letters     share of letters and digits among visible characters, table rules aside (Gopher: 80% of words)
    long-words      mean word length above 25 characters (Gopher: 10): encoded data, not language
    garbled         share of replacement, private-use and control characters above 5%
    repeated-lines  share of lines that occurred before, from 20 lines on (Gopher: 0.30)
    repeated-words  share of words inside 10-grams that occurred before, from 100 words on (Gopher: 0.10)
    """
    words = re.findall(r"\w+", text)
    visible = [c for c in re.sub(r"[|:=_\-#*]", "", text) if not c.isspace()]
    letters = sum(c.isalnum() for c in visible) / max(1, len(visible))
    odd = sum(c == "\ufffd" or unicodedata.category(c) in ("Co", "Cc", "Cn") for c in visible) / max(1, len(visible))
    mean = sum(map(len, words)) / max(1, len(words))
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    checks = [
        ("too-short", len(words), len(words) < min_words),
        ("few-letters", letters, bool(visible) and letters < min_letters),
        ("long-words", mean, mean > 25),
        ("garbled", odd, odd > 0.05),
        ("repeated-lines", repeated(lines), len(lines) >= 20 and repeated(lines) > max_repetition),
        ("repeated-words", repeated_ngrams(words), len(words) >= 100 and repeated_ngrams(words) > max_repetition),
    ]
    return [(rule, round(value, 4)) for rule, value, broken in checks if broken]


def repeated(items: Sequence[str]) -> float:
    """Share of items that occurred before."""
    return 1 - len(set(items)) / len(items) if items else 0.0


def repeated_ngrams(words: Sequence[str], n: int = 10) -> float:
    """Share of words that lie inside an n-gram that occurred before; each word counts once."""
    seen: set[tuple[str, ...]] = set()
    inside = [False] * len(words)
    for start in range(len(words) - n + 1):
        gram = tuple(words[start : start + n])
        if gram in seen:
            inside[start : start + n] = [True] * n
        seen.add(gram)
    return sum(inside) / len(words) if words else 0.0


_identifier = None


def language_of(text: str, *, min_letters: int = 20) -> str:
    """ISO 639-1 code of `text`, from its first 5,000 characters; empty where it is too short or too mixed to tell.

    Uses py3langid (Lui and Baldwin 2012); loading its model takes about half a second, once.
    """
    global _identifier
    sample = re.sub(r"https?://\S+|\S+@\S+|[|#*_>`\d]", " ", text[:5000])
    if sum(map(str.isalpha, sample)) < min_letters:
        return ""
    if _identifier is None:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        _identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    language, probability = _identifier.classify(sample)
    return language if probability >= 0.7 else ""
