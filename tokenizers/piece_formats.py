"""Hugging Face's tokenizer.json for tokenizers with pieces.

Two kinds of pipeline are read and written; any other part changes the ids and is refused by name:

    Llama 2   normalizer Prepend ▁, Replace " " by ▁ (or pre-tokenizer Metaspace without split); BPE with byte_fallback
    unigram   normalizer Precompiled, Replace " {2,}" by " "; pre-tokenizer WhitespaceSplit, Metaspace; Unigram

Merges have an order of their own there, so a tokenizer read from such a file keeps them. What Hugging Face calls
Precompiled is SentencePiece's charsmap used in another way: text is taken grapheme by grapheme; if a rule fits the
beginning of a grapheme of less than six bytes, the shortest rule's replacement stands for all of it (so an accent that
no rule names is lost), otherwise its characters are looked up one by one. `Graphemes` does the same, since ids depend
on it.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import regex

from luthier.tokenizers.charsmap import read_charsmap
from luthier.tokenizers.formats import TokenizerFileError
from luthier.tokenizers.normalizer import SPACE, Normalizer
from luthier.tokenizers.piece_bpe import PieceBpeTokenizer
from luthier.tokenizers.pretokenize import utf8
from luthier.tokenizers.unigram import Kind, UnigramTokenizer

__all__ = ["Graphemes", "load_pieces", "piece_files"]

SHORT: Final = 6  # bytes of a grapheme that is looked up whole
_SPACES: Final = regex.compile(r"\p{White_Space}+")
_BYTE: Final = regex.compile(r"<0x[0-9A-F]{2}>")
_PREPEND: Final = [
    {"type": "Prepend", "prepend": SPACE},
    {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
]
_ONE_SPACE: Final = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
_LLAMA_DECODER: Final = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}


class Graphemes(dict[str, str]):
    """Hugging Face's Precompiled, WhitespaceSplit and Metaspace: ▁ before every word. A dictionary grapheme → its
    replacement, filled as graphemes are met."""

    add_dummy_prefix = True
    remove_extra_whitespaces = False

    def __init__(self, charsmap: bytes) -> None:
        super().__init__()
        self.charsmap = charsmap
        self._rules = read_charsmap(charsmap)

    def __missing__(self, grapheme: str) -> str:
        made = self._rule(grapheme) if len(grapheme.encode()) < SHORT else None
        if made is None:
            made = "".join(self._rules.get(c, c) for c in grapheme)
        self[grapheme] = made
        return made

    def _rule(self, grapheme: str) -> str | None:
        starts = (grapheme[:end] for end in range(1, len(grapheme) + 1))
        return next((self._rules[start] for start in starts if start in self._rules), None)

    def normalize(self, text: str) -> str:
        """The text as pieces spell it."""
        utf8(text)
        text = "".join(map(self.__getitem__, regex.findall(r"\X", text)))
        return "".join(SPACE + word for word in _SPACES.split(text) if word)

    def normalize_with_places(self, text: str) -> tuple[str, list[tuple[int, int]]]:
        """The same, and for each of its characters the characters [start, end) of `text` it came from."""
        plain, places, before = "", [], True
        for grapheme in regex.finditer(r"\X", text):
            for c in self[grapheme.group()]:
                if _SPACES.match(c):
                    before = True
                    continue
                if before:
                    plain, before = plain + SPACE, False
                    places.append((grapheme.start(), grapheme.start()))
                plain += c
                places.append(grapheme.span())
        return plain, places

    def to_utf8(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """The normalized texts in UTF-8, one after the other, and where each starts (one more than texts)."""
        parts = [self.normalize(text).encode() for text in texts]
        starts = np.zeros(len(parts) + 1, np.int64)
        np.cumsum([len(part) for part in parts], out=starts[1:])
        return np.frombuffer(b"".join(parts), np.uint8), starts

    def restore(self, text: str) -> str:
        """Decoded text without the space before the first word."""
        return text.removeprefix(" ")


# ---------------------------------------------------------------- reading


def load_pieces(
    file: Path, whole: Mapping[str, Any], config: Mapping[str, Any], chat_template: str | None
) -> UnigramTokenizer | PieceBpeTokenizer:
    """The tokenizer of a tokenizer.json that has been parsed. Raises TokenizerFileError naming the part that is not
    supported."""
    model, parts = whole["model"], _parts(whole)
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(key):
            raise TokenizerFileError(f"{file}: the model has {key}={model[key]!r}, which is not supported")
    unigram = model.get("type") == "Unigram"
    normalizer = _unigram_rules(file, parts) if unigram else _llama_rules(file, parts)
    pieces, scores = _vocabulary(file, model, unigram)
    special = {}
    for token in whole.get("added_tokens") or []:
        text, i = token["content"], token["id"]
        if not token.get("special"):
            raise TokenizerFileError(f"{file}: added token {text!r} is not special, which is not supported")
        if i == len(pieces):
            pieces.append(text)
            scores.append(0.0)
        if not 0 <= i < len(pieces) or pieces[i] != text:
            raise TokenizerFileError(f"{file}: added token {text!r} has the id {i}, which is another's")
        special[text] = i
    unk_id = model.get("unk_id") if unigram else {p: i for i, p in enumerate(pieces)}.get(model.get("unk_token"))
    if unk_id is None:
        raise TokenizerFileError(f"{file}: the model names no unknown token ({'unk_id' if unigram else 'unk_token'})")
    fallback = bool(model.get("byte_fallback"))
    kinds = [Kind.BYTE if fallback and _BYTE.fullmatch(piece) else Kind.NORMAL for piece in pieces]
    for i in special.values():
        kinds[i] = Kind.CONTROL
    kinds[unk_id] = Kind.UNKNOWN
    settings: dict[str, Any] = {
        "kinds": kinds,
        "unk_id": unk_id,
        "normalizer": normalizer,
        "byte_fallback": fallback,
        "special_tokens": {text: i for text, i in special.items() if i != unk_id},
        "eos_token": _content(config.get("eos_token")),
        "pad_token": _content(config.get("pad_token")),
        "chat_template": chat_template,
        "kept": {
            "config": dict(config),
            "json": {k: v for k, v in whole.items() if k not in ("model", "added_tokens")},
        },
    }
    try:
        if unigram:
            return UnigramTokenizer(pieces, np.array(scores, np.float32), **settings)
        merges = _merges(file, model, {piece: i for i, piece in enumerate(pieces)})
        return PieceBpeTokenizer(pieces, np.array(scores, np.float32), merges=merges, **settings)
    except ValueError as error:
        raise TokenizerFileError(f"{file}: {error}") from error


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _parts(whole: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The steps of normalizer and pre-tokenizer in order."""
    steps: list[dict[str, Any]] = []
    for key, several in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        part = whole.get(key)
        if part:
            steps += part[several] if part.get("type") == "Sequence" else [part]
    return steps


def _named(file: Path, parts: list[dict[str, Any]]) -> TokenizerFileError:
    names = " + ".join(str(part.get("type")) for part in parts) or "none"
    return TokenizerFileError(
        f"{file}: normalizer and pre-tokenizer {names} are not supported in this form; piece_formats.py says which are"
    )


def _is_metaspace(part: Mapping[str, Any], *, split: bool, schemes: Sequence[str]) -> bool:
    scheme = part.get("prepend_scheme", "always" if part.get("add_prefix_space", True) else "never")
    known = part.get("type") == "Metaspace" and part.get("replacement") == SPACE
    return known and part.get("split", True) == split and scheme in schemes


def _llama_rules(file: Path, parts: list[dict[str, Any]]) -> Normalizer:
    rules = Normalizer(remove_extra_whitespaces=False)
    if parts == _PREPEND or (len(parts) == 1 and _is_metaspace(parts[0], split=False, schemes=["always"])):
        return rules
    if parts == _PREPEND[1:] or (len(parts) == 1 and _is_metaspace(parts[0], split=False, schemes=["never"])):
        return Normalizer(remove_extra_whitespaces=False, add_dummy_prefix=False)
    raise _named(file, parts)


def _unigram_rules(file: Path, parts: list[dict[str, Any]]) -> Graphemes:
    kinds = [part.get("type") for part in parts]
    if (
        kinds != ["Precompiled", "Replace", "WhitespaceSplit", "Metaspace"]
        or parts[1] != _ONE_SPACE
        or not _is_metaspace(parts[3], split=True, schemes=["always"])
    ):
        raise _named(file, parts)
    try:
        return Graphemes(base64.b64decode(parts[0]["precompiled_charsmap"] or "", validate=True))
    except (binascii.Error, ValueError) as error:
        raise TokenizerFileError(f"{file}: precompiled_charsmap: {error}") from error


def _vocabulary(file: Path, model: Mapping[str, Any], unigram: bool) -> tuple[list[str], list[float]]:
    if unigram:
        return [piece for piece, _ in model["vocab"]], [score for _, score in model["vocab"]]
    by_id = {i: piece for piece, i in model["vocab"].items()}
    if len(by_id) != len(model["vocab"]) or sorted(by_id) != list(range(len(by_id))):
        raise TokenizerFileError(f"{file}: the ids of the vocabulary have a gap or one that is given twice")
    return [by_id[i] for i in range(len(by_id))], [0.0] * len(by_id)


def _merges(file: Path, model: Mapping[str, Any], ids: Mapping[str, int]) -> npt.NDArray[np.int32]:
    pairs = []
    for k, merge in enumerate(model.get("merges") or []):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        unknown = [part for part in [*pair, "".join(pair)] if part not in ids]
        if len(pair) != 2 or unknown:
            raise TokenizerFileError(
                f"{file}: merge {k} is {merge!r}: {(unknown or pair)[0]!r} is not in the vocabulary"
            )
        pairs.append((ids[pair[0]], ids[pair[1]]))
    return np.array(pairs, np.int32).reshape(-1, 2)


# ---------------------------------------------------------------- writing


def piece_files(tokenizer: UnigramTokenizer | PieceBpeTokenizer) -> dict[str, str]:
    """File name → text of tokenizer.json and tokenizer_config.json. Raises TokenizerFileError for rules that Hugging
    Face's parts cannot say."""
    kept = tokenizer.kept.get("json") or _pipeline(tokenizer)
    special = {tokenizer.pieces[tokenizer.unk_id]: tokenizer.unk_id, **tokenizer.special_tokens}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": i, "content": text, **flags} for text, i in sorted(special.items(), key=lambda item: item[1])]
    unigram = isinstance(tokenizer, UnigramTokenizer)
    whole = {**kept, "added_tokens": added, "model": _unigram(tokenizer) if unigram else _bpe(tokenizer)}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000_000,
        **tokenizer.kept.get("config", {}),
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.pad_token,
        "unk_token": tokenizer.pieces[tokenizer.unk_id],
        "chat_template": tokenizer.chat_template,
    }
    config = {key: value for key, value in config.items() if value is not None}
    return {
        "tokenizer.json": json.dumps(whole, ensure_ascii=False, indent=1) + "\n",
        "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2) + "\n",
    }


def _pipeline(tokenizer: UnigramTokenizer | PieceBpeTokenizer) -> dict[str, Any]:
    """Everything but the model, for a tokenizer that does not come from such a file."""
    rules = tokenizer.normalizer
    plain = isinstance(rules, Normalizer) and rules.plain and rules.escape_whitespaces and not rules.user_defined
    if not plain or rules.treat_whitespace_as_suffix:  # pyright: ignore[reportAttributeAccessIssue]
        raise TokenizerFileError(
            "tokenizer.json cannot say this normalizer's rules exactly (a charsmap, removed spaces, a suffix or "
            "user-defined pieces)\nWrite a .model file: save_sentencepiece."
        )
    prefix = rules.add_dummy_prefix  # pyright: ignore[reportAttributeAccessIssue]
    decoders = _LLAMA_DECODER["decoders"] if prefix else _LLAMA_DECODER["decoders"][:-1]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "normalizer": {"type": "Sequence", "normalizers": _PREPEND if prefix else _PREPEND[1:]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


def _unigram(tokenizer: Any) -> dict[str, Any]:
    vocab = [[piece, float(score)] for piece, score in zip(tokenizer.pieces, tokenizer.scores, strict=True)]
    return {"type": "Unigram", "unk_id": tokenizer.unk_id, "vocab": vocab, "byte_fallback": tokenizer.byte_fallback}


def _bpe(tokenizer: Any) -> dict[str, Any]:
    order = tokenizer.order
    if order is None:
        raise TokenizerFileError(
            "the tokenizer has unused pieces, or pieces of equal score, whose merges have no order"
        )
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": tokenizer.pieces[tokenizer.unk_id],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": tokenizer.byte_fallback,
        "ignore_merges": False,
        "vocab": {piece: i for i, piece in enumerate(tokenizer.pieces)},
        "merges": [list(pair) for pair in sorted(order, key=order.__getitem__)],
    }
