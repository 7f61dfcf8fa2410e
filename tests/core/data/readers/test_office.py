"""Office files built in the test part by part, so that every word's place is known."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from luthier.core.data.readers.read import Extracted, read_document
from luthier.core.data.readers.sheets import number_text, regions

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
M = 'xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math"'
A = 'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"'
P = 'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main"'
C = 'xmlns:c="http://schemas.openxmlformats.org/drawingml/2006/chart"'
R = 'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"'
REL = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def read(name: str, parts: dict[str, str]) -> Extracted:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for part, content in parts.items():
            archive.writestr(part, content)
    return read_document(Path(name), out.getvalue())


def relations(**targets: str) -> str:
    """`kind_id="target"` as a relationships part."""
    rows = "".join(
        f'<Relationship Id="{key.split("_")[1]}" Type="{REL}/{key.split("_")[0]}" Target="{target}"/>'
        for key, target in targets.items()
    )
    return f"<Relationships>{rows}</Relationships>"


def kinds(extracted: Extracted) -> list[tuple[str, str]]:
    return [(f"{b.kind}{b.level or ''}", b.text) for b in extracted.blocks]


# ---------------------------------------------------------------- Word


def p(text: str, style: str = "", extra: str = "") -> str:
    """A paragraph of one run; `text` may hold further run content."""
    style = f'<w:pStyle w:val="{style}"/>' if style else ""
    inner = text if text.startswith("<") else f"<w:r><w:t>{text}</w:t></w:r>"
    return f"<w:p><w:pPr>{style}{extra}</w:pPr>{inner}</w:p>"


def r(text: str, properties: str = "") -> str:
    return f'<w:r><w:rPr>{properties}</w:rPr><w:t xml:space="preserve">{text}</w:t></w:r>'


def item(text: str, number: int, level: int = 0) -> str:
    return p(text, extra=f'<w:numPr><w:ilvl w:val="{level}"/><w:numId w:val="{number}"/></w:numPr>')


def docx(body: str, **parts: str) -> Extracted:
    files = {
        "_rels/.rels": relations(officeDocument_r1="word/document.xml"),
        "word/document.xml": f"<w:document {W} {M} {A} {C} {R}><w:body>{body}</w:body></w:document>",
    }
    names = {f"{name}_x{n}": f"{name}.xml" for n, name in enumerate(parts)}
    files["word/_rels/document.xml.rels"] = relations(**names)
    files |= {f"word/{name}.xml": f"<w:x {W} {M} {A} {C}>{content}</w:x>" for name, content in parts.items()}
    return read("a.docx", files)


STYLES = """
<w:style w:styleId="H1"><w:name w:val="heading 1"/><w:pPr><w:outlineLvl w:val="0"/></w:pPr></w:style>
<w:style w:styleId="Berschrift2"><w:name w:val="heading 2"/><w:basedOn w:val="H1"/>
  <w:pPr><w:outlineLvl w:val="1"/></w:pPr></w:style>
<w:style w:styleId="Mine"><w:name w:val="My heading"/><w:basedOn w:val="Berschrift2"/></w:style>
<w:style w:styleId="T"><w:name w:val="Title"/></w:style>
<w:style w:styleId="Cap"><w:name w:val="caption"/></w:style>
<w:style w:styleId="Code"><w:name w:val="Source Code"/></w:style>
"""
NUMBERING = """
<w:abstractNum w:abstractNumId="0"><w:lvl w:ilvl="0"><w:numFmt w:val="bullet"/></w:lvl>
  <w:lvl w:ilvl="1"><w:numFmt w:val="bullet"/></w:lvl></w:abstractNum>
<w:abstractNum w:abstractNumId="1">
  <w:lvl w:ilvl="0"><w:start w:val="3"/><w:numFmt w:val="decimal"/><w:lvlText w:val="%1."/></w:lvl>
  <w:lvl w:ilvl="1"><w:numFmt w:val="lowerLetter"/><w:lvlText w:val="%1%2)"/></w:lvl></w:abstractNum>
<w:num w:numId="1"><w:abstractNumId w:val="0"/></w:num><w:num w:numId="2"><w:abstractNumId w:val="1"/></w:num>
"""


def test_headings_by_style_whatever_its_language() -> None:
    body = p("Guide", "T") + p("Care", "H1") + p("Text.") + p("Wood", "Berschrift2") + p("Deep", "Mine")
    body += p("Figure 1", "Cap") + p("x = 1", "Code") + p("y = 2", "Code")
    assert kinds(docx(body, styles=STYLES)) == [
        ("heading1", "Guide"),
        ("heading1", "Care"),
        ("paragraph", "Text."),
        ("heading2", "Wood"),
        ("heading2", "Deep"),
        ("caption", "Figure 1"),
        ("code", "x = 1\ny = 2"),
    ]


def test_lists_count_on() -> None:
    body = item("one", 1) + item("deep", 1, 1) + p("Between.") + item("a", 2) + item("b", 2, 1) + item("c", 2, 1)
    assert kinds(docx(body + item("d", 2) + item("e", 2, 1), numbering=NUMBERING)) == [
        ("list", "- one\n  - deep"),
        ("paragraph", "Between."),
        ("list", "3. a\n  3a) b\n  3b) c\n4. d\n  4a) e"),
    ]


def test_runs_of_every_kind() -> None:
    body = p(
        r("Kept ")
        + f'<w:ins w:author="x">{r("inserted ")}</w:ins>'
        + '<w:del w:author="x"><w:r><w:delText>gone</w:delText></w:r></w:del>'
        + f"<w:hyperlink>{r('linked')}</w:hyperlink><w:r><w:tab/><w:t>tab</w:t><w:br/><w:noBreakHyphen/></w:r>"
        + "<w:moveFrom><w:r><w:t>moved away</w:t></w:r></w:moveFrom>"
        + f"<w:r><w:instrText>PAGE</w:instrText></w:r><w:sdt><w:sdtContent>{r('chosen')}</w:sdtContent></w:sdt>"
    )
    assert kinds(docx(body)) == [("paragraph", "Kept inserted linked\ttab\n-chosen")]


def test_notes_comments_headers_and_boxes() -> None:
    def reference(kind: str, n: int) -> str:
        return f'<w:r><w:{kind}Reference w:id="{n}"/></w:r>'

    box = f"<w:txbxContent>{p('In the box')}</w:txbxContent>"
    both = f"<mc:Choice>{box}</mc:Choice><mc:Fallback>{box}</mc:Fallback>"
    both = f"<mc:AlternateContent xmlns:mc='m'>{both}</mc:AlternateContent>"
    body = (
        p("One", "H1")
        + p(r("Text") + reference("footnote", 2) + reference("comment", 7) + f"<w:r>{both}</w:r>")
        + p("Two", "H1")
        + p(r("More") + reference("endnote", 2))
    )
    notes = (
        f'<w:footnote w:type="separator" w:id="0">{p("-")}</w:footnote><w:footnote w:id="2">{p("A note.")}</w:footnote>'
    )
    found = docx(
        body,
        styles=STYLES,
        footnotes=notes,
        endnotes=f'<w:endnote w:id="2">{p("At the end.")}</w:endnote>',
        comments=f'<w:comment w:id="7" w:author="Anna">{p("Check this.")}{p("Please.")}</w:comment>',
        header=p("Fretwork"),
        footer=p("Page 1"),
    )
    assert kinds(found) == [
        ("header", "Fretwork"),
        ("heading1", "One"),
        ("paragraph", "Text"),
        ("paragraph", "In the box"),
        ("note", "A note."),
        ("comment", "Anna: Check this.\nPlease."),
        ("heading1", "Two"),
        ("paragraph", "More"),
        ("note", "At the end."),
        ("footer", "Page 1"),
    ]


def test_tables_with_merged_and_nested_cells() -> None:
    def cell(inner: str, properties: str = "") -> str:
        return f"<w:tc><w:tcPr>{properties}</w:tcPr>{inner}</w:tc>"

    nested = f"<w:tbl><w:tr>{cell(p('x'))}{cell(p('y'))}</w:tr></w:tbl>{p('')}"
    two = '<w:gridSpan w:val="2"/>'
    down, on = '<w:vMerge w:val="restart"/>', "<w:vMerge/>"
    body = (
        f"<w:tbl><w:tr>{cell(p('Part'))}{cell(p('Price'), two)}</w:tr>"
        f"<w:tr>{cell(p('Nut'), down)}{cell(p('5'))}{cell(p('a | b'))}</w:tr>"
        f"<w:tr>{cell(p(''), on)}{cell(p('6') + p('7'))}{cell(nested)}</w:tr>"
        f"<w:tr><w:trPr><w:del/></w:trPr>{cell(p('gone'))}{cell(p('gone'))}{cell(p(''))}</w:tr></w:tbl>"
    )
    frame = f"<w:tbl><w:tr>{cell(p('Only a frame.'))}</w:tr></w:tbl>"
    assert kinds(docx(body + frame)) == [
        ("table", "| Part | Price |  |\n| --- | --- | --- |\n| Nut | 5 | a \\| b |\n| Nut | 6 7 | x, y |"),
        ("paragraph", "Only a frame."),
    ]


@pytest.mark.parametrize(
    ("formula", "text"),
    [
        ("<m:f><m:num><m:t>a+b</m:t></m:num><m:den><m:t>c</m:t></m:den></m:f>", "(a+b)/c"),
        ("<m:sSup><m:e><m:t>x</m:t></m:e><m:sup><m:t>2</m:t></m:sup></m:sSup>", "x^2"),
        ("<m:rad><m:deg/><m:e><m:t>y</m:t></m:e></m:rad>", "√(y)"),
        ('<m:d><m:dPr><m:begChr m:val="["/><m:endChr m:val="]"/></m:dPr><m:e><m:t>z</m:t></m:e></m:d>', "[z]"),
        (
            (
                '<m:nary><m:naryPr><m:chr m:val="∑"/></m:naryPr><m:sub><m:t>i=1</m:t></m:sub>'
                "<m:sup><m:t>n</m:t></m:sup><m:e><m:t>i</m:t></m:e></m:nary>"
            ),
            "∑_(i=1)^n i",
        ),
    ],
)
def test_formulas(formula: str, text: str) -> None:
    assert kinds(docx(p(f"<m:oMath>{formula}</m:oMath>"))) == [("paragraph", text)]


def test_short_bold_lines_are_headings_where_there_are_no_others() -> None:
    bold = p(r("Opening hours", "<w:b/>"))
    rest = p(r("We open", "<w:b/>") + r(" at nine.")) + p("And close at five.") + p("Never on Sundays.")
    assert kinds(docx(bold + rest))[0] == ("heading2", "Opening hours")
    assert kinds(docx(p("Real", "H1") + bold + rest, styles=STYLES))[1] == ("paragraph", "Opening hours")


# ---------------------------------------------------------------- PowerPoint


def shape(text: str, place: str = "", properties: str = "") -> str:
    lines = "".join(f"<a:p>{properties}<a:r><a:t>{line}</a:t></a:r></a:p>" for line in text.split("\n"))
    place = f'<p:nvPr><p:ph type="{place}"/></p:nvPr>' if place else ""
    return f"<p:sp><p:nvSpPr>{place}</p:nvSpPr><p:txBody>{lines}</p:txBody></p:sp>"


def test_slides() -> None:
    table = (
        '<p:graphicFrame><a:tbl><a:tr><a:tc gridSpan="2"><a:p><a:r><a:t>Prices</a:t></a:r></a:p></a:tc>'
        '<a:tc hMerge="1"/></a:tr><a:tr><a:tc><a:p><a:r><a:t>Nut</a:t></a:r></a:p></a:tc>'
        "<a:tc><a:p><a:r><a:t>5</a:t></a:r></a:p></a:tc></a:tr></a:tbl></p:graphicFrame>"
    )
    chart = '<p:graphicFrame><c:chart r:id="c1"/></p:graphicFrame>'
    points = (
        "<c:ser><c:tx><c:v>Guitars</c:v></c:tx><c:cat><c:pt><c:v>2024</c:v></c:pt><c:pt><c:v>2025</c:v></c:pt></c:cat>"
        "<c:val><c:pt><c:v>4.4000000000000004</c:v></c:pt><c:pt><c:v>12</c:v></c:pt></c:val></c:ser>"
    )
    space = f"{A} {P} {C} {R}"
    slide = f"<p:sld {space}><p:cSld><p:spTree>{{}}</p:spTree></p:cSld></p:sld>"
    found = read(
        "a.pptx",
        {
            "_rels/.rels": relations(officeDocument_r1="/ppt/presentation.xml"),
            "ppt/presentation.xml": f'<p:presentation {P} {R}><p:sldIdLst><p:sldId id="256" r:id="s2"/>'
            '<p:sldId id="257" r:id="s1"/><p:sldId id="258" r:id="s3"/></p:sldIdLst></p:presentation>',
            "ppt/_rels/presentation.xml.rels": relations(
                slide_s1="slides/one.xml", slide_s2="slides/two.xml", slide_s3="slides/three.xml"
            ),
            "ppt/slides/two.xml": slide.format(
                shape("Spruce\nCedar", "body") + shape("Woods", "title") + shape("7", "sldNum") + table
            ),
            "ppt/slides/one.xml": slide.format(f"<p:grpSp>{shape('Free text')}</p:grpSp>{chart}"),
            "ppt/slides/three.xml": slide.format("<p:pic/>"),
            "ppt/slides/_rels/two.xml.rels": relations(notesSlide_n1="../notes/n.xml", comments_k1="../k.xml"),
            "ppt/slides/_rels/one.xml.rels": relations(chart_c1="../charts/c.xml"),
            "ppt/notes/n.xml": f"<p:notes {space}>{shape('Say it slowly.', 'body')}{shape('2', 'sldNum')}</p:notes>",
            "ppt/k.xml": f"<p:cmLst {P}><p:cm><p:text>Nice.</p:text></p:cm></p:cmLst>",
            "ppt/charts/c.xml": f"<c:chartSpace {C}>{points}</c:chartSpace>",
        },
    )
    assert [(f"{b.kind}{b.level or ''}", b.text, b.page) for b in found.blocks] == [
        ("heading1", "Woods", 1),
        ("list", "- Spruce\n- Cedar", 1),
        ("table", "| Prices |  |\n| --- | --- |\n| Nut | 5 |", 1),
        ("note", "Say it slowly.", 1),
        ("comment", "Nice.", 1),
        ("paragraph", "Free text", 2),
        ("table", "|  | Guitars |\n| --- | --- |\n| 2024 | 4.4 |\n| 2025 | 12 |", 2),
    ]
    assert found.notes == ["slide 3: only pictures"]


# ---------------------------------------------------------------- Excel


def test_sheets() -> None:
    def c(reference: str, value: str, kind: str = "", style: int = 0) -> str:
        return f'<c r="{reference}" t="{kind or "n"}" s="{style}"><v>{value}</v></c>'

    rows = (
        f"<row r='1'>{c('B1', '0', 's')}</row>"
        f"<row r='2'>{c('B2', '1', 's')}{c('C2', '2', 's')}{c('D2', 'Since', 'str')}</row>"
        f"<row r='3'>{c('B3', '3', 's')}{c('C3', '1234.5', style=2)}{c('D3', '45292', style=1)}</row>"
        f"<row r='4'>{c('B4', '4', 's')}{c('C4', '0.195', style=3)}"
        f"<c r='D4' t='inlineStr'><is><t>open</t></is></c></row>"
        f"<row r='5'>{c('C5', '1', 'b')}{c('D5', '#REF!', 'e')}</row>"
        f"<row r='8'>{c('B8', '4', 's')}</row>"
    )
    found = read(
        "a.xlsx",
        {
            "xl/workbook.xml": f'<workbook {R}><sheets><sheet name="Prices" r:id="s1"/>'
            '<sheet name="Secret" state="hidden" r:id="s2"/></sheets></workbook>',
            "xl/_rels/workbook.xml.rels": relations(
                worksheet_s1="worksheets/a.xml", worksheet_s2="b.xml", sharedStrings_t="t.xml", styles_y="y.xml"
            ),
            "xl/worksheets/a.xml": f"<worksheet><sheetData>{rows}</sheetData>"
            '<mergeCells><mergeCell ref="B4:B5"/></mergeCells></worksheet>',
            "xl/worksheets/_rels/a.xml.rels": relations(comments_k="../k.xml"),
            "xl/k.xml": "<comments><authors><author>Ben</author></authors><commentList><comment ref='C3' authorId='0'>"
            "<text><r><t>Ben:</t></r><r><t> net</t></r></text></comment></commentList></comments>",
            "xl/b.xml": "<worksheet/>",
            "xl/t.xml": "<sst><si><t>Price list</t></si><si><t>Work</t></si><si><r><t>Pri</t></r><r><t>ce</t></r></si>"
            "<si><t>Setup</t><rPh><t>no</t></rPh></si><si><t>Refret</t></si></sst>",
            "xl/y.xml": '<styleSheet><numFmts><numFmt numFmtId="170" formatCode="#,##0.00\\ [$€-407]"/></numFmts>'
            '<cellXfs><xf numFmtId="0"/><xf numFmtId="14"/><xf numFmtId="170"/><xf numFmtId="10"/></cellXfs>'
            "</styleSheet>",
        },
    )
    assert kinds(found) == [
        ("heading1", "Prices"),
        ("caption", "Price list"),
        (
            "table",
            (
                "| Work | Price | Since |\n| --- | --- | --- |\n| Setup | 1,234.50 € | 2024-01-01 |\n"
                "| Refret | 19.50% | open |\n| Refret | TRUE |  |"
            ),
        ),
        ("paragraph", "Refret"),
        ("comment", "C3 Ben: net"),
    ]
    assert found.notes == ["sheet Secret: hidden, left out"]


@pytest.mark.parametrize(
    ("raw", "code", "shown"),
    [
        ("3", "General", "3"),
        ("3.0", "", "3"),
        ("0.1", "", "0.1"),
        ("0.30000000000000004", "General", "0.3"),
        ("1234567", "#,##0", "1,234,567"),
        ("0.5", "0%", "50%"),
        ("2.5", "0.0#", "2.5"),
        ("2", '0.00 "kg"', "2.00 kg"),
        ("5", '"EUR" 0', "EUR 5"),
        ("-3.5", "#,##0.0;(#,##0.0)", "-3.5"),
        ("1", "d.m.yyyy", "1900-01-01"),
        ("45292.75", "dd.mm.yyyy hh:mm", "2024-01-01 18:00"),
        ("0.375", "h:mm", "09:00"),
        ("1.5", "[h]:mm", "36:00"),
        ("x", "0", "x"),
    ],
)
def test_numbers_as_shown(raw: str, code: str, shown: str) -> None:
    assert number_text(raw, code) == shown


def test_regions_of_a_sheet() -> None:
    cells = {(1, 1): "a", (1, 2): "b", (2, 1): "c", (2, 2): "d", (5, 1): "e", (1, 5): "f", (2, 5): "g", (3, 5): "h"}
    assert list(regions(cells)) == [[["a", "b"], ["c", "d"]], [["f"], ["g"], ["h"]], [["e"]]]
    spaced = {(1, 1): "a", (1, 3): "b", (2, 1): "c", (2, 3): "d"}  # one empty column inside a table
    assert list(regions(spaced)) == [[["a", "b"], ["c", "d"]]]


# ---------------------------------------------------------------- OpenDocument and e-books

OD = " ".join(
    f'xmlns:{n}="urn:oasis:names:tc:opendocument:xmlns:{n}:1.0"'
    for n in "office text table draw presentation".split()  # noqa: SIM905
)


def opendocument(kind: str, body: str, **parts: str) -> Extracted:
    content = f"<office:document-content {OD}><office:body><office:{kind}>{body}</office:{kind}></office:body>"
    mimetype = f"application/vnd.oasis.opendocument.{kind}"
    return read("a.odt", {"mimetype": mimetype, "content.xml": content + "</office:document-content>", **parts})


def test_opendocument_text() -> None:
    body = """<text:tracked-changes><text:p>gone</text:p></text:tracked-changes>
    <text:h text:outline-level="2">Care  of
      wood</text:h><text:p>Keep<text:s text:c="2"/>it<text:tab/>dry<text:note><text:note-citation>1</text:note-citation>
    <text:note-body><text:p>Always.</text:p></text:note-body></text:note>.</text:p>
    <text:list><text:list-item><text:p>one</text:p><text:list><text:list-item><text:p>deep</text:p></text:list-item>
    </text:list></text:list-item></text:list>
    <table:table><table:table-row><table:table-cell table:number-rows-spanned="2"><text:p>a</text:p></table:table-cell>
    <table:table-cell><text:p>b</text:p></table:table-cell></table:table-row><table:table-row>
    <table:covered-table-cell/><table:table-cell><text:p>c</text:p></table:table-cell></table:table-row></table:table>"""
    assert kinds(opendocument("text", body)) == [
        ("heading2", "Care of wood"),
        ("paragraph", "Keep  it\tdry."),
        ("note", "Always."),
        ("list", "- one\n  - deep"),
        ("table", "| a | b |\n| --- | --- |\n| a | c |"),
    ]


def test_opendocument_sheets_and_slides() -> None:
    sheet = """<table:table table:name="Stock"><table:table-row><table:table-cell table:number-columns-repeated="2">
    <text:p>x</text:p></table:table-cell><table:table-cell table:number-columns-repeated="16000"/></table:table-row>
    <table:table-row table:number-rows-repeated="1000000"><table:table-cell/></table:table-row></table:table>"""
    assert kinds(opendocument("spreadsheet", sheet)) == [("heading1", "Stock"), ("table", "| x | x |\n| --- | --- |")]
    slide = """<draw:page><draw:frame><draw:text-box><text:p>Body</text:p></draw:text-box></draw:frame>
    <draw:frame presentation:class="title"><draw:text-box><text:p>Woods</text:p></draw:text-box></draw:frame>
    <presentation:notes><draw:frame><text:p>Slowly.</text:p></draw:frame></presentation:notes></draw:page>"""
    found = opendocument("presentation", slide)
    assert kinds(found) == [("heading1", "Woods"), ("paragraph", "Body"), ("note", "Slowly.")]
    assert {b.page for b in found.blocks} == {1}
    assert found.media_type.endswith("presentation")


def test_an_encrypted_opendocument() -> None:
    from luthier.core.errors import DocumentError

    with pytest.raises(DocumentError) as caught:
        opendocument("text", "", **{"META-INF/manifest.xml": "<m><file-entry><encryption-data/></file-entry></m>"})
    assert caught.value.rule == "encrypted"


def test_an_e_book_in_its_order() -> None:
    found = read(
        "a.epub",
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": '<container><rootfile full-path="in/book.opf"/></container>',
            "in/book.opf": "<package><metadata><title>Old  luthiers</title></metadata><manifest>"
            '<item id="a" href="a%20b.xhtml"/><item id="c" href="c.xhtml"/>'
            '<item id="n" href="n.xhtml" properties="nav"/>'
            '</manifest><spine><itemref idref="n"/><itemref idref="c"/><itemref idref="a"/></spine></package>',
            "in/a b.xhtml": "<?xml version='1.0'?><html><body><h2>Two</h2><p>Ümlaut.</p></body></html>",
            "in/c.xhtml": "<html><body><h2>One</h2></body></html>",
            "in/n.xhtml": "<html><body><p>Contents</p></body></html>",
        },
    )
    assert found.title == "Old luthiers"
    assert kinds(found) == [("heading2", "One"), ("heading2", "Two"), ("paragraph", "Ümlaut.")]
