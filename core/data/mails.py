"""A question in a mail and the reply to it: what somebody really asked, and what was really answered.

The reply is found by its `In-Reply-To` header, or by its subject ("Re: …", "AW: …") and a later date; or the mail
quotes the question itself (`> When do you open?`). Greetings, signatures and quoted lines are left out. The question is
the sentence of the first mail that shares most words with the beginning of the reply.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime

from luthier.core.data.corpus import Document
from luthier.core.data.passages import Pair
from luthier.core.data.phrasings import wordings
from luthier.core.data.sentences import Rarity, content_words, facts_of, is_sentence, join_lines, sentence_spans

__all__ = ["mail_pairs"]

REPLY = re.compile(r"(?i)^\s*((re|aw|antw|sv)\s*(\[\d+\])?\s*:\s*)+")
GREETING = re.compile(
    r"(?i)^(dear|hi|hello|hey|good (morning|day|afternoon|evening)|sehr geehrte\w*|liebe\w*|hallo|"
    r"guten (tag|morgen|abend)|moin|grüezi|thank you for|thanks for|many thanks|danke für|"
    r"vielen dank|herzlichen dank)\b"
)
CLOSING = re.compile(
    r"(?i)^(--\s*$|best\b|kind regards|regards|yours|sincerely|cheers|many thanks|thanks[,!.]?$|mit freundlichen|"
    r"viele grüße|beste grüße|freundliche grüße|herzliche grüße|liebe grüße|mfg|lg\b|gruß)"
)
QUOTED = re.compile(
    r"(?i)^(>|on .{4,80} wrote:|am .{4,80} schrieb.{0,80}:|-{2,}\s*(original message|ursprüngliche nachricht))"
)
BODY = ("paragraph", "list", "note")
HEADER_LINE = re.compile(r"(?i)^(from|to|cc|bcc|subject|date|sent|reply-to|von|an|kopie|betreff|datum|gesendet)\s*:")


def mail_pairs(
    documents: Sequence[Document],
    headers: Mapping[str, Mapping[str, str]],
    *,
    rarity: Rarity,
    max_words: int,
) -> dict[str, list[Pair]]:
    """Pairs by the id of the replying document; `headers` maps a document's id to its mail headers."""
    mails = [d for d in documents if d.source.media_type in ("message/rfc822", "application/vnd.ms-outlook")]
    by_message = {headers.get(d.id, {}).get("message_id", ""): d for d in mails}
    found: dict[str, list[Pair]] = {}
    for reply in mails:
        asked = _asked_in(reply, mails, by_message, headers)
        questions = [q for text in asked for q in _questions(text)]
        answer = _answer(reply, max_words)
        if not questions or answer is None:
            continue
        start, end = answer
        text = join_lines(reply.text[start:end])
        words = set(content_words(text))
        question = max(questions, key=lambda q: len(words & set(content_words(q))))
        if not words & set(content_words(question)) and len(questions) > 1:
            continue
        facts = facts_of(text, question, rarity)
        if facts:
            asked_as = wordings("asked", reply.language or "en", {"question": question})
            found.setdefault(reply.id, []).append(Pair("mail", asked_as, text, tuple(facts), start, end))
    return found


def _asked_in(
    reply: Document,
    mails: Sequence[Document],
    by_message: Mapping[str, Document],
    headers: Mapping[str, Mapping[str, str]],
) -> list[str]:
    """The texts that a mail answers: the mail it replies to, or what it quotes."""
    own = headers.get(reply.id, {})
    earlier = by_message.get(own.get("in_reply_to") or "-")
    subject = own.get("subject") or reply.title
    if earlier is None and REPLY.match(subject):
        base = REPLY.sub("", subject).strip().casefold()
        same = [
            m
            for m in mails
            if m is not reply and (headers.get(m.id, {}).get("subject") or m.title).strip().casefold() == base
        ]
        earlier = next((m for m in sorted(same, key=lambda m: m.source.path) if not _later(m, reply, headers)), None)
    if earlier is not None and earlier is not reply:
        return ["\n".join(line for line, _ in _body(earlier))]
    quoted = [line.lstrip("> ") for line in reply.text.split("\n") if line.startswith(">")]
    return ["\n".join(quoted)] if quoted else []


def _later(a: Document, b: Document, headers: Mapping[str, Mapping[str, str]]) -> bool:
    """Whether mail `a` was sent after `b`; unknown dates say no."""
    try:
        first, second = (parsedate_to_datetime(headers[d.id]["date"]) for d in (a, b))
        return first.timestamp() > second.timestamp()
    except (KeyError, ValueError, TypeError):
        return False


def _body(mail: Document) -> Iterator[tuple[str, int]]:
    """(line, offset) of what the sender wrote, up to the closing or the quoted part."""
    for span in mail.spans:
        if span.block not in BODY:
            continue
        at = span.start
        for line in mail.text[span.start : span.end].split("\n"):
            if CLOSING.match(line.strip()) or QUOTED.match(line.strip()):
                return
            if not HEADER_LINE.match(line.strip()):
                yield line, at
            at += len(line) + 1


def _questions(text: str) -> list[str]:
    flat = join_lines(text)
    sentences = [flat[a:b] for a, b in sentence_spans(flat)]
    return [q for q in sentences if q.endswith("?") and 4 <= len(q.split()) <= 30 and len(content_words(q)) >= 2]


def _answer(reply: Document, max_words: int) -> tuple[int, int] | None:
    """The span of the reply's first sentences within `max_words`, greeting left out."""
    start = end = None
    for line, at in _body(reply):
        for a, b in sentence_spans(reply.text, at, at + len(line)):
            sentence = reply.text[a:b]
            if start is None and (GREETING.match(sentence) or not is_sentence(sentence)):
                continue
            if sentence.endswith("?") or not is_sentence(sentence):
                return None if start is None or end is None else (start, end)
            start = a if start is None else start
            if len(reply.text[start:b].split()) > max_words:
                return None if end is None else (start, end)
            end = b
    return None if start is None or end is None else (start, end)
