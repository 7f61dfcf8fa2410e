"""Outlook messages (.msg): an OLE file with one stream a property ([MS-OXMSG]).

`__substg1.0_0037001F` holds property 0037 (the subject) as type 001F (UTF-16 text; 001E one-byte text, 0102 bytes).
Times are in `__properties_version1.0`, 16 bytes an entry after its header. Each attachment is a folder of its own.
"""

from __future__ import annotations

import re
import struct
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

from luthier.core.data.readers.mail import header_block, mail_text
from luthier.core.data.readers.ole import OleFile
from luthier.core.data.readers.plain import decode
from luthier.core.data.readers.read import Block, Extracted

__all__ = ["read_msg"]

SUBJECT, BODY, HTML, SENDER, SENDER_ADDRESS, TO, CC, SENT, ID, REPLY_TO = (
    *("0037", "1000", "1013", "0C1A", "5D01", "0E04", "0E03", "0039", "1035", "1042"),
)
NAME, SHORT_NAME, CONTENT, HEADERS = "3707", "3704", "3701", "007D"


def read_msg(file: Path, data: bytes) -> Extracted:
    ole = OleFile(file, data)
    address = _string(ole, "", SENDER_ADDRESS)
    sender = _string(ole, "", SENDER)
    headers = {
        "From": f"{sender} <{address}>" if sender and address and address != sender else sender or address,
        "To": _string(ole, "", TO),
        "Cc": _string(ole, "", CC),
        "Date": _sent(ole),
        "Subject": _string(ole, "", SUBJECT),
    }
    ids = {"message_id": _string(ole, "", ID), "in_reply_to": _string(ole, "", REPLY_TO)}
    metadata = {**ids, **{k.lower(): v for k, v in headers.items()}}
    notes: list[str] = []
    attachments = _attachments(ole, notes)
    blocks = [header_block(headers, [name for name, _ in attachments]), *_body(ole, notes)]
    metadata = {k: v for k, v in metadata.items() if v}
    return Extracted(blocks, "application/vnd.ms-outlook", headers["Subject"], notes, metadata, attachments)


def _string(ole: OleFile, folder: str, property_: str) -> str:
    if wide := ole.read(f"{folder}__substg1.0_{property_}001F"):
        return wide.decode("utf-16-le", "replace").strip("\0").strip()
    return decode(ole.read(f"{folder}__substg1.0_{property_}001E")).strip("\0").strip()


def _sent(ole: OleFile) -> str:
    """When the message was sent, as mails write it; empty if it was not."""
    entries = ole.read("__properties_version1.0")[32:]
    for start in range(0, len(entries) - 15, 16):
        tag, _, value = struct.unpack_from("<IIQ", entries, start)
        if tag >> 16 in (int(SENT, 16), 0x0E06) and tag & 0xFFFF == 0x40 and value:
            try:
                return format_datetime(datetime(1601, 1, 1, tzinfo=UTC) + timedelta(microseconds=value // 10))
            except OverflowError:
                return ""
    return ""


def _body(ole: OleFile, notes: list[str]) -> list[Block]:
    text = _string(ole, "", BODY).replace("\r\n", "\n")
    if text:
        return mail_text(text)
    html = ole.read(f"__substg1.0_{HTML}0102") or ole.read(f"__substg1.0_{HTML}001F").decode("utf-16-le").encode()
    if html:
        from luthier.core.data.readers.html import html_blocks, parse

        return html_blocks(parse(decode(html)), quotes=True, main_only=False)
    if ole.read("__substg1.0_10090102"):
        notes.append("the message's text is compressed rich text, which is not read")
    return []


def _attachments(ole: OleFile, notes: list[str]) -> list[tuple[str, bytes]]:
    found = []
    for folder in sorted({n.split("/")[0] for n in ole.names() if re.match(r"__attach_version1\.0_#", n)}):
        name = _string(ole, folder + "/", NAME) or _string(ole, folder + "/", SHORT_NAME) or "attachment"
        content = ole.read(f"{folder}/__substg1.0_{CONTENT}0102")
        if content:
            found.append((name, content))
        elif any(n.startswith(f"{folder}/__substg1.0_{CONTENT}000D/") for n in ole.names()):
            notes.append(f"the message attached as {name} is not read")
    return found
