"""Mails: headers, the text that was written, attachments; and the rule for mail pairs finds its question in them."""

from __future__ import annotations

import struct
from email.message import EmailMessage
from pathlib import Path

import pytest

from luthier.core.data.clean import assemble, clean_blocks
from luthier.core.data.corpus import Document, Source
from luthier.core.data.mails import mail_pairs
from luthier.core.data.readers.read import Extracted, read_document
from luthier.core.data.sentences import Rarity


def mail(body: str, subject: str = "Neck", **headers: str) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "Anna Berg <anna@x.example>", "shop@x.example", subject
    message["Date"] = "Mon, 04 Mar 2024 09:15:00 +0100"
    for name, value in headers.items():
        message[name.replace("_", "-")] = value
    message.set_content(body)
    return message


def read(message: EmailMessage | bytes) -> Extracted:
    return read_document(Path("a.eml"), message if isinstance(message, bytes) else message.as_bytes())


def texts(extracted: Extracted) -> list[tuple[str, str]]:
    return [(b.kind, b.text) for b in extracted.blocks]


def test_headers_text_and_attachments() -> None:
    message = mail("Guten Tag,\n\nich frage wegen des Halses – größer?\n\n- eins\n- zwei\n", "Über den Hals",
                   Message_ID="<1@x>", In_Reply_To="<0@x>")  # fmt: skip
    message.add_attachment(b"Teil;Preis\nSattel;5", maintype="text", subtype="csv", filename="Preise für März.csv")
    message.add_attachment(b"%PDF-1.4", maintype="application", subtype="pdf", filename="plan.pdf")
    inner = mail("The inner text.", "Inner: one/two")
    message.add_attachment(inner)
    found = read(message)
    assert found.title == "Über den Hals"
    assert found.media_type == "message/rfc822"
    assert found.metadata == {
        "message_id": "<1@x>",
        "in_reply_to": "<0@x>",
        "from": "Anna Berg <anna@x.example>",
        "to": "shop@x.example",
        "date": "Mon, 04 Mar 2024 09:15:00 +0100",
        "subject": "Über den Hals",
    }
    names = [name for name, _ in found.attachments]
    assert names == ["Preise für März.csv", "plan.pdf", "Inner_ one_two.eml"]
    assert found.attachments[0][1] == b"Teil;Preis\nSattel;5"
    assert texts(found) == [
        (
            "header",
            (
                "From: Anna Berg <anna@x.example>\nTo: shop@x.example\nDate: 2024-03-04 09:15\nSubject: Über den Hals\n"
                "Attachments: Preise für März.csv, plan.pdf, Inner_ one_two.eml"
            ),
        ),
        ("paragraph", "Guten Tag,"),
        ("paragraph", "ich frage wegen des Halses – größer?"),
        ("list", "- eins\n- zwei"),
    ]
    assert texts(read(found.attachments[2][1]))[1] == ("paragraph", "The inner text.")


def test_plain_is_preferred_and_html_is_read_where_it_says_more() -> None:
    both = mail("The plain words are here.")
    both.add_alternative("<p>The <b>plain</b> words are here.</p>", subtype="html")
    assert texts(read(both))[1:] == [("paragraph", "The plain words are here.")]
    empty = mail("See HTML.")
    empty.add_alternative(
        "<p>We open at nine on all weekdays.</p><blockquote><p>When do you open?</p></blockquote>"
        "<table><tr><th>Day</th><th>Time</th></tr><tr><td>Mo</td><td>9</td></tr></table>",
        subtype="html",
    )
    assert texts(read(empty))[1:] == [
        ("paragraph", "We open at nine on all weekdays."),
        ("paragraph", "> When do you open?"),
        ("table", "| Day | Time |\n| --- | --- |\n| Mo | 9 |"),
    ]


@pytest.mark.parametrize(
    "head",
    [
        b'Content-Type: text/plain; charset="utf-8"\nContent-Transfer-Encoding: quoted-printable\n\nGr=C3=B6=\n=C3=9Fe',
        b"Content-Type: text/plain; charset=iso-8859-1\nContent-Transfer-Encoding: base64\n\nR3L232U=",
        b"Content-Type: text/plain; charset=us-ascii\n\nGr\xf6\xdfe",
        b"Content-Type: text/plain; charset=no-such\n\nGr\xc3\xb6\xc3\x9fe",
    ],
)
def test_encodings_of_the_text(head: bytes) -> None:
    found = read(b"From: a@x.example\nTo: b@x.example\nSubject: =?utf-8?q?Gr=C3=B6=C3=9Fe?=\n" + head)
    assert found.title == "Größe"
    assert found.blocks[-1].text == "Größe"


def test_flowed_lines_are_joined_and_quotes_stay_apart() -> None:
    raw = (
        b"From: a@x.example\nTo: b@x.example\nSubject: s\nContent-Type: text/plain; format=flowed\n\n"
        b"We open at nine \non weekdays.\n> When do you \n> open?\nSee you.\n-- \nAnna"
    )
    assert [b.text for b in read(raw).blocks[1:]] == [
        "We open at nine on weekdays.",
        "> When do you\n> open?",
        "See you.\n--\nAnna",
    ]


def test_odd_headers_do_not_stop_the_mail() -> None:
    raw = (
        b"From: \xff\xfe <broken\nTo: undisclosed-recipients:;\nSubject: \xe4h\nDate: some day\n\nThe text stands here."
    )
    found = read(raw)
    assert found.blocks[-1].text == "The text stands here."
    assert found.metadata["date"] == "some day"
    assert found.title == "äh"


def as_document(extracted: Extracted, name: str) -> Document:
    text, spans = assemble(clean_blocks(extracted.blocks).blocks)
    return Document(
        name, text, Source(name, "0" * 64, extracted.media_type), spans, title=extracted.title, language="en"
    )


def test_the_mail_rule_finds_question_and_answer_in_what_is_read() -> None:
    first = read(
        mail(
            "Hello,\n\nI own one. How long is the warranty on the neck? It seems fine.\n\nBest\nAnna",
            Message_ID="<1@x>",
        )
    )
    reply = read(
        mail(
            "Dear Anna,\n\nThe warranty on the neck is five years.\n\nKind regards\nBen\n\n"
            "On Monday Anna wrote:\n> how long is the warranty on the neck?\n",
            "Re: Neck",
            Message_ID="<2@x>",
            In_Reply_To="<1@x>",
        )
    )
    documents = [as_document(first, "a.eml"), as_document(reply, "b.eml")]
    headers = {"a.eml": first.metadata, "b.eml": reply.metadata}
    (pair,) = mail_pairs(documents, headers, rarity=Rarity({}, 1), max_words=40)["b.eml"]
    assert pair.wordings.question == "How long is the warranty on the neck?"
    assert pair.answer == "The warranty on the neck is five years."


def test_an_outlook_message() -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("formats_fixture", Path(__file__).with_name("test_formats.py"))
    assert spec
    assert spec.loader
    fixture = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fixture)

    def wide(text: str) -> bytes:
        return text.encode("utf-16-le")

    sent = int((1_709_540_100 + 11_644_473_600) * 1e7)  # 2024-03-04 08:15 UTC in Windows' count
    properties = b"\0" * 32 + struct.pack("<IIQ", 0x00390040, 6, sent)
    data = fixture.ole(
        {
            "__properties_version1.0": properties,
            "__substg1.0_0037001F": wide("Größe"),
            "__substg1.0_1000001F": wide("Hello,\r\n\r\nhow wide is it?\r\n"),
            "__substg1.0_0C1A001F": wide("Anna"),
            "__substg1.0_0E04001E": b"shop@x.example",
            "__substg1.0_1035001F": wide("<1@x>"),
            "__attach_version1.0_#00000000/__substg1.0_3707001F": wide("list.csv"),
            "__attach_version1.0_#00000000/__substg1.0_37010102": b"a,b\n1,2",
        }
    )
    found = read_document(Path("a.msg"), data)
    assert found.media_type == "application/vnd.ms-outlook"
    assert found.metadata["message_id"] == "<1@x>"
    assert found.attachments == [("list.csv", b"a,b\n1,2")]
    assert texts(found) == [
        ("header", "From: Anna\nTo: shop@x.example\nDate: 2024-03-04 08:15\nSubject: Größe\nAttachments: list.csv"),
        ("paragraph", "Hello,"),
        ("paragraph", "how wide is it?"),
    ]
