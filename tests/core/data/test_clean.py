"""Cleaning: each rule on text where the right result is known, and the spans by property."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.data.clean import (
    assemble,
    clean_blocks,
    dehyphenate,
    language_of,
    mend,
    quality,
    repeated_ngrams,
    running_lines,
    unwrap,
    vocabulary_of,
)
from luthier.core.data.readers.read import Block

# ---------------------------------------------------------------- encoding


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("cafÃ© crÃ¨me", "café crème"),
        ("fÃ¼r 5â€“6 â‚¬", "für 5–6 €"),
        ("e\u0301tude", "étude"),
        ("the \ufb01ngerboard", "the fingerboard"),
        ("in\u00adstru\u00admentin\u00ad\nter", "instrumentinter"),
        ("\ufeff5\u00a0kg\u200b", "5 kg"),
        ("“quoted” — it’s", "“quoted” — it’s"),
        ("if a &lt; b", "if a &lt; b"),
    ],
)
def test_mend(wrong: str, right: str) -> None:
    assert mend(wrong) == right


# ---------------------------------------------------------------- hyphenation


@pytest.mark.parametrize(
    ("text", "known", "mended"),
    [
        ("an instru-\nment", "instrument", "an instrument"),  # the whole word occurs
        ("the lutherie-\nness", "", "the lutherieness"),  # nothing known: the first part is no word by itself
        ("a well-\nknown shop", "well well-known", "a well-known shop"),  # the hyphen is true
        ("a top-\nbound piece", "top bound", "a top-bound piece"),  # first part is a word, the whole is none
        ("Anglo-\nSaxon", "anglosaxon", "Anglo-Saxon"),
        ("COVID-\n19", "", "COVID-19"),
        ("Vor-\nund Nachteile", "", "Vor- und Nachteile"),
        ("Saiten-\n  halter", "saitenhalter", "Saitenhalter"),
        ("pre- and post-war", "", "pre- and post-war"),
        ("a sound- board here", "soundboard", "a soundboard here"),  # left over on one line by a reader
        ("a sound- proof door", "", "a sound- proof door"),
        ("5 - 7 pieces, a-\n", "", "5 - 7 pieces, a-\n"),
    ],
)
def test_dehyphenate(text: str, known: str, mended: str) -> None:
    assert dehyphenate(text, vocabulary_of([known]))[0] == mended


def test_a_broken_word_is_no_evidence_for_its_parts() -> None:
    assert vocabulary_of(["instru-\nment", "well-known"]) == {"well-known": 1, "well": 1, "known": 1}


def test_every_true_hyphen_of_a_page_survives_wrapping_at_any_width() -> None:
    """Break a text at every hyphen and inside every long word; cleaning gives the text back."""
    text = "A well-known maker sets the neck-joint with hide-glue. The maker likes a tight joint and a clean neck."
    words = vocabulary_of([text, "hide glue well known neck joint"])
    assert dehyphenate(text.replace("-", "-\n"), words)[0] == text
    for at in range(2, len("maker") - 1):
        broken = text.replace("maker", f"{'maker'[:at]}-\n{'maker'[at:]}")
        assert dehyphenate(broken, words)[0] == text


# ---------------------------------------------------------------- lines


def test_unwrap_joins_what_the_column_broke_and_keeps_what_the_writer_broke() -> None:
    wrapped = "The workshop repairs plucked instruments of all\nkinds, from ukuleles to harp guitars, and builds\nthem."
    assert unwrap(wrapped) == wrapped.replace("\n", " ")
    address = "Fretwork and Sons, Instrument Makers\n12 Mill Lane\nOld Town"
    assert unwrap(address) == address
    fields = "Phone: 0123 456789 (mornings only, please be patient)\nMail: shop@example.com\nFax: none"
    assert unwrap(fields) == fields


@given(st.lists(st.text("abcdefgh", min_size=1, max_size=9), min_size=1, max_size=60), st.integers(40, 90))
@settings(max_examples=50)
def test_unwrap_undoes_textwrap(words: list[str], width: int) -> None:
    """`textwrap.fill` is the independent wrapper: text that it wrapped comes back (its longest line may be shorter than
    the width, never by more than the next word)."""
    import textwrap

    text = " ".join(words)
    filled = textwrap.fill(text, width)
    if max(map(len, filled.split("\n"))) >= 40:
        assert unwrap(filled).replace("\n", " ") == text
        assert unwrap(filled).count("\n") <= filled.count("\n") // 2


# ---------------------------------------------------------------- running lines


def pages(count: int, top: str = "Fretwork & Sons", bottom: str = "Page {n} of {count}") -> list[Block]:
    body = ["spruce", "cedar", "maple", "rosewood", "walnut", "ebony", "mahogany", "ash"]
    blocks = []
    for n in range(1, count + 1):
        wood = body[n % len(body)]
        blocks.append(Block(f"{top.format(n=n, count=count)}\nAbout {wood} and its grain.", page=n))
        blocks.append(Block(f"The {wood} comes from a mill.\nIt is dried {7 * n % 5 + 2} years.", page=n))
        blocks.append(Block(bottom.format(n=n, count=count), "footer", page=n))
    return blocks


@pytest.mark.parametrize(
    "bottom", ["Page {n} of {count}", "{n}", "- {n} -", "Seite {n}", "{n}/{count}", "Rev. 3, p. {n}"]
)
def test_headers_footers_and_page_numbers_go_and_are_recorded(bottom: str) -> None:
    cleaned = clean_blocks(pages(4, bottom=bottom))
    text = assemble(cleaned.blocks)[0]
    assert "Fretwork" not in text
    assert text.count("comes from a mill") == 4
    assert all(bottom.format(n=n, count=4) not in text.split("\n\n") for n in range(1, 5))
    assert ("Fretwork & Sons", [1, 2, 3, 4]) in cleaned.removed
    assert len([line for line, _ in cleaned.removed]) == 5
    assert any(rule.startswith("running-lines: 8") for rule in cleaned.rules)


def test_what_differs_from_page_to_page_stays() -> None:
    blocks = [Block(f"Chapter {c}", "heading", page=p, level=1) for p, c in ((1, 1), (5, 2), (9, 3))]
    blocks += [Block(f"Price {price} EUR for the set", page=p) for p, price in ((1, 90), (5, 120), (9, 75))]
    blocks += [Block("Some text that fills the page.\nAnd a second line.", page=p) for p in (1, 5, 9)]
    blocks.sort(key=lambda b: b.page)
    found = set(running_lines(blocks).values())
    assert not any("Chapter" in line or "Price" in line for line in found)


def test_slides_with_numbered_titles_and_documents_without_pages_keep_everything() -> None:
    slides = [
        b for n in (1, 2, 3) for b in (Block(f"Step {n}", "heading", n, 1), Block(f"Do {n} things well.", page=n))
    ]
    assert [b.text for b in clean_blocks(slides).blocks if b.kind == "heading"] == ["Step 1", "Step 2", "Step 3"]
    flat = [Block("The same line."), Block("Other text."), Block("The same line.")] * 3
    assert running_lines(flat) == {}


def test_a_tables_header_that_repeats_on_each_page_stays() -> None:
    table = "| Part | Price |\n| --- | --- |\n| nut | 5 |"
    blocks = [b for n in range(1, 5) for b in (Block(table, "table", n), Block(f"Text of page {n} here.", page=n))]
    assert sum(b.kind == "table" for b in clean_blocks(blocks).blocks) == 4


# ---------------------------------------------------------------- spans


KINDS = st.sampled_from(["heading", "paragraph", "list", "table", "code", "note", "ocr"])
TEXTS = st.text(st.sampled_from("ab -\n.1é\u00ad\u00a0|#\u200b😀ﬁ"), max_size=40)


@given(st.lists(st.builds(Block, TEXTS, KINDS, st.integers(0, 3), st.integers(0, 7)), max_size=8))
@settings(max_examples=150)
def test_every_span_is_its_block(blocks: list[Block]) -> None:
    cleaned = clean_blocks(blocks).blocks
    text, spans = assemble(cleaned)
    pieces = [f"{'#' * min(6, max(1, b.level))} {b.text}" if b.kind == "heading" else b.text for b in cleaned]
    assert [text[s.start : s.end] for s in spans] == pieces
    assert [(s.page, s.block) for s in spans] == [(b.page, b.kind) for b in cleaned]
    assert text == "\n\n".join(pieces)
    assert all(b.text.strip() for b in cleaned)


@given(st.lists(st.builds(Block, TEXTS, KINDS, st.integers(0, 3), st.just(1)), max_size=6))
@settings(max_examples=60)
def test_code_keeps_its_lines(blocks: list[Block]) -> None:
    code = "def f():\n    return 1\n\n\nf()"
    cleaned = clean_blocks([*blocks, Block(code, "code")])
    assert cleaned.blocks[-1].text == code


# ---------------------------------------------------------------- quality


@pytest.mark.parametrize(
    "text",
    [
        "| Part | Price |\n| --- | --- |\n" + "".join(f"| fret {n} | {n * 3}.50 |\n" for n in range(60)),
        "Anna Berg, +49 30 123456, anna@example.com\n" * 2 + "Ben Cole, +49 30 123457, ben@example.com",
        "Closed on Mondays.",
        "Donaudampfschifffahrtsgesellschaftskapitän Rindfleischetikettierungsüberwachungsaufgabe und so",
        "営業時間は九時から 五時まで です",
    ],
)
def test_company_documents_pass(text: str) -> None:
    assert quality(text) == []


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "too-short"),
        ("Fretwork", "too-short"),
        ("!!! ??? *** %% $$ (( )) a b c ... ,,, ;;;", "few-letters"),
        (" ".join(["QmFzZTY0IGRhdGEgaXMgbm90IGxhbmd1YWdlIGF0IGFsbA"] * 5), "long-words"),
        ("some text \ufffd\ufffd\ufffd\ue000\ue001 here", "garbled"),
        ("the same line\n" * 40, "repeated-lines"),
        (" ".join(["a1 b c d e f g h i j k"] * 20), "repeated-words"),
    ],
)
def test_what_is_no_text_breaks_a_rule(text: str, rule: str) -> None:
    assert rule in [name for name, _ in quality(text)]


def test_repeated_ngrams_by_hand() -> None:
    """Twelve words, then the first ten again: the ten lie in a 10-gram that occurred before, of 22."""
    words = [f"w{n}" for n in range(12)]
    assert repeated_ngrams(words + words[:10]) == pytest.approx(10 / 22)
    assert repeated_ngrams(words) == 0


# ---------------------------------------------------------------- language


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The soundboard of a guitar is made of spruce or cedar and carries the bridge.", "en"),
        ("Die Decke einer Gitarre besteht aus Fichte oder Zeder und trägt den Steg.", "de"),
        ("La table d'harmonie d'une guitare est en épicéa ou en cèdre.", "fr"),
        ("12 34", ""),
    ],
)
def test_language(text: str, language: str) -> None:
    assert language_of(text) == language
