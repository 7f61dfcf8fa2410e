"""The tokenizers that the benchmark races, each behind the same few calls, so that a case is written once for all.

A peer is what its package offers at its fastest: gigatoken and tiktoken have arrays, the others only lists. None is
imported before it is used, so a fresh process that asks for one pays for that one alone. A package that is not
installed or cannot read the vocabulary is left out.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Sequence
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from luthier.core.errors import InputError

__all__ = [
    "FOLDER",
    "PEERS",
    "PIECES",
    "RANKS",
    "Peer",
    "Vocabulary",
    "expression",
    "first_ids",
    "flat",
    "hugging_face_json",
    "load",
    "ours",
    "peers",
    "users",
    "vocabulary",
]

# tiktoken's files hold ranks only; the pattern goes by the name. gigatoken calls its fast pre-tokenizers differently.
PATTERN_OF = {
    "r50k_base": "gpt2",
    "p50k_base": "gpt2",
    "cl100k_base": "cl100k",
    "o200k_base": "o200k",
    "qwen": "qwen2",
    "llama3_tokenizer": "llama3",
}
GIGATOKEN_PATTERN = {"gpt2": "gpt2", "cl100k": "gpt4", "o200k": "o200k", "qwen2": "qwen2"}
RANKS, FOLDER, PIECES = "ranks", "folder", "pieces"
LONG = 1_000_000  # characters that a tool slower than 5 MB/s is given


class Vocabulary(NamedTuple):
    """What is raced on: a short `name`, the `file` (or folder), its `kind` and, for ranks, the pattern."""

    name: str
    file: Path
    kind: str
    pattern: str = ""


class Peer(NamedTuple):
    """A tokenizer behind calls that all have. `load` gives what the others take first. A call that a package lacks is
    None; `most` bounds the characters it is given at once; `cache`: it remembers pieces, so its first pass over a text
    is not like its second; `loads`: `load` does the whole work each time; `strict`: it is also asked for the ids of
    strings that are easily got wrong."""

    name: str
    load: Callable[[], Any]
    lists: Callable[[Any, str], list[int]] | None
    arrays: Callable[[Any, str], Any] | None = None
    batch: Callable[[Any, Sequence[str], int], Any] | None = None
    count: Callable[[Any, str], int] | None = None
    from_lists: Callable[[Any, list[int]], str] | None = None
    from_arrays: Callable[[Any, Any], str] | None = None
    most: int | None = None
    cache: bool = True
    loads: bool = True
    strict: bool = False


def vocabulary(file: Path) -> Vocabulary:
    """What `file` is: tiktoken's ranks by a known name, a SentencePiece model, or a folder or file that is Hugging
    Face's. Raises InputError for a name that says nothing."""
    stem = file.stem
    if stem in PATTERN_OF:
        return Vocabulary(stem.removesuffix("_base").removesuffix("_tokenizer"), file, RANKS, PATTERN_OF[stem])
    if file.suffix == ".model":
        return Vocabulary(stem.removesuffix("_tokenizer"), file, PIECES)
    if file.is_dir() or file.suffix == ".json":
        return Vocabulary(stem if stem != "tokenizer" else file.parent.name, file, FOLDER)
    known = ", ".join(f"{name}.tiktoken" for name in PATTERN_OF)
    raise InputError(
        f"{file}: unknown vocabulary\nExpected a folder, a tokenizer.json, a .model of SentencePiece, or ranks named "
        f"{known}."
    )


def load(vocabulary: Vocabulary) -> Any:
    """Our tokenizer, from its file."""
    from luthier.tokenizers.formats import load_tiktoken, load_tokenizer

    if vocabulary.kind == RANKS:
        return load_tiktoken(vocabulary.file, pattern=vocabulary.pattern)
    if vocabulary.kind == FOLDER:
        return load_tokenizer(vocabulary.file)
    from luthier.tokenizers.sentencepiece_model import load_sentencepiece

    return load_sentencepiece(vocabulary.file)


def peers(vocabulary: Vocabulary, own: str | None = None) -> dict[str, Peer]:
    """Ours first, then every package that is installed and reads this vocabulary, then the user's own."""
    found = {"ours": ours(vocabulary)}
    for make in PEERS.values():
        try:
            peer = make(vocabulary)
        except ImportError:
            continue
        if peer is not None:
            found[peer.name] = peer
    if own is not None:
        peer = users(vocabulary, own)
        found[peer.name] = peer
    return found


def flat(ids: Any) -> Any:
    """All ids one after the other as an int64 array: from an array, a list, lists in a list, or (ids, offsets)."""
    import numpy as np

    if isinstance(ids, tuple):
        ids = ids[0]
    if type(ids).__module__.partition(".")[0] == "awkward":
        import awkward  # pyright: ignore[reportMissingImports]

        ids = awkward.to_numpy(awkward.flatten(ids, axis=None))  # pyright: ignore[reportArgumentType]
    if isinstance(ids, list) and ids and not isinstance(ids[0], int):
        ids = list(chain.from_iterable(ids))
    return np.asarray(ids).astype(np.int64, copy=False)


def _label(package: str) -> str:
    return f"{package} {metadata.version(package)}"


# ---------------------------------------------------------------- ours and the user's


def ours(vocabulary: Vocabulary) -> Peer:
    """This library."""
    return Peer(
        "ours",
        lambda: load(vocabulary),
        lists=lambda t, text: t.encode_ordinary(text).tolist(),
        arrays=lambda t, text: t.encode_ordinary(text),
        batch=lambda t, texts, threads: t.encode_batch(texts, threads),
        count=lambda t, text: t.count(text),
        from_lists=lambda t, ids: t.decode(ids),
        from_arrays=lambda t, ids: t.decode(ids),
    )


def users(vocabulary: Vocabulary, own: str) -> Peer:
    """`FILE.py:FUNCTION`: called with the vocabulary's file or folder, it returns an encoder, which is called with a
    text and returns its ids, as a list or an array."""
    from luthier.core.benchmarks.timing import load_own

    name, function = load_own(own)

    def encode(encoder: Any, text: str) -> Any:
        return encoder(text)

    return Peer(
        name,
        lambda: function(vocabulary.file),
        lists=lambda e, text: _as_list(encode(e, text)),
        arrays=encode,
        strict=True,
    )


def _as_list(ids: Any) -> list[int]:
    return ids if isinstance(ids, list) else ids.tolist() if hasattr(ids, "tolist") else list(ids)


# ---------------------------------------------------------------- the packages


def _tiktoken(vocabulary: Vocabulary) -> Peer | None:
    import tiktoken

    if vocabulary.kind == RANKS:
        pattern, ranks = vocabulary.pattern, lambda: _ranks(vocabulary.file)
    else:
        tokenizer = load(vocabulary) if vocabulary.kind == FOLDER else None
        if tokenizer is None or not _by_rank(tokenizer):
            return None
        pattern, ranks = tokenizer.pattern, lambda: tokenizer.ids_of_bytes
    cut = expression(pattern)
    return Peer(
        _label("tiktoken"),
        lambda: tiktoken.Encoding("bench", pat_str=cut, mergeable_ranks=ranks(), special_tokens={}),
        lists=lambda e, text: e.encode_ordinary(text),
        arrays=lambda e, text: e.encode_to_numpy(text, disallowed_special=()),
        batch=lambda e, texts, threads: e.encode_ordinary_batch(texts, num_threads=threads),
        count=lambda e, text: len(e.encode_ordinary(text)),
        from_lists=lambda e, ids: e.decode(ids),
        from_arrays=lambda e, ids: e.decode(ids.tolist()),
        cache=False,
        loads=vocabulary.kind == RANKS,
    )


def expression(pattern: str) -> str:
    """The regular expression that a pattern's name stands for; an expression as it is."""
    if not pattern.isalnum():
        return pattern
    from luthier.tokenizers.pretokenize import PATTERNS

    return PATTERNS.get(pattern, pattern)


def _by_rank(tokenizer: Any) -> bool:
    """Whether tiktoken gives the same ids: for it the id is the rank, and nothing happens before or beside merging."""
    from luthier.tokenizers.bpe import Tokenizer

    if not isinstance(tokenizer, Tokenizer) or tokenizer.normalizer or tokenizer.added_tokens:
        return False
    return tokenizer.whole_pieces or bool((tokenizer.joined[1:] > tokenizer.joined[:-1]).all())


def _ranks(file: Path) -> dict[bytes, int]:
    """As tiktoken's own loader reads them, without its copy of the file in a cache."""
    lines = (line.split() for line in file.read_bytes().splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def _gigatoken(vocabulary: Vocabulary) -> Peer | None:
    import gigatoken  # pyright: ignore[reportMissingImports]

    def tokenizer() -> Any:
        if vocabulary.kind == PIECES:
            return gigatoken.Tokenizer.from_sentencepiece(vocabulary.file)
        if vocabulary.pattern in GIGATOKEN_PATTERN:
            return gigatoken.Tokenizer.from_tiktoken(
                vocabulary.file, GIGATOKEN_PATTERN[vocabulary.pattern], special_tokens={}
            )
        return gigatoken.Tokenizer(_hugging_face_file(vocabulary))

    if not _works(tokenizer):
        return None
    return Peer(
        _label("gigatoken"),
        tokenizer,
        lists=lambda t, text: t.encode(text).tolist(),  # twice as fast as its encode_batch_list
        arrays=lambda t, text: t.encode(text),
        batch=lambda t, texts, threads: t.encode_batch(texts, parallel=threads > 1),
        count=lambda t, text: len(t.encode(text)),
        from_lists=lambda t, ids: t.decode(ids).decode("utf-8", "replace"),
        from_arrays=lambda t, ids: t.decode(ids).decode("utf-8", "replace"),
    )


def _works(load: Callable[[], Any]) -> bool:
    """Whether the package reads this vocabulary: it says no in errors of several kinds."""
    try:
        load()
    except Exception:
        return False
    return True


def _hugging_face(vocabulary: Vocabulary) -> Peer | None:
    import tokenizers

    if vocabulary.kind == PIECES:
        return None
    text = hugging_face_json(vocabulary)
    return Peer(
        _label("tokenizers"),
        lambda: tokenizers.Tokenizer.from_str(text),
        lists=lambda t, text: t.encode(text, add_special_tokens=False).ids,
        batch=lambda t, texts, threads: [e.ids for e in t.encode_batch_fast(texts, add_special_tokens=False)],
        count=lambda t, text: len(t.encode(text, add_special_tokens=False)),
        from_lists=lambda t, ids: t.decode(ids, skip_special_tokens=False),
        most=LONG,
    )


def hugging_face_json(vocabulary: Vocabulary) -> str:
    """tokenizer.json of the vocabulary, made from the ranks where there is none."""
    if vocabulary.kind == FOLDER:
        return _hugging_face_file(vocabulary).read_text(encoding="utf-8")
    from luthier.tokenizers.formats import tokenizer_files

    return tokenizer_files(load(vocabulary))["tokenizer.json"]


def _hugging_face_file(vocabulary: Vocabulary) -> Path:
    return vocabulary.file / "tokenizer.json" if vocabulary.file.is_dir() else vocabulary.file


def _bpe_openai(vocabulary: Vocabulary) -> Peer | None:
    if vocabulary.kind != RANKS:
        return None
    import bpe_openai  # pyright: ignore[reportMissingImports]

    name = vocabulary.file.stem
    if not _works(lambda: bpe_openai.get_encoding(name)):
        return None
    return Peer(
        _label("bpe-openai"),
        lambda: bpe_openai.get_encoding(name),
        lists=lambda e, text: e.encode_ordinary(text),
        batch=lambda e, texts, threads: e.encode_ordinary_batch(texts, num_threads=threads),
        count=lambda e, text: len(e.encode_ordinary(text)),
        from_lists=lambda e, ids: e.decode(ids),
        most=60_000,  # it refuses what has more than 200,000 ids
        cache=False,
        loads=False,  # its package keeps what it has loaded
    )


def _sentencepiece(vocabulary: Vocabulary) -> Peer | None:
    import sentencepiece

    if vocabulary.kind != PIECES:
        return None
    return Peer(
        _label("sentencepiece"),
        lambda: sentencepiece.SentencePieceProcessor(model_file=str(vocabulary.file)),
        lists=lambda m, text: m.encode(text),
        batch=lambda m, texts, threads: m.encode(list(texts), num_threads=threads),
        count=lambda m, text: len(m.encode(text)),
        from_lists=lambda m, ids: m.decode(ids),
        most=LONG,
        cache=False,
    )


PEERS: dict[str, Callable[[Vocabulary], Peer | None]] = {
    "gigatoken": _gigatoken,
    "tiktoken": _tiktoken,
    "tokenizers": _hugging_face,
    "bpe-openai": _bpe_openai,
    "sentencepiece": _sentencepiece,
}


def first_ids(package: str, vocabulary: Vocabulary, text: str) -> list[int]:
    """Import, load, encode: all that a fresh process does before its first token."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    peer = ours(vocabulary) if package == "ours" else PEERS[package](vocabulary)
    if peer is None or peer.lists is None:
        raise InputError(f"{package} cannot read {vocabulary.file}")
    return peer.lists(peer.load(), text)
