"""What `look` saw as one HTML page that needs nothing else: no network, no library, no second file.

The template model_page.html draws; this file fills in one JSON object. Attention weights travel as bytes, 255 for 1.
"""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from luthier.core.show.model_look import Look

__all__ = ["model_page"]

TEMPLATE = Path(__file__).with_name("model_page.html")


def model_page(name: str, found: Look, piece: Callable[[int], str]) -> str:
    """The page for a model called `name`; `piece` spells a token for a person."""
    import torch

    L, H, T, _ = found.maps_LHTT.shape
    maps = (found.maps_LHTT * 255).round().to(torch.uint8).cpu().numpy().tobytes()
    total = float(found.bits_T.sum())
    data: dict[str, Any] = {
        "tokens": [piece(i) for i in found.ids],
        "bits": _short(found.bits_T),
        "rank": found.rank_T.tolist(),
        "best": [[piece(i) for i in row] for row in found.best_TN.tolist()],
        "chance": _short(found.chance_TN),
        "said": [[piece(i) for i in row] for row in found.said_LT.tolist()],
        "sure": _short(found.sure_LT),
        "right": _short(found.right_LT),
        "layers": L,
        "heads": H,
        "maps": base64.b64encode(maps).decode(),
    }
    lead = f"{name}: {L} layers of {H} heads read {T:,} tokens; {total / T:.2f} bits a token"
    page = TEMPLATE.read_text(encoding="utf-8").replace("$lead", html.escape(lead))
    return page.replace("$data", json.dumps(data, ensure_ascii=False).replace("</", "<\\/"))


def _short(tensor: Any) -> Any:
    """Nested lists of numbers with four digits that count."""
    values = tensor.tolist()
    cut = lambda v: float(f"{v:.4g}")  # noqa: E731
    return [[cut(v) for v in row] for row in values] if tensor.dim() == 2 else [cut(v) for v in values]
