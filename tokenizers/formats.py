"""Tokenizers in files: Hugging Face's tokenizer.json and tiktoken's ranks.

tokenizer.json holds a pipeline; byte-level BPE is the one this module reads and writes:

    normalizer      none or NFC
    pre_tokenizer   Split by a regular expression, then ByteLevel(use_regex=false); or ByteLevel alone (GPT-2's
                    pattern); or Digits, then ByteLevel (SmolLM)
    model           BPE: `vocab` token → id, `merges` in order of rank, as "a b" or ["a", "b"]
    added_tokens    special ones (never made by text) and others (always recognised)

In it bytes are spelled with printable characters, GPT-2's invention: a printable byte stands for itself, the other 68
are U+0100, U+0101, … in order, so a blank is `Ġ` and a line feed `Ċ`. Any other part (another normalizer, WordPiece,
byte fallback …) changes the ids, so it is refused by name and never skipped. What changes no ids (post-processor,
decoder, the other keys of tokenizer_config.json) is kept and written again.

A tiktoken file holds one token a line, base64 and rank, and no merges: there, any two neighbours that together make a
token may be joined, the lowest rank first. All such pairs, in order of rank, are the merges. Special tokens and pattern
are not in the file; `RANKS` knows those of the files that go by a name, for others they must be given.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from luthier.tokenizers.bpe import BYTE_ORDER, PRINTABLE, Tokenizer, VocabularyError
from luthier.tokenizers.bpe_encode import Row, all_pairs, row_of
from luthier.tokenizers.load_cache import through_cache
from luthier.tokenizers.pretokenize import PATTERNS, pattern_name
from luthier.tokenizers.tiktoken_ranks import RanksError, ranks_by_the_book, read_ranks

__all__ = [
    "RANKS",
    "TokenizerFileError",
    "load_tiktoken",
    "load_tokenizer",
    "save_tiktoken",
    "save_tokenizer",
    "spell",
    "tokenizer_files",
    "unspell",
]


class TokenizerFileError(ValueError):
    """A file that is not a tokenizer this library can use, with file and place."""


# Files of ranks by their usual name: the pattern, and what their makers use as special tokens.
RANKS: dict[str, tuple[str, dict[str, int]]] = {
    "r50k_base": ("gpt2", {"<|endoftext|>": 50256}),
    "p50k_base": ("gpt2", {"<|endoftext|>": 50256}),
    "cl100k_base": (
        "cl100k",
        {
            "<|endoftext|>": 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
    "o200k_base": ("o200k", {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}),
    "qwen": ("qwen2", {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}),
}
BYTE_CHARACTERS = {b: chr(b) if b in PRINTABLE else chr(0x100 + i) for i, b in enumerate(BYTE_ORDER[len(PRINTABLE) :])}
BYTE_CHARACTERS |= {b: chr(b) for b in PRINTABLE}
_CHARACTER_BYTES = {character: b for b, character in BYTE_CHARACTERS.items()}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_MODEL_DEFAULTS = {
    "dropout": (None, 0.0),
    "unk_token": (None, "", "<unk>", "<|endoftext|>"),  # never used: every byte is a token
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (False, None),
}
_PARTS = {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor"}
_PARTS |= {"decoder", "model"}
_MODEL_PARTS = {"type", "vocab", "merges", "ignore_merges", "fuse_unk", *_MODEL_DEFAULTS}


def spell(token: bytes) -> str:
    """A token's bytes in the printable spelling of tokenizer.json: b" the" → "Ġthe"."""
    return "".join(BYTE_CHARACTERS[b] for b in token)


def unspell(text: str) -> bytes:
    """The bytes of a token in that spelling. Raises KeyError for a character outside of it."""
    return bytes(_CHARACTER_BYTES[character] for character in text)


# ---------------------------------------------------------------- reading tokenizer.json


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer folder, a tokenizer.json (with the tokenizer_config.json beside it, if there is one), a
    SentencePiece .model, or tiktoken's ranks by one of the names in RANKS (cl100k_base.tiktoken).

    Raises TokenizerFileError naming the file and the part that is missing, broken or not byte-level BPE.
    """
    path = Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    pieces = path / "tokenizer.model" if path.is_dir() and not file.is_file() else file
    if pieces.suffix == ".model" and pieces.is_file():
        from luthier.tokenizers.sentencepiece_model import load_sentencepiece

        return load_sentencepiece(pieces)  # pyright: ignore[reportReturnType]
    if path.suffix == ".tiktoken" and path.is_file():
        if path.stem not in RANKS:
            known = ", ".join(RANKS)
            raise TokenizerFileError(
                f"{path}: ranks do not say how text is cut, and only {known} are known by name\n"
                "In Python: load_tiktoken(file, pattern=…, special_tokens=…), then save_tokenizer."
            )
        pattern, special = RANKS[path.stem]
        return load_tiktoken(path, pattern=pattern, special_tokens=special)
    if path.is_dir() and not file.is_file():
        from luthier.tokenizers.vocab_merges import find_vocab_merges, load_vocab_merges

        if pair := find_vocab_merges(path):
            return load_vocab_merges(*pair)
    if not file.is_file():
        raise TokenizerFileError(f"{file} does not exist\nName a tokenizer's or a model's folder, or a tokenizer.json.")
    files = (file, *(file.with_name(name) for name in ("tokenizer_config.json", "chat_template.jinja")))
    return through_cache([f.read_bytes() if f.is_file() else b"" for f in files], lambda: _from_json(file))


def _from_json(file: Path) -> Tokenizer:
    whole, config = _read_json(file), _read_config(file.parent)
    model = _part(file, whole, "model")
    if unknown := whole.keys() - _PARTS:
        raise TokenizerFileError(f"{file}: unknown part {min(unknown)!r}, which might change the ids")
    if model.get("type") == "Unigram" or model.get("byte_fallback"):
        from luthier.tokenizers.piece_formats import load_pieces

        return load_pieces(file, whole, config, _template(file.parent, config))  # pyright: ignore[reportReturnType]
    _check_model(file, model)
    _check_after(file, whole)
    vocab: dict[str, int] = _part(file, model, "vocab")
    added = {a["content"]: a for a in whole.get("added_tokens") or [] if a["content"] != _free(a.get("id", -1))}
    for content, token in added.items():
        for flag in ("lstrip", "rstrip", "single_word"):
            if token.get(flag):
                raise TokenizerFileError(f"{file}: added token {content!r} has {flag}=true, which is not supported")
    tokens = _tokens(file, vocab, added)
    whole_pieces = bool(model.get("ignore_merges"))
    try:
        return Tokenizer(
            tokens,
            _merges(file, model.get("merges") or [], vocab),
            pattern=_pattern(file, whole.get("pre_tokenizer")),
            special_tokens={c: a["id"] for c, a in added.items() if a.get("special")},
            added_tokens={c: a["id"] for c, a in added.items() if not a.get("special")},
            normalizer=_normalizer(file, whole.get("normalizer")),
            whole_pieces=whole_pieces,
            eos_token=_content(config.get("eos_token")),
            pad_token=_content(config.get("pad_token")),
            chat_template=_template(file.parent, config),
            kept={"config": config, **{k: whole[k] for k in ("post_processor", "decoder") if whole.get(k)}},
        )
    except TokenizerFileError:
        raise
    except ValueError as error:
        raise TokenizerFileError(f"{file}: {error}") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise TokenizerFileError(f"{file}: not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise TokenizerFileError(f"{file}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from error
    if not isinstance(value, dict):
        raise TokenizerFileError(f"{file}: expected a JSON object, found {type(value).__name__}")
    return value


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    return _read_json(file) if file.is_file() else {}


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template: in tokenizer_config.json or, as `transformers` writes it now, in a file of its own."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several by name
        template = {t.get("name"): t.get("template") for t in template}.get("default")
    return template


def _part(file: Path, value: Mapping[str, Any], key: str) -> dict[str, Any]:
    if not isinstance(value.get(key), dict):
        raise TokenizerFileError(f"{file}: no '{key}' object; this is not a Hugging Face tokenizer.json")
    return value[key]


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _check_model(file: Path, model: Mapping[str, Any]) -> None:
    kind = model.get("type", "BPE" if "merges" in model else "without merges")
    if kind != "BPE":
        raise TokenizerFileError(f"{file}: the model is {kind}, only byte-level BPE is supported")
    if unknown := model.keys() - _MODEL_PARTS:
        raise TokenizerFileError(f"{file}: the model has an unknown part {min(unknown)!r}, which might change the ids")
    for key, harmless in _MODEL_DEFAULTS.items():
        if key in model and model[key] not in harmless:
            raise TokenizerFileError(f"{file}: the model has {key}={model[key]!r}, which is not supported")


def _check_after(file: Path, whole: Mapping[str, Any]) -> None:
    """What comes after encoding: `post_processor` may add special tokens, `decoder` must join bytes."""
    for step in _sequence(whole.get("post_processor"), "processors"):
        if step.get("type") not in ("ByteLevel", "TemplateProcessing", "BertProcessing", "RobertaProcessing"):
            raise TokenizerFileError(f"{file}: post_processor {_named([step])} is not supported")
    for step in _sequence(whole.get("decoder"), "decoders"):
        if step.get("type") != "ByteLevel":
            raise TokenizerFileError(f"{file}: decoder {_named([step])} is not supported, only ByteLevel")


def _normalizer(file: Path, part: Mapping[str, Any] | None) -> Any:
    steps = _sequence(part, "normalizers")
    if not steps:
        return ""
    if [p.get("type") for p in steps] == ["NFC"]:
        return "NFC"
    raise TokenizerFileError(f"{file}: normalizer {_named(steps)} is not supported, only NFC")


def _pattern(file: Path, part: Mapping[str, Any] | None) -> str:
    """The pattern (see the module's head) that the pre-tokenizer stands for."""
    steps = _sequence(part, "pretokenizers")
    if not steps or steps[-1].get("type") != "ByteLevel":
        raise TokenizerFileError(f"{file}: pre-tokenizer {_named(steps)} is not supported: it must end in ByteLevel")
    *first, last = steps
    if last.get("add_prefix_space", True):
        raise TokenizerFileError(f"{file}: pre-tokenizer ByteLevel has add_prefix_space=true, which is not supported")
    gpt2 = last.get("use_regex", True)
    if not first and gpt2:
        return "gpt2"
    if len(first) == 1 and gpt2 and first[0].get("type") == "Digits" and first[0].get("individual_digits"):
        return "smollm"
    if len(first) == 1 and not gpt2 and first[0].get("type") == "Split":
        split = first[0]
        found, invert = split.get("pattern", {}), split.get("invert", False)
        # "Removed" and inverted: what the expression finds is kept and the rest thrown away, as tiktoken does. The
        # known patterns leave no rest.
        isolated = split.get("behavior") == "Isolated" and not invert
        removed = split.get("behavior") == "Removed" and invert and found.get("Regex") in PATTERNS.values()
        if "Regex" in found and (isolated or removed):
            return pattern_name(found["Regex"])
    raise TokenizerFileError(f"{file}: pre-tokenizer {_named(steps)} is not supported in this combination")


def _sequence(part: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    if part is None:
        return []
    return list(part[key]) if part.get("type") == "Sequence" and key in part else [part]


def _named(steps: Iterable[Mapping[str, Any]]) -> str:
    return " + ".join(str(step.get("type")) for step in steps) or "none"


def _tokens(file: Path, vocab: Mapping[str, int], added: Mapping[str, Mapping[str, Any]]) -> list[bytes]:
    """id → bytes. Added tokens may leave ids free above the vocabulary; the vocabulary itself has no gaps."""
    by_id: dict[int, bytes] = {}
    for text, i in vocab.items():
        if i in by_id:
            raise TokenizerFileError(f"{file}: id {i} is given twice, to {spell(by_id[i])!r} and {text!r}")
        try:
            by_id[i] = text.encode("utf-8") if text in added else unspell(text)
        except KeyError as error:
            raise TokenizerFileError(
                f"{file}: token {text!r} holds {error.args[0]!r}, which is not byte-level spelling; not byte-level BPE"
            ) from error
    vocabulary_end = max(by_id, default=-1) + 1
    for content, token in added.items():
        i = token["id"]
        if by_id.get(i, content.encode("utf-8")) != content.encode("utf-8"):
            raise TokenizerFileError(f"{file}: id {i} is given twice, to {spell(by_id[i])!r} and {content!r}")
        by_id[i] = content.encode("utf-8")
    gap = next((i for i in range(vocabulary_end) if i not in by_id), None)
    if gap is not None:
        raise TokenizerFileError(f"{file}: no token has id {gap}; ids must be 0 to {vocabulary_end - 1} without gaps")
    return [by_id.get(i, b"") for i in range(max(by_id, default=-1) + 1)]


def _merges(file: Path, merges: list[Any], vocab: Mapping[str, int]) -> np.ndarray:
    pairs = []
    for k, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if len(pair) != 2:
            raise TokenizerFileError(f"{file}: merge {k} is {merge!r}, expected two tokens")
        for token in pair:
            if token not in vocab:
                raise TokenizerFileError(f"{file}: merge {k} joins {token!r}, which is not in the vocabulary")
        pairs.append((vocab[pair[0]], vocab[pair[1]]))
    return np.array(pairs, np.int32).reshape(-1, 2)


# ---------------------------------------------------------------- writing tokenizer.json


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json into `folder` (made if needed), each whole or not at all.

    `tokenizers` and `transformers` open the folder and give the same ids.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in tokenizer_files(tokenizer).items():
        temporary = folder / f".{name}.{os.getpid()}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / name)


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, str]:
    """File name → text of what `save_tokenizer` writes."""
    if not isinstance(tokenizer, Tokenizer):
        from luthier.tokenizers.piece_formats import piece_files

        return piece_files(tokenizer)
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_json(tokenizer),
        "normalizer": {"type": tokenizer.normalizer} if tokenizer.normalizer else None,
        "pre_tokenizer": _pattern_json(tokenizer.pattern),
        "post_processor": tokenizer.kept.get("post_processor", {**_BYTE_LEVEL, "trim_offsets": False}),
        "decoder": tokenizer.kept.get("decoder", _BYTE_LEVEL),
        "model": _model_json(tokenizer),
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000_000,
        **tokenizer.kept.get("config", {}),
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.pad_token,
        "chat_template": tokenizer.chat_template,
    }
    config = {key: value for key, value in config.items() if value is not None}
    return {
        "tokenizer.json": json.dumps(whole, ensure_ascii=False, indent=1) + "\n",
        "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2) + "\n",
    }


def _free(i: int) -> str:
    """What an id that nobody has is called in a file."""
    return f"<|free_{i}|>"


def _added_json(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Special and added tokens. `tokenizers` counts on from the vocabulary's size whatever ids a file gives, so that an
    id which nobody has (cl100k's 100256) gets a name."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    both = [(i, t, True) for t, i in tokenizer.special_tokens.items()]
    both += [(i, t, False) for t, i in tokenizer.added_tokens.items()]
    taken = {i for i, _, _ in both}
    both += [(i, _free(i), True) for i, token in enumerate(tokenizer.tokens) if not token and i not in taken]
    return [{"id": i, "content": text, **flags, "special": special} for i, text, special in sorted(both)]


def _pattern_json(pattern: str) -> dict[str, Any]:
    if pattern == "gpt2":
        return _BYTE_LEVEL
    if pattern == "smollm":
        return {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL]}
    expression = {"Regex": PATTERNS.get(pattern, pattern)}
    split = {"type": "Split", "pattern": expression, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, {**_BYTE_LEVEL, "use_regex": False}]}


def _model_json(tokenizer: Tokenizer) -> dict[str, Any]:
    outside = {i: text for text, i in {**tokenizer.special_tokens, **tokenizer.added_tokens}.items()}
    names = [outside.get(i) or spell(token) for i, token in enumerate(tokenizer.tokens)]
    last = max(i for i, token in enumerate(tokenizer.tokens) if token and i not in outside)
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": tokenizer.whole_pieces,
        "vocab": {name: i for i, name in enumerate(names[: last + 1])},  # tokens above it are added_tokens alone
        "merges": [[names[left], names[right]] for left, right in tokenizer.merges.tolist()],
    }


# ---------------------------------------------------------------- tiktoken


def load_tiktoken(
    file: Path, *, pattern: str, special_tokens: Mapping[str, int] | None = None, **settings: Any
) -> Tokenizer:
    """Read a file of tiktoken ranks. `settings` go to Tokenizer. Raises TokenizerFileError naming file and line."""
    data, special = Path(file).read_bytes(), dict(special_tokens or {})
    return through_cache(
        ["tiktoken", data, pattern, special, settings],
        lambda: _tiktoken(file, data, pattern=pattern, special=special, **settings),
    )


def _tiktoken(file: Path, data: bytes, *, pattern: str, special: dict[str, int], **settings: Any) -> Tokenizer:
    row, texts = _read_ranks(file, data)
    by_id = dict(zip(row.ids.tolist(), texts, strict=True))
    if clash := [text for text, i in special.items() if i in by_id]:
        raise TokenizerFileError(f"{file}: rank {special[clash[0]]} of the special token {clash[0]!r} is in the file")
    by_id |= {i: text.encode("utf-8") for text, i in special.items()}
    tokens = texts
    if len(texts) != len(by_id) or len(by_id) != int(row.ids.max(initial=-1)) + 1:  # special tokens or gaps
        tokens = [by_id.get(i, b"") for i in range(max(by_id, default=-1) + 1)]
        if gaps := set(range(int(row.ids.max(initial=0)))) - by_id.keys():
            raise TokenizerFileError(
                f"{file}: no token has rank {min(gaps)}; ranks must be without gaps\n"
                f"If a special token stands there, name it: special_tokens={{'<|endoftext|>': {min(gaps)}}}"
            )
    try:
        merges, joined = all_pairs(row)
        settings |= {"special_tokens": special, "whole_pieces": True, "joined": joined, "ranks": joined}
        return Tokenizer(tokens, merges, pattern=pattern, **settings)
    except ValueError as error:
        raise TokenizerFileError(f"{file}: {error}") from error


def _read_ranks(file: Path, data: bytes) -> tuple[Row, list[bytes]]:
    """The tokens in order of rank, twice. Raises TokenizerFileError naming file and line."""
    if (found := read_ranks(data)) is not None:
        letters, ends = found
        row, text, places = Row(letters, ends, np.arange(len(ends), dtype=np.int32)), letters.tobytes(), ends.tolist()
        return row, [text[begin:end] for begin, end in zip([0, *places], places, strict=False)]
    try:
        by_rank = ranks_by_the_book(data)
    except RanksError as error:
        raise TokenizerFileError(f"{file}:{error.args[0]}: {error.args[1]}") from error
    ids = sorted(by_rank)
    texts = [by_rank[i] for i in ids]
    return row_of(texts, ids), texts


def save_tiktoken(tokenizer: Tokenizer, file: Path) -> None:
    """Write the ranks of all tokens but special and added ones, ids as they are; load with
    `tiktoken.load.load_tiktoken_bpe` and give pattern and special tokens to `tiktoken.Encoding`.

    tiktoken takes the id for the rank of a merge. Raises VocabularyError where the ids are not in the order of the
    merges, which tiktoken could not follow.
    """
    if not tokenizer.whole_pieces and (np.diff(tokenizer.joined) <= 0).any():
        k = int(np.argmax(np.diff(tokenizer.joined) <= 0)) + 1
        raise VocabularyError(
            f"merge {k} makes an earlier id than the merge before it; tiktoken's format cannot say so"
        )
    lines = [f"{base64.b64encode(t).decode()} {i}\n" for t, i in tokenizer.ids_of_bytes.items()]
    file = Path(file)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    temporary.write_text("".join(lines), encoding="ascii")
    temporary.replace(file)
