"""Make the sample company's PDF, Word, HTML, mail and picture files from the plain sources beside them.

A company's files are awkward on purpose: a PDF repeats its header on every page and breaks words at line ends, a scan
is crooked, a note is written by hand and photographed. Here each awkwardness is made from a readable source, so that
the right text is known and a reader can be checked against it.

    workshop/sources/employee-handbook.md ──▶ workshop/documents/handbook/employee-handbook.pdf   … and so on: `MADE`

Sources are a small part of Markdown: `#` headings, paragraphs of one line, pipe tables. The same sources give the same
bytes with the same versions of the packages, and the same text with any. Word, HTML and mail files need nothing but the
standard library; PDF files and pictures need four packages that luthier itself does without:

    pip install reportlab==5.1.0 pyphen==0.18.1 pillow==13.0.0 matplotlib numpy
    python examples/make_documents.py
"""

from __future__ import annotations

import email.policy
import io
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.parser import Parser
from functools import partial
from html import escape
from pathlib import Path

WORKSHOP = Path(__file__).parent / "workshop"
COMPANY = "Corvane Workshop"


@dataclass(frozen=True)
class Part:
    """A heading (level 1 to 3), a paragraph (level 0) or a table (rows)."""

    text: str = ""
    level: int = 0
    rows: tuple[tuple[str, ...], ...] = ()


def parts(source: str) -> Iterator[Part]:
    """The parts of a source in order."""
    for block in re.split(r"\n{2,}", source.strip()):
        if block.startswith("|"):
            rows = [tuple(c.strip() for c in line.strip("|").split("|")) for line in block.split("\n")]
            yield Part(rows=tuple(row for row in rows if not set("".join(row)) <= set("-: ")))
        elif match := re.match(r"(#+) (.*)", block):
            yield Part(match[2], len(match[1]))
        else:
            yield Part(" ".join(block.split()))


# ---------------------------------------------------------------- text PDF

PAGE = (419.5, 595.3)  # A5 in points
MARGIN = 48.0
FONTS = {0: ("Times-Roman", 10.5, 14.0), 1: ("Helvetica-Bold", 17.0, 26.0), 2: ("Helvetica-Bold", 12.0, 19.0)}


def pdf(source: str) -> bytes:
    """A5 pages with a running header and footer; words are broken with a hyphen at line ends."""
    from reportlab.pdfgen.canvas import Canvas

    pieces = list(parts(source))
    pages = paginate(pieces)
    out = io.BytesIO()
    canvas = Canvas(out, pagesize=PAGE, invariant=1, pageCompression=1)
    canvas.setTitle(pieces[0].text)
    canvas.setAuthor(COMPANY)
    for number, lines in enumerate(pages, 1):
        canvas.setFont("Helvetica", 8)
        canvas.drawString(MARGIN, PAGE[1] - 30, f"{COMPANY}: {pieces[0].text}")
        canvas.drawString(MARGIN, 24, f"Edition of January 2026, page {number} of {len(pages)}")
        for y, level, line in lines:
            canvas.setFont(*FONTS[level][:2])
            canvas.drawString(MARGIN, y, line)
        canvas.showPage()
    canvas.save()
    return out.getvalue()


def paginate(pieces: list[Part]) -> list[list[tuple[float, int, str]]]:
    """(y, level, line) of every page. A heading stays with the first two lines of its paragraph."""
    top, bottom = PAGE[1] - 60, 48.0
    pages: list[list[tuple[float, int, str]]] = [[]]
    y = top
    for piece in pieces:
        lines, height = broken(piece), FONTS[piece.level][2]
        kept = height * len(lines) + 3 * FONTS[0][2] if piece.level else 2 * height
        if y - kept < bottom:
            pages.append([])
            y = top
        y -= 8 if piece.level and y < top else 0
        for line in lines:
            if y < bottom:
                pages.append([])
                y = top
            pages[-1].append((y, piece.level, line))
            y -= height
        y -= 4
    return pages


def broken(piece: Part) -> list[str]:
    """The lines of a paragraph, each as full as it can be; the last word of a line is broken where English allows."""
    import pyphen
    from reportlab.pdfbase.pdfmetrics import stringWidth

    font, size, _ = FONTS[piece.level]
    width, lines, line = PAGE[0] - 2 * MARGIN, [], ""
    syllables = pyphen.Pyphen(lang="en_GB", left=3, right=3)

    def fits(text: str) -> bool:
        return stringWidth(text, font, size) <= width

    for word in piece.text.split():
        longer = f"{line} {word}".strip()
        if fits(longer):
            line = longer
            continue
        breaks = [] if piece.level or not word.strip(".,;:").isalpha() else reversed(list(syllables.iterate(word)))
        head, tail = next(((a, b) for a, b in breaks if fits(f"{line} {a}-")), ("", word))
        lines.append(f"{line} {head}-" if head else line)
        line = tail
    return [*lines, line]


# ---------------------------------------------------------------- Word

WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
XML = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'


def docx(source: str) -> bytes:
    """A Word file with headings and tables, written part by part: a zip archive of six small XML files."""
    body = "".join(word_table(p) if p.rows else word_paragraph(p) for p in parts(source))
    title = escape(next(parts(source)).text)
    styles = "".join(
        f'<w:style w:type="paragraph" w:styleId="Heading{n}"><w:name w:val="heading {n}"/>'
        f'<w:pPr><w:outlineLvl w:val="{n - 1}"/></w:pPr><w:rPr><w:b/><w:sz w:val="{40 - 8 * n}"/></w:rPr></w:style>'
        for n in (1, 2, 3)
    )
    kind = "application/vnd.openxmlformats-officedocument.wordprocessingml"
    files = {
        "[Content_Types].xml": f'<Types xmlns="{PACKAGE}/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Default Extension="xml" ContentType="application/xml"/>'
        f'<Override PartName="/word/document.xml" ContentType="{kind}.document.main+xml"/>'
        f'<Override PartName="/word/styles.xml" ContentType="{kind}.styles+xml"/>'
        '<Override PartName="/docProps/core.xml" '
        'ContentType="application/vnd.openxmlformats-package.core-properties+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{PACKAGE}/relationships">'
        f'<Relationship Id="rId1" Type="{OFFICE}/officeDocument" Target="word/document.xml"/>'
        f'<Relationship Id="rId2" Type="{PACKAGE}/relationships/metadata/core-properties" Target="docProps/core.xml"/>'
        "</Relationships>",
        "docProps/core.xml": f'<cp:coreProperties xmlns:cp="{PACKAGE}/metadata/core-properties" '
        'xmlns:dc="http://purl.org/dc/elements/1.1/">'
        f"<dc:title>{title}</dc:title><dc:creator>{COMPANY}</dc:creator></cp:coreProperties>",
        "word/_rels/document.xml.rels": f'<Relationships xmlns="{PACKAGE}/relationships">'
        f'<Relationship Id="rId1" Type="{OFFICE}/styles" Target="styles.xml"/></Relationships>',
        "word/document.xml": f'<w:document xmlns:w="{WORD}"><w:body>{body}<w:sectPr/></w:body></w:document>',
        "word/styles.xml": f'<w:styles xmlns:w="{WORD}">{styles}</w:styles>',
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, (2026, 1, 15, 9, 0, 0))
            archive.writestr(entry, XML + content, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def word_paragraph(piece: Part) -> str:
    style = f'<w:pPr><w:pStyle w:val="Heading{piece.level}"/></w:pPr>' if piece.level else ""
    return f'<w:p>{style}<w:r><w:t xml:space="preserve">{escape(piece.text, quote=False)}</w:t></w:r></w:p>'


def word_table(piece: Part) -> str:
    edges = "".join(
        f'<w:{side} w:val="single" w:sz="4" w:space="0" w:color="808080"/>'
        for side in ("top", "left", "bottom", "right", "insideH", "insideV")
    )
    grid = '<w:gridCol w:w="2000"/>' * len(piece.rows[0])
    rows = ""
    for number, row in enumerate(piece.rows):
        cells = "".join(f"<w:tc><w:tcPr/>{word_paragraph(Part(cell))}</w:tc>" for cell in row)
        rows += f"<w:tr>{'' if number else '<w:trPr><w:tblHeader/></w:trPr>'}{cells}</w:tr>"
    properties = f"<w:tblPr><w:tblBorders>{edges}</w:tblBorders></w:tblPr>"
    return f"<w:tbl>{properties}<w:tblGrid>{grid}</w:tblGrid>{rows}</w:tbl>"


# ---------------------------------------------------------------- HTML

LINKS = ("Home", "Instruments", "Repairs", "Rent an instrument", "Shop", "News", "Contact")
WEB_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>nav li {{ display: inline; margin-right: 1em }} main {{ max-width: 40em }}</style>
<script>document.documentElement.className = "js";</script>
</head>
<body>
<header><a href="/">{company}</a></header>
<nav aria-label="Main"><ul>{links}</ul></nav>
<main>
{body}
</main>
<aside><p>Subscribe to our letter</p><form><input name="mail"><button>Send</button></form></aside>
<footer><p>{company} | Imprint | Privacy | Cookie settings</p></footer>
</body>
</html>
"""


def web_page(source: str) -> bytes:
    """A web page with navigation, a side column and a footer around the text."""
    body = "\n".join(web_part(p) for p in parts(source))
    links = "".join(f'<li><a href="/{name.split()[0].lower()}">{name}</a></li>' for name in LINKS)
    return WEB_PAGE.format(title=next(parts(source)).text, company=COMPANY, links=links, body=body).encode()


def web_part(piece: Part) -> str:
    if piece.rows:
        head, *rows = (
            "<tr>" + "".join(f"<{tag}>{escape(c, quote=False)}</{tag}>" for c in row) + "</tr>"
            for tag, row in zip(["th", *["td"] * len(piece.rows)], piece.rows, strict=False)
        )
        return "\n".join(["<table>", f"<thead>{head}</thead>", "<tbody>", *rows, "</tbody>", "</table>"])
    tag = f"h{piece.level}" if piece.level else "p"
    return f"<{tag}>{escape(piece.text, quote=False)}</{tag}>"


OLDER = {  # what the care guide said before it was revised
    "Ten minutes a week are enough to follow all of it.": "A few minutes a week are enough for that.",
    "every ten days in winter": "every two weeks in winter",
    "is removed by us for 30 EUR": "is removed by us for 25 EUR",
    "the yearly check costs 20 EUR": "the yearly check costs 15 EUR",
    "Use five drops of our fingerboard oil": "Use a few drops of our fingerboard oil",
}


def older_web_page(source: str) -> bytes:
    """The care guide as it was some years ago: a near-copy with other figures and without its last section."""
    source = source[: source.rindex("\n## ")]
    for new, old in OLDER.items():
        if new not in source:
            raise ValueError(f"the care guide does not say '{new}': bring OLDER up to date")
        source = source.replace(new, old)
    return web_page(source)


# ---------------------------------------------------------------- mail


def mail(source: str, *, attached: Path) -> bytes:
    """A mail with a PDF attached; the source has the headers, an empty line and the text."""
    message = Parser(policy=email.policy.default.clone(linesep="\r\n")).parsestr(source)
    text = message.get_payload()
    message.set_content(text, cte="quoted-printable")
    content = pdf(attached.read_text(encoding="utf-8"))
    message.add_attachment(content, maintype="application", subtype="pdf", filename=f"{attached.stem}.pdf")
    message.set_boundary("=== estimate ===")
    return message.as_bytes()


# ---------------------------------------------------------------- pictures


def font(name: str, size: int):
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def scan(source: str) -> bytes:
    """One page of an old typed sheet as a scanner sees it, in a PDF without text: crooked, grey, speckled."""
    import numpy as np
    from PIL import Image, ImageDraw
    from reportlab.lib.utils import ImageReader
    from reportlab.pdfgen.canvas import Canvas

    width, height = 992, 1408  # A5 at 170 dpi
    page = Image.new("L", (width, height), 238)
    draw, y = ImageDraw.Draw(page), 110
    for number, line in enumerate(source.strip().split("\n")):
        face = font("DejaVuSerif-Bold.ttf" if number < 3 else "DejaVuSerif.ttf", 25 if number < 3 else 21)
        for row in wrapped(line, 62):
            draw.text((95, y), row, font=face, fill=45)
            y += 34
        y += 8
    page = page.rotate(0.6, resample=Image.Resampling.BICUBIC, fillcolor=238)
    grains = np.random.default_rng(0).normal(0, 9, (height, width))
    shadow = np.linspace(0, 22, width)[None, :] ** 1.05
    page = Image.fromarray(np.clip(np.asarray(page) + grains - shadow[:, ::-1] * 0.5, 0, 255).astype(np.uint8))
    picture, out = io.BytesIO(), io.BytesIO()
    page.save(picture, "JPEG", quality=45)
    canvas = Canvas(out, pagesize=PAGE, invariant=1)
    canvas.drawImage(ImageReader(picture), 0, 0, *PAGE)
    canvas.save()
    return out.getvalue()


def wrapped(line: str, most: int) -> list[str]:
    rows = [""]
    for word in line.split():
        if len(rows[-1]) + 1 + len(word) > most:
            rows.append("")
        rows[-1] = f"{rows[-1]} {word}".strip()
    return rows


def photographed(source: str) -> bytes:
    """A note on lined paper, written by hand as far as a slanted face with unsteady letters goes, photographed from a
    little to the side."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFilter

    random = np.random.default_rng(1)
    width, height = 1000, 820
    paper = Image.new("RGB", (width, height), (246, 238, 200))
    lines = ImageDraw.Draw(paper)
    for y in range(92, height, 62):
        lines.line((30, y, width - 30, y), fill=(196, 204, 214), width=2)
    face, y = font("STIXGeneralItalic.ttf", 43), 44
    for line in source.strip().split("\n"):
        x = 62 + random.uniform(-5, 9)
        for letter in line:
            if letter != " ":
                ink = Image.new("RGBA", (80, 90), (0, 0, 0, 0))
                ImageDraw.Draw(ink).text((20, 12), letter, font=face, fill=(28, 38, 92, 255))
                ink = ink.rotate(random.normal(1.0, 2.0), resample=Image.Resampling.BICUBIC)
                paper.paste(ink, (int(x) - 20, int(y + random.normal(0, 1.1)) - 12), ink)
            x += face.getlength(letter) + random.normal(1.2, 0.5) + (5 if letter == " " else 0)
        y += 62
    table = Image.new("RGB", (width + 160, height + 120), (112, 84, 60))
    table.paste(paper, (80, 60))
    corners = np.array([(26, 4), (6, 934), (1152, 926), (1140, 16)])
    photo = table.transform(
        table.size, Image.Transform.QUAD, corners.ravel().tolist(), resample=Image.Resampling.BICUBIC
    )
    light = np.linspace(1.04, 0.84, photo.width)[None, :, None] * np.linspace(1.0, 0.93, photo.height)[:, None, None]
    grains = random.normal(0, 4, (photo.height, photo.width, 1))
    photo = Image.fromarray(np.clip(np.asarray(photo) * light + grains, 0, 255).astype(np.uint8))
    out = io.BytesIO()
    photo = photo.resize((photo.width * 3 // 4, photo.height * 3 // 4), Image.Resampling.LANCZOS)
    photo.filter(ImageFilter.GaussianBlur(0.4)).save(out, "JPEG", quality=62)
    return out.getvalue()


# ---------------------------------------------------------------- which from which

SOURCES = WORKSHOP / "sources"
# Document → (its source, how it is made).
MADE: dict[str, tuple[str, Callable[[str], bytes]]] = {
    "handbook/employee-handbook.pdf": ("employee-handbook.md", pdf),
    "handbook/safety-rules.docx": ("safety-rules.md", docx),
    "handbook/glue-pot-rules.pdf": ("glue-pot-rules.txt", scan),
    "guides/care-guide.html": ("care-guide.md", web_page),
    "guides/string-guide.docx": ("string-guide.md", docx),
    "terms/warranty.pdf": ("warranty.md", pdf),
    "terms/rental-terms.docx": ("rental-terms.md", docx),
    "terms/delivery.html": ("delivery.md", web_page),
    "notes/wood-store-note.jpg": ("wood-store-note.txt", photographed),
    "mail/estimate-sandpiper.eml": ("mail/estimate.txt", partial(mail, attached=SOURCES / "estimate.md")),
    "archive/care-guide-2019.html": ("care-guide.md", older_web_page),
}


def main() -> None:
    """Make every file of `MADE`."""
    for name, (source, make) in MADE.items():
        target = WORKSHOP / "documents" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(make((SOURCES / source).read_text(encoding="utf-8")))
        print(f"{target.stat().st_size:>8,}  {name}")


if __name__ == "__main__":
    main()
