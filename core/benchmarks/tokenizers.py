"""Our tokenizer beside tiktoken and Hugging Face's tokenizers: first equal, then timed in turn.

    train       the same text, pattern and vocabulary size; equal: the same merges in the same order
    encode      warm: pieces met before are in the cache, as in a long run; cold: the first pass over a text with a new
                tokenizer, everything compiled. Arrays against arrays (tiktoken's encode_to_numpy), lists against lists
                (tokenizers has no arrays); equal: the same ids for the whole text
    short       a text of 100 bytes, one call at a time
    decode      ids to text; equal: the text itself

A peer that is not installed has no rows. The last row is ours against ours: how far a ratio may be from 1 by chance.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from luthier.core.benchmarks.timing import Row, rate_row, seconds_in_turn, seconds_row
from luthier.core.console import say
from luthier.core.errors import InputError
from luthier.tokenizers.bpe import Tokenizer
from luthier.tokenizers.bpe_train import train_bpe
from luthier.tokenizers.formats import load_tiktoken, tokenizer_files
from luthier.tokenizers.pretokenize import PATTERNS

__all__ = ["run"]

VOCAB_SIZE = 4096
MOST = 8_000_000  # characters of the text that are used
SHORT = 100  # bytes
VOCABULARIES = {"r50k_base": "gpt2", "p50k_base": "gpt2", "cl100k_base": "cl100k", "o200k_base": "o200k"}


def run(*, text: Path | None = None, vocab: Path | None = None, repeats: int = 5) -> list[Row]:
    """All rows. `text` is the file to work on, by default Python's own documentation; `vocab` a file of tiktoken ranks
    to encode with, by default the vocabulary that is trained first. Raises InputError for files it cannot use."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    name, content = _text(text)
    rows, tokenizer = _training(name, content, repeats)
    if vocab is not None:
        tokenizer, name = _vocabulary(vocab), f"{vocab.stem}, {name}"
    for case in (_encoding, _short, _decoding):
        rows += case(name, content, tokenizer, repeats)
    return rows


def _text(file: Path | None) -> tuple[str, str]:
    if file is not None:
        from luthier.core.data.texts import read_texts

        return file.name, "\n\n".join(t.text for t in read_texts([file]))[:MOST]
    from luthier.core.data.general import python_documentation

    return "python documentation", "\n\n".join(text for _, text in python_documentation())


def _vocabulary(file: Path) -> Tokenizer:
    if file.stem not in VOCABULARIES:
        raise InputError(f"{file}: unknown vocabulary; expected a file named {', '.join(VOCABULARIES)}.tiktoken")
    return load_tiktoken(file, pattern=VOCABULARIES[file.stem])


# ---------------------------------------------------------------- peers


def _tiktoken(tokenizer: Tokenizer) -> Any:
    """The same vocabulary in tiktoken, or None."""
    try:
        import tiktoken
    except ImportError:
        return None
    pattern = PATTERNS.get(tokenizer.pattern, tokenizer.pattern)
    return tiktoken.Encoding("bench", pat_str=pattern, mergeable_ranks=tokenizer.ids_of_bytes, special_tokens={})


def _hugging_face(tokenizer: Tokenizer) -> Any:
    """The same vocabulary in Hugging Face's tokenizers, or None."""
    try:
        import tokenizers
    except ImportError:
        return None
    return tokenizers.Tokenizer.from_str(tokenizer_files(tokenizer)["tokenizer.json"])


def _label(package: str) -> str:
    return f"{package} {metadata.version(package)}"


# ---------------------------------------------------------------- cases


def _training(name: str, text: str, repeats: int) -> tuple[list[Row], Tokenizer]:
    say(f"training {VOCAB_SIZE:,} ids on {name}")
    ours = train_bpe([text], VOCAB_SIZE)
    tools: dict[str, Callable[[], Any]] = {"ours": lambda: train_bpe([text], VOCAB_SIZE)}
    equal = True
    peer = _hugging_face_trainer(text)
    if peer is not None:
        tools["theirs"] = peer
        equal = _merges(peer()) == [(ours.tokens[left], ours.tokens[right]) for left, right in ours.merges.tolist()]
    taken = seconds_in_turn(tools, min(repeats, 3))
    case = f"train {VOCAB_SIZE:,} ids, {name}, {len(text.encode()) / 1e6:.1f} MB, 1 thread"
    label = _label("tokenizers") if peer else "none"
    return [seconds_row(case, "s", taken["ours"], label, taken.get("theirs", []), equal)], ours


def _hugging_face_trainer(text: str) -> Callable[[], Any] | None:
    try:
        from tokenizers import Regex, models, pre_tokenizers, trainers
        from tokenizers import Tokenizer as HuggingFace
    except ImportError:
        return None

    def train() -> Any:
        tokenizer: Any = HuggingFace(models.BPE())
        split = pre_tokenizers.Split(Regex(PATTERNS["llama3"]), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
        trainer = trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            min_frequency=2,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator([text], trainer)
        return tokenizer

    return train


def _merges(hugging_face: Any) -> list[tuple[bytes, bytes]]:
    import json

    from luthier.tokenizers.formats import unspell

    return [(unspell(a), unspell(b)) for a, b in json.loads(hugging_face.to_str())["model"]["merges"]]


def _encoding(name: str, text: str, tokenizer: Tokenizer, repeats: int) -> Iterator[Row]:
    say(f"encoding {name}")
    ids, size = tokenizer.encode_ordinary(text).tolist(), len(text.encode()) / 1e6

    def cold() -> Any:
        tokenizer.forget()
        return tokenizer.encode_ordinary(text)

    def warm() -> Any:
        return tokenizer.encode_ordinary(text)

    if peer := _tiktoken(tokenizer):

        def theirs() -> Any:
            return peer.encode_to_numpy(text, disallowed_special=())

        equal, label = theirs().tolist() == ids, _label("tiktoken")
        taken = seconds_in_turn({"ours": warm, "theirs": theirs}, repeats)
        yield rate_row(f"encode {name} warm, 1 thread", "MB/s", size, taken["ours"], label, taken["theirs"], equal)
        taken = seconds_in_turn({"ours": cold, "theirs": theirs}, repeats)
        yield rate_row(f"encode {name} cold, 1 thread", "MB/s", size, taken["ours"], label, taken["theirs"], equal)
    if peer := _hugging_face(tokenizer):
        equal, label = peer.encode(text).ids == ids, _label("tokenizers")
        lists: dict[str, Callable[[], Any]] = {
            "ours": lambda: warm().tolist(),
            "theirs": lambda: peer.encode(text).ids,
        }
        taken = seconds_in_turn(lists, min(repeats, 3))
        case = f"encode {name} warm to a list, 1 thread"
        yield rate_row(case, "MB/s", size, taken["ours"], label, taken["theirs"], equal)
    taken = seconds_in_turn({"ours": warm, "again": warm}, repeats)
    yield rate_row(f"encode {name} warm, against itself", "MB/s", size, taken["ours"], "ours", taken["again"], True)


def _short(name: str, text: str, tokenizer: Tokenizer, repeats: int) -> Iterator[Row]:
    piece, calls = text[1000 : 1000 + SHORT], 1000
    if peer := _tiktoken(tokenizer):

        def ours() -> None:
            for _ in range(calls):
                tokenizer.encode_ordinary(piece)

        def theirs() -> None:
            for _ in range(calls):
                peer.encode_to_numpy(piece, disallowed_special=())

        equal = tokenizer.encode_ordinary(piece).tolist() == peer.encode_ordinary(piece)
        taken = seconds_in_turn({"ours": ours, "theirs": theirs}, repeats)
        case, label = f"encode {SHORT} characters, {name}", _label("tiktoken")
        yield seconds_row(case, "µs a call", taken["ours"], label, taken["theirs"], equal, 1e6 / calls)


def _decoding(name: str, text: str, tokenizer: Tokenizer, repeats: int) -> Iterator[Row]:
    say(f"decoding {name}")
    ids = tokenizer.encode_ordinary(text)
    numbers = ids.tolist()
    if peer := _tiktoken(tokenizer):
        tools: dict[str, Callable[[], Any]] = {
            "ours": lambda: tokenizer.decode(ids),
            "theirs": lambda: peer.decode(numbers),
        }
        equal, size = tokenizer.decode(ids) == text == peer.decode(numbers), len(text.encode()) / 1e6
        taken = seconds_in_turn(tools, repeats)
        yield rate_row(f"decode {name}", "MB/s", size, taken["ours"], _label("tiktoken"), taken["theirs"], equal)
