r"""GPT-2's two files: vocab.json and merges.txt (OpenAI named them encoder.json and vocab.bpe).

    vocab.json    {"!": 0, "\"": 1, …, "Ġthe": 262, …}     every token, in the spelling of formats.py, with its id
    merges.txt    #version: 0.2                              one merge a line, the earliest learned first
                  Ġ t
                  Ġ a

Tools older than tokenizer.json read and write these. They say nothing of the pattern (GPT-2's, unless you say another)
and do not mark special tokens; but a token that is neither a byte nor made by a merge cannot come from text, so that is
what it is: `<|endoftext|>` in GPT-2's own file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.tokenizers.bpe import Tokenizer, VocabularyError
from luthier.tokenizers.formats import BYTE_CHARACTERS, TokenizerFileError, spell, unspell

__all__ = ["find_vocab_merges", "load_vocab_merges", "save_vocab_merges"]

NAMES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))


def find_vocab_merges(folder: Path) -> tuple[Path, Path] | None:
    """The two files in a folder, if they are there under either pair of names."""
    pairs = ((folder / vocab, folder / merges) for vocab, merges in NAMES)
    return next((pair for pair in pairs if all(file.is_file() for file in pair)), None)


def load_vocab_merges(
    vocab: Path,
    merges: Path,
    *,
    pattern: str = "gpt2",
    special_tokens: Mapping[str, int] | None = None,
    **settings: Any,
) -> Tokenizer:
    """Read the two files. `special_tokens` are those that are not in vocab.json; `settings` go to Tokenizer.

    Raises TokenizerFileError naming file and line of what is wrong.
    """
    ids = _read_vocab(Path(vocab))
    pairs = _read_merges(Path(merges), ids)
    made = {left + right for left, right in pairs} | set(BYTE_CHARACTERS.values())
    special = {text: i for text, i in ids.items() if text not in made} | dict(special_tokens or {})
    tokens = _tokens(Path(vocab), ids, special)
    try:
        return Tokenizer(
            tokens,
            [(ids[left], ids[right]) for left, right in pairs],
            pattern=pattern,
            special_tokens=special,
            **settings,
        )
    except ValueError as error:
        raise TokenizerFileError(f"{vocab} and {Path(merges).name}: {error}") from error


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TokenizerFileError(f"{file} does not exist") from None
    except UnicodeDecodeError as error:
        raise TokenizerFileError(f"{file}: not UTF-8 at byte {error.start}") from error


def _read_vocab(file: Path) -> dict[str, int]:
    try:
        ids = json.loads(_read(file), object_pairs_hook=lambda pairs: _distinct(file, pairs))
    except json.JSONDecodeError as error:
        raise TokenizerFileError(f"{file}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from error
    if not isinstance(ids, dict) or not all(type(i) is int and i >= 0 for i in ids.values()):
        raise TokenizerFileError(f"{file}: expected one JSON object of tokens and their ids")
    return ids


def _distinct(file: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict; a token that stands in it twice would silently lose an id."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(token for k, (token, _) in enumerate(pairs) if token in dict(pairs[:k]))
        raise TokenizerFileError(f"{file}: the token {twice!r} stands twice in the vocabulary")
    return found


def _read_merges(file: Path, ids: Mapping[str, int]) -> list[tuple[str, str]]:
    pairs = []
    for number, line in enumerate(_read(file).split("\n"), 1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2:
            raise TokenizerFileError(f"{file}:{number}: expected two tokens with a blank between, found {line!r}")
        for token in (*pair, "".join(pair)):
            if token not in ids:
                raise TokenizerFileError(f"{file}:{number}: {token!r} is not in the vocabulary")
        pairs.append((pair[0], pair[1]))
    return pairs


def _tokens(file: Path, ids: Mapping[str, int], special: Mapping[str, int]) -> list[bytes]:
    """id → bytes; every id from 0 on has one token."""
    by_id: dict[int, bytes] = {}
    for text, i in {**ids, **special}.items():
        if i in by_id:
            raise TokenizerFileError(f"{file}: id {i} is given twice, the second time to {text!r}")
        by_id[i] = text.encode("utf-8") if text in special else unspell(text)
    gap = next((i for i in range(len(by_id)) if i not in by_id), None)
    if gap is not None:
        raise TokenizerFileError(f"{file}: no token has id {gap}; ids must be 0 to {max(by_id)} without gaps")
    return [by_id[i] for i in range(len(by_id))]


def save_vocab_merges(tokenizer: Tokenizer, folder: Path) -> None:
    """Write vocab.json and merges.txt into `folder` (made if needed), each whole or not at all. The reader must be told
    the pattern. Raises VocabularyError for what the two files cannot say."""
    _check_sayable(tokenizer)
    special = {i: text for text, i in tokenizer.special_tokens.items()}
    names = [special.get(i) or spell(token) for i, token in enumerate(tokenizer.tokens)]
    vocab = json.dumps({name: i for i, name in enumerate(names)}, ensure_ascii=False)
    merges = "".join(f"{names[left]} {names[right]}\n" for left, right in tokenizer.merges.tolist())
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("vocab.json", vocab), ("merges.txt", f"#version: 0.2\n{merges}")):
        temporary = folder / f".{name}.{os.getpid()}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / name)


def _check_sayable(tokenizer: Tokenizer) -> None:
    """vocab.json and merges.txt know ids and merges alone."""
    other = {
        "a normalizer": bool(tokenizer.normalizer),
        "added tokens that are not special": bool(tokenizer.added_tokens),
        "ids without a token": b"" in tokenizer.tokens,
        "tokens that no merge makes": tokenizer.whole_pieces and _unmade(tokenizer),
    }
    if found := [what for what, there in other.items() if there]:
        raise VocabularyError(
            f"the tokenizer has {found[0]}, which vocab.json and merges.txt cannot say\n"
            "Write a tokenizer.json: save_tokenizer."
        )


def _unmade(tokenizer: Tokenizer) -> bool:
    """Whether a token that is a whole piece is not what its merges make of it."""
    merges_alone = Tokenizer(
        tokenizer.tokens, tokenizer.merges, pattern=tokenizer.pattern, special_tokens=tokenizer.special_tokens
    )
    texts = [token.decode("utf-8", "ignore") for token in tokenizer.ids_of_bytes]
    ids, offsets = tokenizer.encode_batch(texts)
    others, ends = merges_alone.encode_batch(texts)
    return ids.tolist() != others.tolist() or offsets.tolist() != ends.tolist()
