"""Character recognition for real, on pictures drawn in the test. Slow (a few seconds of one core a picture), so two."""

from __future__ import annotations

import io
import re
import socket
from pathlib import Path

import pytest

from luthier.core.data.readers.read import read_document

WORDS = [
    "The workshop opens at nine on weekdays.",
    "A new nut of bone costs 45 EUR with fitting.",
    "Ask Anna about it.",
]


def drawn(mode: str = "RGB"):
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (1000, 320), "white")
    for n, line in enumerate(WORDS):
        ImageDraw.Draw(image).text((40, 40 + 70 * n), line, fill="black", font=ImageFont.load_default(size=34))
    return image.convert(mode)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def test_a_photograph_held_on_its_head_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turned by half, with a note of the camera that says nothing of it; and nothing may be fetched for reading it."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    out = io.BytesIO()
    drawn().rotate(180).save(out, "PNG")
    found = read_document(Path("note.jpg"), out.getvalue())
    assert words(" ".join(b.text for b in found.blocks)) == words(" ".join(WORDS))
    assert {b.kind for b in found.blocks} == {"ocr"}
    assert found.media_type == "image/png"
    assert re.fullmatch(r"page 1: confidence (9\d|100)%", found.notes[0])


def test_a_photograph_that_the_camera_turned() -> None:
    from PIL import Image

    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # the top is at the right
    drawn("L").rotate(90, expand=True).save(out, "JPEG", exif=exif, quality=80)
    found = read_document(Path("note.jpg"), out.getvalue())
    assert words(" ".join(b.text for b in found.blocks)) == words(" ".join(WORDS))
