"""How well a tokenizer fits a corpus: what its text costs in tokens, for whom, and which of its ids are idle.

    bytes a token    how much text a token carries; the more, the cheaper the text. Compare tokenizers by it
    tokens a word    fertility: 1 where every word is a token, more where words fall apart. Words are what white space
                     separates, so languages written without it (Chinese, Thai …) have none
    unused ids       rows of the embedding that this corpus never trains
    capped pieces    pieces so long that training cuts them: base64, a page without a blank

A document may hold several languages, so a language is told for each section of about 2,000 characters; with very many
sections, for so many of them at equal distances.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from luthier.core.console import progress
from luthier.core.data.clean import language_of
from luthier.core.data.texts import COLUMN, read_texts
from luthier.core.show.shards import visible

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Cost", "Report", "measure", "show_report"]

SECTION = 2_000  # characters
MOST_SECTIONS = 3_000  # whose language is told; a thousand take about three seconds
DOCUMENTS, LANGUAGES, TOKENS = 12, 25, 24  # rows shown
WITHOUT_SPACES = ("zh", "yue", "wuu", "lzh", "ja", "th", "lo", "km", "my", "bo", "dz")  # no space between words


@dataclass
class Cost:
    """What some text costs."""

    name: str
    bytes: int = 0
    words: int = 0
    tokens: int = 0
    texts: int = 0

    def add(self, text: str, tokens: int) -> None:
        self.bytes += len(text.encode("utf-8"))
        self.words += len(text.split())
        self.tokens += tokens
        self.texts += 1

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / max(self.tokens, 1)

    @property
    def fertility(self) -> float:
        """Tokens a word."""
        return self.tokens / max(self.words, 1)


@dataclass
class Report:
    """What was measured: of the whole, by document, by language; how often each id occurs; pieces over the cap."""

    whole: Cost
    documents: list[Cost]
    languages: list[Cost]
    sections: int
    """Sections whose language was asked for, of `all_sections`."""
    all_sections: int
    counts: npt.NDArray[np.int64]
    """[V]: how often each id occurs."""
    cap: int
    """Bytes of a piece beyond which training cuts it."""
    capped: list[tuple[int, str, str]] = field(default_factory=list)
    """Bytes, beginning and document of each piece over the cap."""


def measure(tokenizer: Any, texts: Iterable[tuple[str, str]]) -> Report:
    """The report of a tokenizer (any kind) on (name, text) pairs."""
    from luthier.tokenizers.word_counts import MAX_PIECE_LENGTH

    report = Report(Cost("whole"), [], [], 0, 0, np.zeros(tokenizer.vocab_size, np.int64), MAX_PIECE_LENGTH)
    sections: list[str] = []
    for name, text in texts:
        ids = tokenizer.encode_ordinary(text)
        report.counts += np.bincount(ids, minlength=tokenizer.vocab_size)
        report.whole.add(text, len(ids))
        report.documents.append(Cost(name))
        report.documents[-1].add(text, len(ids))
        report.capped += ((size, begin, name) for size, begin in _long_pieces(tokenizer, text, report.cap))
        sections += _sections(text)
    report.all_sections = len(sections)
    chosen = sections[:: -(-len(sections) // MOST_SECTIONS) or 1]
    report.sections, report.languages = len(chosen), _by_language(tokenizer, chosen)
    return report


def _long_pieces(tokenizer: Any, text: str, cap: int) -> Iterator[tuple[int, str]]:
    """Bytes and beginning of each piece of more than `cap` bytes."""
    from luthier.tokenizers.bpe import Tokenizer
    from luthier.tokenizers.pretokenize import boundaries

    if not isinstance(tokenizer, Tokenizer) or len(text) <= cap // 4:
        return
    data, ends = boundaries(text, tokenizer.pattern)
    sizes = np.diff(ends, prepend=0)
    for k in np.flatnonzero(sizes > cap):
        begin = int(ends[k] - sizes[k])
        yield int(sizes[k]), bytes(data[begin : begin + 40]).decode("utf-8", "ignore")


def _sections(text: str) -> list[str]:
    """The text cut at the first line's end past every SECTION characters."""
    cuts = [0]
    while len(text) - cuts[-1] > SECTION * 3 // 2 and (end := text.find("\n", cuts[-1] + SECTION) + 1):
        cuts.append(end)
    return [text[a:b] for a, b in pairwise([*cuts, len(text)])]


def _by_language(tokenizer: Any, sections: Sequence[str]) -> list[Cost]:
    """The costs of each language, the one with the most text first."""
    costs: dict[str, Cost] = {}
    _, offsets = tokenizer.encode_batch(sections)
    with progress("telling languages", len(sections), "sections") as advance:
        for section, tokens in zip(sections, np.diff(offsets), strict=True):
            language = language_of(section) or "not told"
            costs.setdefault(language, Cost(language)).add(section, int(tokens))
            advance(1)
    return sorted(costs.values(), key=lambda cost: -cost.bytes)


# ---------------------------------------------------------------- for human eyes


def show_report(console: Console, tokenizer: Any, corpus: Path, column: str = COLUMN) -> None:
    """Print the report of a tokenizer on a corpus, text files or a folder of them (see core/data/texts.py).

    Raises InputError if there is no text.
    """
    with progress("encoding", None, "characters") as advance:
        report = measure(tokenizer, _told(corpus, column, advance))
    whole = report.whole
    _say(console, f"\n{corpus}: {_number(whole.texts, 'document')}, {whole.bytes / 1e6:,.2f} MB", "bold")
    line = f"{whole.tokens:,} tokens, {whole.bytes_per_token:.2f} bytes a token, {whole.fertility:.2f} tokens a word"
    _say(console, f"{line} ({whole.words:,} words)")
    _languages(console, report)
    _documents(console, report)
    _ids(console, tokenizer, report)
    _capped(console, report)


def _told(corpus: Path, column: str, advance: Any) -> Iterator[tuple[str, str]]:
    for text in read_texts([corpus], column=column):
        yield text.name, text.text
        advance(len(text.text), note=text.name)


def _languages(console: Console, report: Report) -> None:
    shown = report.languages[:LANGUAGES]
    share = (
        ""
        if report.sections == report.all_sections
        else f" (told for {report.sections:,} of {report.all_sections:,} sections)"
    )
    _say(console, f"\nby language{share}:", "bold")
    _costs(console, shown, "sections")
    rest = len(report.languages) - len(shown)
    _say(console, f"… and {_number(rest, 'language')} with less text" if rest else "")


def _documents(console: Console, report: Report) -> None:
    if len(report.documents) < 2:
        return
    costs = sorted(report.documents, key=lambda cost: cost.bytes_per_token)
    shown = costs if len(costs) <= DOCUMENTS else [*costs[: DOCUMENTS * 2 // 3], *costs[-(DOCUMENTS // 3) :]]
    _say(console, "by document, the dearest first:", "bold")
    _costs(console, shown, "", gap_at=DOCUMENTS * 2 // 3 if len(shown) < len(costs) else -1)
    rest = len(costs) - len(shown)
    _say(console, f"… {_number(rest, 'document')} between these are left out\n" if rest else "")


def _costs(console: Console, costs: Sequence[Cost], texts: str, gap_at: int = -1) -> None:
    """A table with a bar: how many tokens a kilobyte takes."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), header_style="dim")
    heads = ["", "bytes", "tokens", "bytes/token", "tokens/word"]
    for head in heads + ([texts] if texts else []):
        table.add_column(head, justify="right" if head else "left", no_wrap=bool(head), overflow="fold")
    table.add_column("tokens a kB", justify="left", no_wrap=True)
    most = max((1000 / cost.bytes_per_token for cost in costs if cost.tokens), default=1)
    for number, cost in enumerate(costs):
        if number == gap_at:
            table.add_row("…")
        dense = 1000 / max(cost.bytes_per_token, 1e-9)
        fertility = "–" if cost.name in WITHOUT_SPACES else f"{cost.fertility:.2f}"
        row = [_escaped(cost.name), f"{cost.bytes:,}", f"{cost.tokens:,}", f"{cost.bytes_per_token:.2f}", fertility]
        row += [f"{cost.texts:,}"] if texts else []
        table.add_row(*row, f"{'▇' * round(16 * dense / most)} {dense:.0f}")
    console.print(table)


def _ids(console: Console, tokenizer: Any, report: Report) -> None:
    """Which ids the corpus never makes, and its longest tokens."""
    special = set(tokenizer.special_tokens.values())
    usable = [i for i, token in enumerate(tokenizer.tokens) if token and i not in special]
    unused = [i for i in usable if not report.counts[i]]
    _say(console, f"unused ids: {len(unused):,} of {len(usable):,} ({len(unused) / max(len(usable), 1):.0%})", "bold")
    if unused:
        spread = unused[:: -(-len(unused) // TOKENS)]
        _say(console, "  for example " + "  ".join(f"{i}:{_one_line(tokenizer.tokens[i])}" for i in spread))
    used = [i for i in usable if report.counts[i]]
    used.sort(key=lambda i: -len(tokenizer.tokens[i]))
    _say(console, "\nlongest tokens that occur:", "bold")
    for i in used[:TOKENS]:
        token = tokenizer.tokens[i]
        _say(console, f"  {len(token):>4} bytes  {report.counts[i]:>9,} times  {i:>7}  {_one_line(token)}")


def _capped(console: Console, report: Report) -> None:
    """Pieces that training would cut."""
    if not report.capped:
        _say(console, f"\nno piece is longer than {report.cap:,} bytes; training cuts none", "bold")
        return
    _say(
        console,
        f"\n{_number(len(report.capped), 'piece')} of more than {report.cap:,} bytes; training cuts them:",
        "bold",
    )
    for size, begin, name in sorted(report.capped, reverse=True)[:5]:
        _say(console, f"  {size:,} bytes in {name}: {_one_line(begin.encode())}…")


def _one_line(token: bytes) -> str:
    return visible(token).replace("\n", "").replace(" ", "␣")


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(text, markup=False, style=style or None, soft_wrap=True)
