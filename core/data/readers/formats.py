"""What format is it? The first bytes, what lies in a zip or an OLE file, the look of a text, and last the name.

Many formats say at their beginning what they are (`%PDF`, `PK`, `{\\rtf`). Office files since 2007, OpenDocument and
EPUB are all zip archives, told apart by the parts in them; Office files before 2007, Outlook messages and
password-protected office files are all OLE containers, told apart by their streams. Texts have no mark: HTML and mail
are known by their look, Markdown, tables and code by name.
"""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

from luthier.core.errors import DocumentError

__all__ = ["format_of"]

IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*")
# Formats that are known and not read: (first bytes, what it is, what to do)
FOREIGN = [
    (b"\x1f\x8b", "a gzip archive", "Unpack it."),
    (b"7z\xbc\xaf", "a 7z archive", "Unpack it."),
    (b"Rar!", "a RAR archive", "Unpack it."),
    (b"BZh", "a bzip2 archive", "Unpack it."),
    (b"\xfd7zXZ", "an xz archive", "Unpack it."),
    (b"%!PS", "PostScript", "Convert it to PDF."),
    (b"ID3", "an audio file", "Only text is read."),
    (b"OggS", "an audio or video file", "Only text is read."),
    (b"fLaC", "an audio file", "Only text is read."),
    (b"\x7fELF", "a program", "Only documents are read."),
    (b"MZ", "a program", "Only documents are read."),
    (b"SQLite format 3", "a database", "Export its tables as CSV."),
    (b"PAR1", "a Parquet table", "Export it as CSV."),
]
ARCHIVE_PARTS = [  # (part in the zip, format)
    ("word/document.xml", "docx"),
    ("ppt/presentation.xml", "pptx"),
    ("xl/workbook.xml", "xlsx"),
    ("META-INF/container.xml", "epub"),
]
ARCHIVE_TYPES = {
    "application/epub+zip": "epub",
    "application/vnd.oasis.opendocument.text": "odt",
    "application/vnd.oasis.opendocument.text-template": "odt",
    "application/vnd.oasis.opendocument.spreadsheet": "ods",
    "application/vnd.oasis.opendocument.presentation": "odp",
}
SUFFIXES = {
    "markdown": (".md", ".markdown", ".mkd", ".mdown", ".mdx", ".qmd"),
    "csv": (".csv", ".tsv", ".tab", ".psv"),
    "html": (".html", ".htm", ".xhtml"),
    "eml": (".eml", ".mht", ".mhtml"),
    "code": (
        *(".py", ".js", ".ts", ".java", ".c", ".h", ".cpp", ".cs", ".go", ".rs", ".rb", ".php", ".sh", ".sql", ".r"),
        *(".json", ".jsonl", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".css", ".bat", ".ps1", ".xml", ".svg"),
    ),
}
MAIL_HEADERS = {"from", "to", "subject", "date", "message-id", "mime-version", "received", "return-path", "sender"}


def format_of(file: Path, data: bytes) -> str:
    """The format of `data`, a key of READERS in read.py. Raises DocumentError for what no reader reads."""
    head = data[:4096]
    if b"%PDF-" in head[:1024]:
        return "pdf"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")):
        return _in_zip(file, data)
    if head.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        return _in_ole(file, data)
    if head.lstrip().startswith(b"{\\rtf"):
        return "rtf"
    if head.startswith(IMAGES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return "image"
    for magic, what, hint in FOREIGN:
        if head.startswith(magic):
            raise _unknown(file, what, hint)
    if head[4:8] == b"ftyp":
        picture = head[8:12] in (b"heic", b"heix", b"mif1", b"avif")
        raise _unknown(file, *(("a HEIC photo", "Save it as JPEG.") if picture else ("a video", "Only text is read.")))
    return _text_format(file, data)


def _unknown(file: Path, what: str, hint: str) -> DocumentError:
    return DocumentError("unknown-format", f"{file}: looks like {what}, which is not read\n{hint}")


# ---------------------------------------------------------------- containers


def _in_zip(file: Path, data: bytes) -> str:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = {name.replace("\\", "/") for name in archive.namelist()}
            kind = archive.read("mimetype").decode("ascii", "replace").strip() if "mimetype" in names else ""
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError, ValueError) as error:
        raise DocumentError("unreadable", f"{file}: a damaged zip archive or office file: {error}") from error
    if kind in ARCHIVE_TYPES:
        return ARCHIVE_TYPES[kind]
    for part, found in ARCHIVE_PARTS:
        if part in names:
            return found
    for prefix, found in (("word/document", "docx"), ("ppt/presentation", "pptx"), ("xl/workbook", "xlsx")):
        if any(re.fullmatch(prefix + r"\d*\.xml", name) for name in names):
            return found
    if "xl/workbook.bin" in names:
        raise _unknown(file, "a binary Excel workbook (.xlsb)", "Save it as .xlsx.")
    raise _unknown(file, f"a zip archive of {len(names)} files", "Unpack it and collect the folder.")


def _in_ole(file: Path, data: bytes) -> str:
    from luthier.core.data.readers.ole import OleFile

    names = set(OleFile(file, data).names())
    if "EncryptedPackage" in names or "EncryptionInfo" in names:
        raise DocumentError("encrypted", f"{file}: protected by a password\nSave a copy without it.")
    if "__properties_version1.0" in names:
        return "msg"
    for stream, what, hint in (
        ("WordDocument", "an old Word document (.doc)", "Save it as .docx."),
        ("Workbook", "an old Excel workbook (.xls)", "Save it as .xlsx."),
        ("Book", "an old Excel workbook (.xls)", "Save it as .xlsx."),
        ("PowerPoint Document", "an old PowerPoint presentation (.ppt)", "Save it as .pptx."),
    ):
        if stream in names:
            raise _unknown(file, what, hint)
    raise _unknown(file, "an OLE container of unknown content", "Save it in a newer format.")


# ---------------------------------------------------------------- texts


def _text_format(file: Path, data: bytes) -> str:
    from luthier.core.data.readers.plain import is_text

    if not is_text(data):
        begins = data[:8].hex(" ")
        raise _unknown(file, f"binary data (it begins {begins})", "Save it as PDF, .docx or text.")
    head = data[:4096].replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n").decode("latin-1").lower()
    suffix = file.suffix.lower()
    if suffix in SUFFIXES["eml"] or _is_mail(head, suffix):
        return "eml"
    if re.match(r"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype html|html[\s>])", head, re.DOTALL):
        return "html"
    for name, suffixes in SUFFIXES.items():
        if suffix in suffixes:
            return name
    if head.startswith("<?xml"):
        return "code"
    return "html" if re.match(r"<(head|body|div|p|h1|table|meta|title)[\s>]", head) else "plain"


def _is_mail(head: str, suffix: str) -> bool:
    """Whether a text begins like a mail: at least three headers that mails have, without a name that says otherwise."""
    if suffix in SUFFIXES["markdown"] or suffix in SUFFIXES["code"]:
        return False
    names = re.findall(r"^([a-z][a-z0-9-]*):(?=\s)", re.split(r"\r?\n\r?\n", head, maxsplit=1)[0], re.MULTILINE)
    return bool(re.match(r"[a-z][a-z0-9-]*:\s", head)) and len(MAIL_HEADERS & set(names)) >= 3
