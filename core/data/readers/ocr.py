"""Reading pictures of text (OCR): scanned pages and photographs, with RapidOCR's models on onnxruntime.

Two small networks work in turn: one finds the stripes of the picture that hold text (DB, Liao et al. 2020), the other
reads each stripe from left to right (CTC, Graves et al. 2006) and says how sure it is. The models lie in the package's
wheel; nothing is fetched. What we add:

    turn        a page on its side shows stripes that are taller than wide, one on its head is read without confidence:
                the quarter turn that reads best is taken
    skew        the stripes' own slope is taken out before they are put into rows
    order       columns, rows and paragraphs by `layout`, like a PDF's
    confidence  the mean over all letters tells print (0.98) from handwriting that was guessed at (0.6 to 0.8): single
                lines below LEAST_LINE are dropped, whole pages below LEAST_CONFIDENCE are refused by the callers
"""

from __future__ import annotations

import logging
import math
import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from luthier.core.data.readers.layout import Paragraph, Segment, arrange

if TYPE_CHECKING:
    import numpy as np

__all__ = ["LEAST_CONFIDENCE", "Recognised", "recognise"]

LEAST_CONFIDENCE = 0.85
LEAST_LINE = 0.6
SURE = 0.92  # a mean confidence from which no other turn of the page is tried
LARGEST = 3000  # pixels on the longer side; more costs time and reads no better

_engine: Any = None


@dataclass
class Recognised:
    """The paragraphs of a picture and the mean confidence of its letters, 0 to 1."""

    paragraphs: list[Paragraph]
    confidence: float


def recognise(image: np.ndarray) -> Recognised:
    """Read a picture [height, width, 3] or [height, width] of bytes."""
    import numpy as np

    page = _prepared(image)
    lines, turned = _read(page), page
    if lines and (_confidence(lines) < SURE or _sideways(lines)):
        for quarters in (1, 3) if _sideways(lines) else (2,):
            other = np.ascontiguousarray(np.rot90(page, quarters))
            found = _read(other)
            if _score(found) > _score(lines) or _sideways(lines):
                lines, turned = found, other
            if _confidence(lines) > SURE:
                break
    confidence = _confidence(lines)
    lines = [line for line in lines if line[2] >= LEAST_LINE]
    paragraphs = arrange(_segments(lines), turned.shape[0])
    paragraphs = [replace(p, kind="ocr") if p.kind == "paragraph" else p for p in paragraphs]
    return Recognised(paragraphs, confidence)


def _prepared(image: np.ndarray) -> np.ndarray:
    """The picture in three colours and not larger than need be."""
    import numpy as np

    image = _shrunk(image)
    return np.ascontiguousarray(np.stack([image] * 3, axis=-1) if image.ndim == 2 else image[..., :3])


def _score(lines: list[tuple[Any, str, float]]) -> float:
    """How much was read, and how surely."""
    return sum(len(text) * confidence**4 for _, text, confidence in lines)


def _shrunk(image: np.ndarray) -> np.ndarray:
    longest = max(image.shape[:2])
    if longest <= LARGEST:
        return image
    import numpy as np
    from PIL import Image

    scale = LARGEST / longest
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def _confidence(lines: list[tuple[Any, str, float]]) -> float:
    letters = sum(len(text) for _, text, _ in lines)
    return sum(len(text) * confidence for _, text, confidence in lines) / letters if letters else 0.0


def _sideways(lines: list[tuple[Any, str, float]]) -> bool:
    """Whether most of the text stands in stripes that are taller than wide."""
    tall = sum(len(text) for box, text, _ in lines if len(text) > 2 and _height(box) > 1.5 * _width(box))
    return tall > 0.5 * sum(len(text) for _, text, _ in lines)


def _width(box: Any) -> float:
    return math.dist(box[0], box[1])


def _height(box: Any) -> float:
    return math.dist(box[0], box[3])


def _segments(lines: list[tuple[Any, str, float]]) -> list[Segment]:
    """Segments with the page's slope taken out."""
    slopes = [math.atan2(b[1][1] - b[0][1], b[1][0] - b[0][0]) for b, text, _ in lines if _width(b) > 4 * _height(b)]
    slope = statistics.median(slopes) if slopes else 0.0
    cos, sin = math.cos(-slope), math.sin(-slope)
    out = []
    for box, text, _ in lines:
        x = sum(p[0] for p in box) / 4
        y = sum(p[1] for p in box) / 4
        x, y = x * cos - y * sin, x * sin + y * cos
        tall = _height(box)
        wide = max(tall / 4, _width(box) - 0.25 * tall)  # boxes are drawn with a margin
        out.append(Segment(text, x - wide / 2, y - tall / 2, x + wide / 2, y + tall / 2, tall))
    size = statistics.median(s.size for s in out) if out else 0.0
    # boxes of one print differ by a pixel or two; what is near the usual height has it
    return [replace(s, size=size) if abs(s.size - size) < 0.25 * size else s for s in out]


def _read(image: np.ndarray) -> list[tuple[Any, str, float]]:
    """(four corners, text, confidence) of each stripe."""
    result = _loaded()(image, use_cls=False)
    if result.boxes is None or result.txts is None:
        return []
    return [
        ([(float(x), float(y)) for x, y in box], text, float(score))
        for box, text, score in zip(result.boxes, result.txts, result.scores, strict=True)
        if text.strip()
    ]


def _loaded() -> Any:
    """The engine, loaded once in a process (about a second)."""
    global _engine
    if _engine is None:
        from rapidocr import RapidOCR

        # text_score 0: what is dropped and what is refused is decided here
        _engine = RapidOCR(params={"Global.log_level": "critical", "Global.text_score": 0.0})
        logging.getLogger("RapidOCR").setLevel(logging.CRITICAL)
    return _engine
