"""Large vocabularies load once from their files and then from a cache.

Two hundred thousand tokens are a second's work to read: base64 or JSON to take apart, merges to find, everything to
check. What comes out depends on the bytes of the files (and on the pattern and special tokens given with them) alone,
so it is kept as plain arrays under the SHA-256 of those, in `$LUTHIER_CACHE/tokenizers` (by default
`~/.cache/luthier/tokenizers`). Another byte in a file is another key; a cache that is damaged is made anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

from luthier.tokenizers.bpe import Tokenizer
from luthier.tokenizers.bpe_encode import Row

__all__ = ["cache_folder", "through_cache"]

FORMAT: Final = 2  # raised whenever a stored tokenizer would have to look different
WORTH_IT: Final = 50_000  # tokens; smaller vocabularies load at once
KEPT: Final = 32  # tokenizers, those used last
SETTINGS: Final = (
    *("pattern", "special_tokens", "added_tokens", "normalizer", "whole_pieces"),
    *("eos_token", "pad_token", "chat_template", "kept"),
)


def cache_folder() -> Path:
    """Where loaded vocabularies are kept."""
    return Path(os.environ.get("LUTHIER_CACHE") or Path.home() / ".cache" / "luthier") / "tokenizers"


def through_cache(parts: list[Any], build: Callable[[], Tokenizer]) -> Tokenizer:
    """The tokenizer that `build` makes from `parts` (bytes of files, and what JSON can say): from the cache if it was
    made before."""
    digest = hashlib.sha256(b"%d" % FORMAT)
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True, default=str).encode()
        digest.update(b"%d:" % len(data) + data)
    file = cache_folder() / f"{digest.hexdigest()}.npz"
    if (found := _read(file)) is not None:
        return found
    tokenizer = build()
    if isinstance(tokenizer, Tokenizer) and tokenizer.vocab_size >= WORTH_IT:
        try:
            _write(file, tokenizer)
        except OSError as error:  # a home that cannot be written to costs time, not results
            logging.getLogger("luthier").debug("%s: not written: %s", file, error)
    return tokenizer


def _read(file: Path) -> Tokenizer | None:
    try:
        with np.load(file) as arrays:
            letters, ends = arrays["letters"].tobytes(), arrays["ends"].tolist()
            tokens = [letters[begin:end] for begin, end in pairwise([0, *ends])]
            settings = json.loads(arrays["settings"].tobytes())
            made = {name: arrays[name] for name in ("joined", "ranks")}
            row = Row(*(arrays[f"row_{name}"] for name in Row._fields))
            found = Tokenizer(tokens, arrays["merges"], row=row, **made, **settings)
        os.utime(file)
        return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logging.getLogger("luthier").debug("%s: made anew: %s", file, error)
        return None


def _write(file: Path, tokenizer: Tokenizer) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    settings = json.dumps({name: getattr(tokenizer, name) for name in SETTINGS}).encode()
    temporary = file.with_name(f".{file.stem}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            np.savez(
                stream,
                letters=np.frombuffer(b"".join(tokenizer.tokens), np.uint8),
                ends=np.cumsum([*map(len, tokenizer.tokens)]),
                merges=tokenizer.merges,
                joined=tokenizer.joined,
                ranks=tokenizer.order,
                row_letters=tokenizer.row.letters,
                row_ends=tokenizer.row.ends,
                row_ids=tokenizer.row.ids,
                settings=np.frombuffer(settings, np.uint8),
            )
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    for old in sorted(file.parent.glob("*.npz"), key=lambda f: f.stat().st_mtime)[:-KEPT]:
        old.unlink(missing_ok=True)
