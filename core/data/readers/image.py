"""Pictures: scans, photographs, faxes of several pages. Pillow opens them, the camera's note turns them."""

from __future__ import annotations

import io
from pathlib import Path

from luthier.core.data.readers.layout import Paragraph
from luthier.core.data.readers.read import Block, Extracted
from luthier.core.errors import DocumentError

__all__ = ["read_image"]

MOST_PIXELS = 200_000_000  # a poster at 600 dpi; more is a bomb or a map
SMALL = 900  # pixels: shorter pictures are doubled in size, as letters of a few pixels cannot be read


def read_image(file: Path, data: bytes) -> Extracted:
    """The text of a picture, one page a frame. Raises DocumentError where it cannot be read with confidence."""
    import numpy as np
    from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

    from luthier.core.data.readers.ocr import LEAST_CONFIDENCE, recognise
    from luthier.core.data.readers.pdf import headed_blocks

    try:
        picture = Image.open(io.BytesIO(data))
        if picture.width * picture.height > MOST_PIXELS:
            raise DocumentError("unreadable", f"{file}: {picture.width} x {picture.height} pixels are too many to read")
        out = Extracted([], Image.MIME.get(picture.format or "", "image"))
        pages: list[list[Paragraph]] = []
        best = 0.0
        many = picture.format in ("TIFF",)
        for number, frame in enumerate(ImageSequence.Iterator(picture) if many else [picture], 1):
            upright = ImageOps.exif_transpose(frame) or frame
            found = recognise(np.asarray(_enlarged(_on_white(upright))))
            best = max(best, found.confidence)
            if found.paragraphs and found.confidence < LEAST_CONFIDENCE:
                out.notes.append(
                    f"page {number}: left out, recognised with a confidence of only {found.confidence:.0%}"
                )
                pages.append([])
                continue
            note = f"confidence {found.confidence:.0%}" if found.paragraphs else "no text recognised"
            out.notes.append(f"page {number}: {note}")
            pages.append(found.paragraphs)
    except UnidentifiedImageError as error:  # whose own text names a place in memory, another one each time
        raise DocumentError("unreadable", f"{file}: a damaged picture: it cannot be opened") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DocumentError("unreadable", f"{file}: a damaged picture: {error}") from error
    out.blocks = headed_blocks(pages)
    if not out.blocks and best > 0:
        message = f"{file}: recognised with a confidence of {best:.0%}, below {LEAST_CONFIDENCE:.0%}"
        how = "Photograph or scan it again, larger or sharper."
        raise DocumentError("low-confidence", f"{message}\n{how}", round(best, 4))
    if len(pages) == 1:
        out.blocks = [Block(b.text, b.kind, 1, b.level) for b in out.blocks]
    return out


def _on_white(picture):
    """The picture in colours, transparent parts white."""
    from PIL import Image

    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")


def _enlarged(picture):
    if max(picture.size) >= SMALL:
        return picture
    from PIL import Image

    return picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.LANCZOS)
