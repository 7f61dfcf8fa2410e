"""Plain text, Markdown, web pages, CSV and rich text: structure on small pages whose right answer is written down."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.data.readers.plain import decode
from luthier.core.data.readers.read import Block, Extracted, read_document
from luthier.core.data.readers.tables import flat, table_text


def read(name: str, text: str | bytes) -> Extracted:
    return read_document(Path(name), text if isinstance(text, bytes) else text.encode())


def kinds(extracted: Extracted) -> list[tuple[str, str]]:
    return [(f"{b.kind}{b.level or ''}", b.text) for b in extracted.blocks]


# ---------------------------------------------------------------- characters

GERMAN = "Die Saiten kosten 12 € – für größere Hälse „mehr“. Übermäßige Feuchte schadet."


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_encodings(encoding: str) -> None:
    assert decode(GERMAN.encode(encoding)) == GERMAN
    assert kinds(read("a.txt", GERMAN.encode(encoding))) == [("paragraph", GERMAN)]


def test_other_alphabets_and_line_ends() -> None:
    russian = "Ремонт гитары занимает две недели. Стоимость зависит от состояния инструмента. " * 4
    assert decode(russian.encode("cp1251")) == russian
    assert decode(b"a\r\nb\rc\n") == "a\nb\nc\n"
    assert decode("naïve".encode("latin-1"), "no-such-encoding") == "naïve"


@settings(max_examples=200)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0\ufeff"), min_size=1))
def test_utf8_is_never_taken_for_anything_else(text: str) -> None:
    assert decode(text.encode("utf-8-sig")) == text


def test_plain_text() -> None:
    text = "Care guide\n==========\n\nKeep it dry.\nAlways.\n\n* strings\n* a cloth\n  of cotton"
    text += "\n\n-----\n\n1. Open\n2. Look"
    assert kinds(read("a.txt", text)) == [
        ("heading1", "Care guide"),
        ("paragraph", "Keep it dry.\nAlways."),
        ("list", "- strings\n- a cloth of cotton"),
        ("list", "1. Open\n2. Look"),
    ]
    assert kinds(read("a.py", "def f():\n    return 1\n")) == [("code", "def f():\n    return 1")]


# ---------------------------------------------------------------- Markdown and HTML


def test_markdown() -> None:
    page = """---
title: "Opening hours"
layout: page
---
{% include nav.html %}
# Hours {#hours}

We open at **9**, see [the *list*]({{ site.url }}/list) and `code *here*`.[^1]
Second line.

Setext
------

- one
- two
    1. deep
    2. deeper

> Quoted words.

| Day | Time |
|-----|:----:|
| Mo \\| Tu | 9 &amp; 10 |

```python
{{ kept }} = "# no heading"
```
<!-- gone -->
<details><summary>More</summary>Inside.</details>

[^1]: A note.
"""
    found = read("a.md", page)
    assert found.title == "Opening hours"
    assert kinds(found) == [
        ("heading1", "Hours"),
        ("paragraph", "We open at 9, see the list and code *here*. Second line."),
        ("heading2", "Setext"),
        ("list", "- one\n- two\n  1. deep\n  2. deeper"),
        ("paragraph", "Quoted words."),
        ("table", "| Day | Time |\n| --- | --- |\n| Mo \\| Tu | 9 & 10 |"),
        ("code", '{{ kept }} = "# no heading"'),
        ("paragraph", "More"),
        ("paragraph", "Inside."),
        ("note", "A note."),
    ]


def test_a_web_page_without_its_furniture() -> None:
    page = """<!DOCTYPE html><html><head><title> Fretwork  shop </title><style>p {}</style></head><body>
    <nav><ul><li><a href=a>Home</a></li><li><a href=b>Shop</a></li></ul></nav>
    <header><a href=x>Fretwork</a> <a href=y>Login</a></header>
    <div class="sidebar"><a href=1>One</a><a href=2>Two</a></div>
    <main><h1>Our <em>shop</em></h1><p>We sell strings&nbsp;&amp; woods.<br>Come in.</p>
    <script>alert(1)</script><p hidden>secret</p><p style="display: none">secret</p>
    <h2>Prices</h2>
    <table><caption>Net prices</caption><tr><th>Part</th><th>Price</th></tr>
      <tr><td rowspan=2>Nut</td><td>5 EUR</td></tr><tr><td>6 EUR</td></tr></table>
    <dl><dt>Fret</dt><dd>a strip of metal</dd><dt>Nut</dt><dd>a slotted piece</dd></dl>
    <pre>x = 1\n  y = 2</pre>
    <ol start=3><li>Third<ul><li>inner</li></ul></li><li>Fourth</li></ol>
    <blockquote>Wood is patient.</blockquote><form><button>Send</button><input value=x></form></main>
    <footer><a href=z>Imprint</a></footer></body></html>"""
    found = read("a.html", page)
    assert found.title == "Fretwork shop"
    assert kinds(found) == [
        ("heading1", "Our shop"),
        ("paragraph", "We sell strings & woods.\nCome in."),
        ("heading2", "Prices"),
        ("caption", "Net prices"),
        ("table", "| Part | Price |\n| --- | --- |\n| Nut | 5 EUR |\n| Nut | 6 EUR |"),
        ("list", "- Fret: a strip of metal\n- Nut: a slotted piece"),
        ("code", "x = 1\n  y = 2"),
        ("list", "3. Third\n  - inner\n4. Fourth"),
        ("paragraph", "Wood is patient."),
    ]


def test_a_page_of_links_is_a_page_and_a_footer_with_words_stays() -> None:
    assert kinds(read("a.html", "<body><nav><a href=1>One</a> <a href=2>Two</a></nav></body>")) == [
        ("paragraph", "One Two")
    ]
    page = "<p>Text of the page itself.</p><footer>Fretwork and Sons, Main street 12</footer>"
    assert kinds(read("a.html", page))[1] == ("footer", "Fretwork and Sons, Main street 12")


def test_a_table_that_only_arranges_the_page() -> None:
    page = (
        "<table><tr><td><h2>Left</h2><p>One.</p></td><td><table><tr><th>a</th><th>b</th></tr></table></td></tr></table>"
    )
    assert kinds(read("a.html", page)) == [
        ("heading2", "Left"),
        ("paragraph", "One."),
        ("table", "| a | b |\n| --- | --- |"),
    ]


@pytest.mark.parametrize("encoding", ["cp1252", "iso-8859-1", "utf-8", "utf-16"])
def test_a_page_says_its_encoding(encoding: str) -> None:
    page = f'<html><head><meta charset="{encoding}"></head><body><p>Größe für 5</p></body></html>'
    assert kinds(read("a.html", page.encode(encoding))) == [("paragraph", "Größe für 5")]


def test_elements_thousands_deep_keep_their_words() -> None:
    text = "".join(b.text for b in read("a.html", "<div>" * 3000 + "deep words" + "</div>" * 3000).blocks)
    assert "deep words" in text


# ---------------------------------------------------------------- tables

cells = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=8)
grids = st.integers(2, 5).flatmap(lambda n: st.lists(st.lists(cells, min_size=n, max_size=n), min_size=1, max_size=6))


@settings(max_examples=200)
@given(grids)
def test_a_table_reads_back(rows: list[list[str]]) -> None:
    text = table_text(rows)
    kept = [row for row in rows if any(row)]
    used = [n for n in range(len(rows[0])) if any(row[n] for row in kept)]
    lines = text.split("\n") if text else []
    assert len(lines) == (len(kept) + 1 if kept else 0)
    back = [[c.replace("\\|", "|") for c in line[2:-2].split(" | ")] for line in [*lines[:1], *lines[2:]]]
    if not any("\\" in cell for row in rows for cell in row):
        assert back == [[row[n] for n in used] for row in kept]


def test_flat() -> None:
    assert flat(Block(table_text([["a", "b"], ["c", ""], ["d", "e"]]), "table")) == "a, b; c; d, e"


words = st.text(st.characters(categories=["L"], max_codepoint=0x17F), min_size=1, max_size=8)
records = st.integers(2, 5).flatmap(lambda n: st.lists(st.lists(words, min_size=n, max_size=n), min_size=2, max_size=6))


@settings(max_examples=100)
@given(records, st.sampled_from(",;\t|"))
def test_csv_finds_its_delimiter(rows: list[list[str]], delimiter: str) -> None:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows(rows)
    assert kinds(read("a.csv", out.getvalue())) == [("table", table_text(rows))]


def test_csv_as_people_write_it() -> None:
    german = 'Preisliste 2024\n\nTeil;Preis\nSattel;12,50\n"Steg; klein";"8,00\nnetto"\n'
    assert kinds(read("a.csv", german.encode("cp1252"))) == [
        ("paragraph", "Preisliste 2024"),
        ("table", "| Teil | Preis |\n| --- | --- |\n| Sattel | 12,50 |\n| Steg; klein | 8,00 netto |"),
    ]
    assert kinds(read("a.csv", "sep=;\na;b,c\nd;e")) == [("table", "| a | b,c |\n| --- | --- |\n| d | e |")]
    assert kinds(read("a.csv", "one\ntwo")) == [("paragraph", "one\ntwo")]


# ---------------------------------------------------------------- rich text


def test_rich_text() -> None:
    rtf = (
        rb"{\rtf1\ansi\ansicpg1252{\fonttbl{\f0 Arial;}}{\*\generator x;}{\info{\title T}}\f0 Caf\'e9 \u8364?5\par "
        rb"{\b bold} and \{braces\}\line next\par\trowd a\cell b\cell\row\trowd c\cell d\cell\row\pard "
        rb"end\u-10179?\u-8704?}"
    )
    assert kinds(read("a.rtf", rtf)) == [
        ("paragraph", "Café €5"),
        ("paragraph", "bold and {braces}\nnext"),
        ("table", "| a | b |\n| --- | --- |\n| c | d |"),
        ("paragraph", "end😀"),
    ]
