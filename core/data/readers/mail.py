"""E-mail (RFC 5322, MIME): headers, the text that was written, and the attachments as documents of their own.

A mail is a tree of parts. Of alternatives the plain text is read, unless it is empty or says nothing beside the HTML.
Header fields come as `header` block and as metadata, from which replies are found (core/data/mails.py). Quoted lines
keep their `> `, so that what was asked and what was answered stay apart.
"""

from __future__ import annotations

import email
import email.policy
import re
from email.message import EmailMessage
from email.utils import parsedate_to_datetime
from pathlib import Path

from luthier.core.data.readers.plain import decode, paragraphs
from luthier.core.data.readers.read import Block, Extracted

__all__ = ["header_block", "mail_text", "read_eml"]

SHOWN = ("From", "To", "Cc", "Date", "Subject")


def read_eml(file: Path, data: bytes) -> Extracted:
    from luthier.core.data.readers.plain import encoding_of

    if encoding_of(data).startswith("utf-16"):
        data = decode(data).encode("utf-8")
    message = email.message_from_bytes(data.lstrip(), policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    headers = {name: _header(message, name) for name in (*SHOWN, "Message-ID", "In-Reply-To", "References")}
    notes: list[str] = []
    body, attachments = _parts(message, notes)
    blocks = [header_block(headers, [name for name, _ in attachments]), *body]
    out = Extracted(blocks, "message/rfc822", headers["Subject"], notes, _metadata(headers), attachments)
    return out


def _header(message: EmailMessage, name: str) -> str:
    """A header's text, decoded; damaged ones as they stand."""
    try:
        value = str(message.get(name, "") or "")
    except (ValueError, IndexError, LookupError, AttributeError, TypeError):  # the parser stumbles over odd ones
        value = "\ufffd"
    if "\ufffd" in value:
        value = next((str(v) for k, v in message.raw_items() if k.lower() == name.lower()), "")
    try:
        value = value.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        value = value.encode("utf-8", "surrogateescape").decode("cp1252", "replace")
    return " ".join(value.split())


def _metadata(headers: dict[str, str]) -> dict[str, str]:
    ids = {"message_id": headers["Message-ID"], "in_reply_to": headers["In-Reply-To"]}
    if not ids["in_reply_to"] and headers["References"]:
        ids["in_reply_to"] = headers["References"].split()[-1]
    fields = {name.lower(): headers[name] for name in SHOWN}
    return {key: value for key, value in {**ids, **fields}.items() if value}


def header_block(headers: dict[str, str], attachments: list[str]) -> Block:
    """Who wrote to whom, when, about what, and what was attached."""
    lines = [f"{name}: {headers[name]}" for name in SHOWN if headers.get(name)]
    try:
        date = parsedate_to_datetime(headers["Date"]).strftime("%Y-%m-%d %H:%M")
        lines = [f"Date: {date}" if line.startswith("Date: ") else line for line in lines]
    except (KeyError, ValueError, TypeError):
        pass
    if attachments:
        lines.append(f"Attachments: {', '.join(attachments)}")
    return Block("\n".join(lines), "header")


# ---------------------------------------------------------------- parts


def _parts(message: EmailMessage, notes: list[str]) -> tuple[list[Block], list[tuple[str, bytes]]]:
    plain: list[str] = []
    html: list[str] = []
    attachments: list[tuple[str, bytes]] = []
    for part in _leaves(message):
        kind, name = part.get_content_type(), _file_name(part)
        if kind == "message/rfc822":
            inner = part.get_payload()
            if isinstance(inner, list) and inner and isinstance(inner[0], EmailMessage):
                title = " ".join(str(inner[0].get("subject") or "message").split())
                attachments.append((name or re.sub(r"[^\w .-]", "_", title)[:80] + ".eml", inner[0].as_bytes()))
        elif kind in ("text/plain", "text/html") and not name and part.get_content_disposition() != "attachment":
            (plain if kind == "text/plain" else html).append(_text(part, notes))
        elif kind.startswith("image/") and part.get_content_disposition() != "attachment" and part.get("Content-ID"):
            notes.append(f"picture {name or kind} inside the mail left out")  # a logo, a signature
        else:
            content = part.get_payload(decode=True)
            if isinstance(content, bytes) and content.strip():
                attachments.append((name or f"attachment-{len(attachments) + 1}{_suffix(kind)}", content))
    return _body(plain, html), attachments


def _leaves(message: EmailMessage) -> list[EmailMessage]:
    if message.get_content_type() == "message/rfc822" or not message.is_multipart():
        return [message]
    return [leaf for part in message.iter_parts() if isinstance(part, EmailMessage) for leaf in _leaves(part)]


def _file_name(part: EmailMessage) -> str:
    try:
        return " ".join((part.get_filename() or "").split())
    except (ValueError, LookupError, AttributeError, TypeError):
        return ""


def _suffix(kind: str) -> str:
    import mimetypes

    return mimetypes.guess_extension(kind) or ".bin"


def _text(part: EmailMessage, notes: list[str]) -> str:
    content = part.get_payload(decode=True)
    content = content if isinstance(content, bytes) else b""
    charset = part.get_content_charset()
    if charset and charset not in ("us-ascii", "ascii"):
        try:
            content.decode(charset)
        except (LookupError, ValueError):
            notes.append(f"encoding {charset} as declared does not fit; guessed")
    else:
        charset = None
    text = decode(content, charset)
    return _flow(text) if (part.get_param("format") or "").lower() == "flowed" else text  # type: ignore[union-attr]


def _flow(text: str) -> str:
    """Join the lines of `format=flowed` (RFC 3676): a space at a line's end says that the paragraph goes on."""
    text = re.sub(r"^ ", "", text, flags=re.MULTILINE)  # stuffed
    return re.sub(r"(?m)^(?!-- $)(?!>)(.*\S) \n(?![>\n])", r"\1 ", text)


def _body(plain: list[str], html: list[str]) -> list[Block]:
    """The plain text, or the HTML where there is none or where it says much more."""
    written = mail_text("\n\n".join(plain))
    if html and len(_words(plain)) < 0.3 * len(_words(html)):
        from luthier.core.data.readers.html import html_blocks, parse

        rich = [b for markup in html for b in html_blocks(parse(markup), quotes=True, main_only=False)]
        return rich if len(_words([b.text for b in rich])) > len(_words(plain)) else written
    return written


def _words(texts: list[str]) -> list[str]:
    return re.findall(r"\w{2,}", re.sub(r"<[^>]*>", " ", " ".join(texts)))


def mail_text(text: str) -> list[Block]:
    """Blocks of a plain mail; quoted lines are paragraphs of their own."""
    blocks = []
    for part in re.split(r"(?m)((?:^[ \t]*>.*\n?)+)", text):
        if re.match(r"[ \t]*>", part):
            lines = [line.strip() for line in part.strip().split("\n")]
            lines = [line for line in lines if line.strip("> ")]
            blocks.append(Block("\n".join(lines), "paragraph"))
        else:
            blocks += paragraphs(part)
    return [b for b in blocks if b.text.strip()]
