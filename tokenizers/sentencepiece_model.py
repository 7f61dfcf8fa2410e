"""SentencePiece's `.model` files, read and written.

The file is one protocol buffer: fields one after the other, each a tag (number << 3 | kind) and a value,

    kind 0  a whole number, seven bits a byte, the lowest first, the high bit says that more follow
    kind 1  8 bytes        kind 5  4 bytes (floats)        kind 2  its length, then so many bytes (text, or fields)

    ModelProto       1 piece (again for every id)   2 trainer_spec   3 normalizer_spec   5 denormalizer_spec
    piece            1 text   2 score   3 kind (1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte)
    trainer_spec     3 model_type (1 unigram, 2 BPE)   24 treat_whitespace_as_suffix   35 byte_fallback   …
    normalizer_spec  1 name   2 precompiled_charsmap   3 add_dummy_prefix   4 remove_extra_whitespaces   5 escape_…

That is all the format there is, so a reader of our own is shorter than a dependency. What does not concern ids (how the
model was trained, self-tests, fields that came later) is kept as it is and written again, byte for byte; an unknown
field of the normalizer could change ids, so it is refused by number.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from luthier.tokenizers.charsmap import CharsmapError
from luthier.tokenizers.formats import TokenizerFileError
from luthier.tokenizers.normalizer import Normalizer
from luthier.tokenizers.piece_bpe import PieceBpeTokenizer
from luthier.tokenizers.unigram import Kind, UnigramTokenizer

__all__ = ["load_sentencepiece", "save_sentencepiece"]

VARINT, EIGHT, BYTES, FOUR = 0, 1, 2, 5
UNIGRAM, BPE = 1, 2
NORMAL, UNKNOWN, USER_DEFINED = int(Kind.NORMAL), int(Kind.UNKNOWN), int(Kind.USER_DEFINED)
MODEL_TYPES: Final = {1: "unigram", 2: "BPE", 3: "word", 4: "char"}
PIECE, TRAINER, NORMALIZER, SELF_TEST, DENORMALIZER = 1, 2, 3, 4, 5


class _Field(NamedTuple):
    """One field: its number and kind, its value, and where it stands in the file, tag included."""

    number: int
    kind: int
    value: Any
    begin: int
    end: int


# ---------------------------------------------------------------- the wire


class _Wire:
    """The bytes of a file; every error names the file and the byte."""

    def __init__(self, file: Path, data: bytes) -> None:
        self.file, self.data = file, data

    def error(self, place: int, what: str) -> TokenizerFileError:
        return TokenizerFileError(f"{self.file}: byte {place}: {what}")

    def fields(self, begin: int, end: int) -> Iterator[_Field]:
        """The fields in data[begin:end]; the value of a field of BYTES is where it begins and ends."""
        i = begin
        while i < end:
            tag, after = self.number(i, end)
            number, kind = tag >> 3, tag & 7
            if kind == VARINT:
                value, stop = self.number(after, end)
            elif kind in (EIGHT, FOUR):
                stop = after + (8 if kind == EIGHT else 4)
                value = after
            elif kind == BYTES:
                size, after = self.number(after, end)
                stop = after + size
                value = (after, stop)
            else:
                raise self.error(i, f"field {number} has the wire type {kind}, which no .model file has")
            if stop > end:
                raise self.error(
                    i, f"field {number} has {stop - after} bytes, but only {end - after} follow: the file is cut short"
                )
            yield _Field(number, kind, value, i, stop)
            i = stop

    def number(self, i: int, end: int) -> tuple[int, int]:
        """The whole number at i, and where it ends."""
        value = 0
        for k in range(10):
            if i + k >= end:
                raise self.error(i, "a number that does not end: the file is cut short")
            byte = self.data[i + k]
            value |= (byte & 0x7F) << 7 * k
            if byte < 0x80:
                return value, i + k + 1
        raise self.error(i, "a number of more than 10 bytes: this is not a SentencePiece model")

    def expect(self, found: _Field, kind: int, what: str) -> Any:
        if found.kind != kind:
            raise self.error(found.begin, f"{what} has the wire type {found.kind}, expected {kind}")
        return found.value

    def text(self, found: _Field, what: str) -> str:
        begin, end = self.expect(found, BYTES, what)
        try:
            return self.data[begin:end].decode()
        except UnicodeDecodeError as error:
            raise self.error(begin + error.start, f"{what} is not UTF-8") from error


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _whole(number: int, value: int) -> bytes:
    return _number(number << 3 | VARINT) + _number(value)


def _block(number: int, value: bytes) -> bytes:
    return _number(number << 3 | BYTES) + _number(len(value)) + value


# ---------------------------------------------------------------- reading


def load_sentencepiece(path: Path) -> UnigramTokenizer | PieceBpeTokenizer:
    """Read a `.model` file. Raises TokenizerFileError naming the file and the byte, or the piece, that is wrong."""
    file = Path(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise TokenizerFileError(f"{file}: {error.strerror}") from error
    if re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", data):
        raise TokenizerFileError(
            f"{file}: these are tiktoken's ranks, not a SentencePiece model\nRead them with load_tiktoken(file, "
            "pattern=…), for example pattern='llama3'."
        )
    wire = _Wire(file, data)
    parts: dict[int, list[_Field]] = {}
    for found in wire.fields(0, len(data)):
        if found.number <= DENORMALIZER:
            wire.expect(found, BYTES, f"field {found.number} of the model")
        parts.setdefault(found.number, []).append(found)
    if PIECE not in parts:
        raise TokenizerFileError(f"{file}: {len(data)} bytes and no piece in them: this is not a SentencePiece model")
    pieces, scores, kinds, more = _pieces(wire, parts[PIECE])
    trainer = _last(wire, parts.get(TRAINER))
    kept = {
        "trainer_spec": b"".join(data[slice(*f.value)] for f in parts.get(TRAINER, ())),
        "normalizer_spec": b"".join(data[slice(*f.value)] for f in parts.get(NORMALIZER, ())),
        "piece_fields": more,
        "others": b"".join(data[f.begin : f.end] for n, fs in sorted(parts.items()) if n > NORMALIZER for f in fs),
    }
    user_defined = tuple(p for p, kind in zip(pieces, kinds, strict=True) if kind == USER_DEFINED)
    suffix = bool(_flag(wire, trainer, 24, False))
    normalizer = _normalizer(wire, parts.get(NORMALIZER), suffix, user_defined)
    _check_denormalizer(wire, parts.get(DENORMALIZER))
    model_type = _flag(wire, trainer, 3, UNIGRAM)
    if model_type not in (UNIGRAM, BPE):
        raise TokenizerFileError(
            f"{file}: the model is of type {MODEL_TYPES.get(model_type, model_type)}, which is not supported: only "
            "unigram and BPE are"
        )
    unknown = [i for i, kind in enumerate(kinds) if kind == UNKNOWN]
    if len(unknown) != 1:
        raise TokenizerFileError(f"{file}: {len(unknown)} pieces are the unknown token (kind 2); there must be one")
    surface = wire.text(trainer[44], "unk_surface") if 44 in trainer else None
    make = UnigramTokenizer if model_type == UNIGRAM else PieceBpeTokenizer
    try:
        return make(
            pieces,
            np.array(scores, np.float32),
            kinds=kinds,
            unk_id=unknown[0],
            normalizer=normalizer,
            byte_fallback=bool(_flag(wire, trainer, 35, False)),
            kept={"sentencepiece": kept, **({"unk_surface": surface} if surface is not None else {})},
        )
    except ValueError as error:
        raise TokenizerFileError(f"{file}: {error}") from error


def _pieces(wire: _Wire, found: list[_Field]) -> tuple[list[str], list[float], list[int], dict[int, bytes]]:
    """Texts, scores and kinds of all pieces, and, by id, the bytes of a piece that says more than these."""
    pieces, scores, kinds, more = [], [], [], {}
    seen: dict[str, int] = {}
    for i, whole in enumerate(found):
        text, score, kind, extra = "", 0.0, NORMAL, False
        for part in wire.fields(*whole.value):
            if part.number == 1:
                text = wire.text(part, f"the text of piece {i}")
            elif part.number == 2:
                score = struct.unpack_from("<f", wire.data, wire.expect(part, FOUR, f"the score of piece {i}"))[0]
            elif part.number == 3:
                kind = wire.expect(part, VARINT, f"the kind of piece {i}")
                if not 1 <= kind <= 6:
                    raise wire.error(part.begin, f"piece {i}, {text!r}, is of the unknown kind {kind}")
            else:
                extra = True
        if not text:
            raise wire.error(whole.begin, f"piece {i} has no text")
        if seen.setdefault(text, i) != i:
            raise wire.error(whole.begin, f"the piece {text!r} stands twice: ids {seen[text]} and {i}")
        as_read = wire.data[slice(*whole.value)]
        if extra or as_read != _piece(text, score, kind):
            more[i] = as_read
        pieces.append(text)
        scores.append(score)
        kinds.append(kind)
    return pieces, scores, kinds, more


def _last(wire: _Wire, found: list[_Field] | None) -> dict[int, _Field]:
    """The fields of a message by number; of a field that is there again the last one counts."""
    return {part.number: part for whole in found or () for part in wire.fields(*whole.value)}


def _flag(wire: _Wire, parts: Mapping[int, _Field], number: int, default: int) -> int:
    return wire.expect(parts[number], VARINT, f"field {number}") if number in parts else default


def _normalizer(wire: _Wire, found: list[_Field] | None, suffix: bool, user_defined: tuple[str, ...]) -> Normalizer:
    parts = _last(wire, found)
    if new := [part for part in parts.values() if part.number > 6]:
        raise wire.error(new[0].begin, f"normalizer_spec has the field {new[0].number}, which is not supported")
    charsmap = wire.data[slice(*wire.expect(parts[2], BYTES, "precompiled_charsmap"))] if 2 in parts else b""
    normalizer = Normalizer(
        wire.text(parts[1], "the normalizer's name") if 1 in parts else "",
        charsmap,
        bool(_flag(wire, parts, 3, True)),
        bool(_flag(wire, parts, 4, True)),
        bool(_flag(wire, parts, 5, True)),
        suffix,
        user_defined,
    )
    try:
        _ = normalizer.tables
    except CharsmapError as error:
        raise wire.error(parts[2].begin, f"precompiled_charsmap: {error}") from error
    return normalizer


def _check_denormalizer(wire: _Wire, found: list[_Field] | None) -> None:
    parts = _last(wire, found)
    if 2 in parts and parts[2].value[0] != parts[2].value[1]:
        raise wire.error(parts[2].begin, "the model has a denormalizer (denormalizer_spec), which is not supported")


# ---------------------------------------------------------------- writing


def save_sentencepiece(tokenizer: UnigramTokenizer | PieceBpeTokenizer, file: Path) -> None:
    """Write a `.model` file that `sentencepiece` opens and that gives the same ids there. What was read from one is
    written as it was. Raises TokenizerFileError for what the format cannot say."""
    data = _model(tokenizer, Path(file))
    file = Path(file)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    temporary.replace(file)


def _model(tokenizer: UnigramTokenizer | PieceBpeTokenizer, file: Path) -> bytes:
    kept = tokenizer.kept.get("sentencepiece", {})
    more = kept.get("piece_fields", {})
    if getattr(tokenizer, "merges", None) is not None:
        raise TokenizerFileError(f"{file}: the tokenizer has merges of its own; a .model orders them by score alone")
    if not isinstance(tokenizer.normalizer, Normalizer):
        raise TokenizerFileError(f"{file}: a .model cannot say {type(tokenizer.normalizer).__name__}'s rules")
    rows = zip(tokenizer.pieces, tokenizer.scores.tolist(), tokenizer.kinds.tolist(), strict=True)
    parts = [_block(PIECE, more.get(i) or _piece(*row)) for i, row in enumerate(rows)]
    parts.append(_block(TRAINER, kept.get("trainer_spec") or _trainer_spec(tokenizer)))
    parts.append(_block(NORMALIZER, kept.get("normalizer_spec") or _normalizer_spec(tokenizer.normalizer)))
    return b"".join([*parts, kept.get("others", b"")])


def _piece(text: str, score: float, kind: int) -> bytes:
    fields = _block(1, text.encode()) + _number(2 << 3 | FOUR) + struct.pack("<f", score)
    return fields if kind == NORMAL else fields + _whole(3, kind)


def _trainer_spec(tokenizer: UnigramTokenizer | PieceBpeTokenizer) -> bytes:
    """What reading the model needs: its type and rules, and which ids are the unknown, begin, end and padding tokens
    (-1: there is none)."""
    names = {40: tokenizer.pieces[tokenizer.unk_id], 41: "<s>", 42: tokenizer.eos_token, 43: "<pad>"}
    ids = {
        n: tokenizer.unk_id if n == 40 else tokenizer.special_tokens.get(name or "", -1) for n, name in names.items()
    }
    parts = [_whole(3, UNIGRAM if isinstance(tokenizer, UnigramTokenizer) else BPE), _whole(4, tokenizer.vocab_size)]
    if tokenizer.normalizer.treat_whitespace_as_suffix:  # pyright: ignore[reportAttributeAccessIssue]
        parts.append(_whole(24, 1))
    if tokenizer.byte_fallback:
        parts.append(_whole(35, 1))
    parts += [_whole(n, i & (1 << 64) - 1) for n, i in ids.items()]
    if (surface := tokenizer.kept.get("unk_surface")) is not None:
        parts.append(_block(44, surface.encode()))
    parts += [_block(n + 5, name.encode()) for n, name in names.items() if name and ids[n] >= 0]
    return b"".join(parts)


def _normalizer_spec(normalizer: Normalizer) -> bytes:
    flags = (normalizer.add_dummy_prefix, normalizer.remove_extra_whitespaces, normalizer.escape_whitespaces)
    parts = [_block(1, normalizer.name.encode()), _block(2, normalizer.charsmap)]
    return b"".join([*parts, *[_whole(3 + k, int(flag)) for k, flag in enumerate(flags)]])
