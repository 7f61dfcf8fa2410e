"""Train a tokenizer: text in, a folder out that this library, `tokenizers` and `transformers` open with the same ids.

Only the training split is read: a tokenizer that has seen held-out text spells it in fewer tokens, and the bits per
byte measured on it would flatter. The algorithm is in `tokenizers/bpe_train.py`.

Two kinds: byte-level BPE into tokenizer.json; with `model = "unigram"` a unigram language model (tokenizers/
unigram_train.py) into tokenizer.model, SentencePiece's format.

With `extend`, the merges of a tokenizer that is there are continued on the new text: its ids stay as they are, and up
to `add` new ones come behind them. A model made for it grows by `models/resize.py`.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.artifacts import Artifact, apart, atomic_open, read_json, write_json
from luthier.core.compiling import announce_compiling
from luthier.core.console import counted, progress, say
from luthier.core.data.packed import PACKED
from luthier.core.data.texts import COLUMN, find_texts, hash_texts, read_texts, without_default
from luthier.core.errors import ConfigError

if TYPE_CHECKING:
    from luthier.tokenizers.bpe import Tokenizer
    from luthier.tokenizers.bpe_train import Trained
    from luthier.tokenizers.word_counts import WordCounts

__all__ = ["TokenizerConfig", "TokenizerSummary", "train_tokenizer"]

FACTS = "training.json"
NOT_IN_RESULT = ("num_threads", "max_memory")  # settings that change nothing in the tokenizer


@dataclass(frozen=True)
class TokenizerConfig:
    """How large the vocabulary is and what its merges may join."""

    model: Literal["bpe", "unigram"] = "bpe"
    """bpe: byte-level BPE, a tokenizer.json. unigram: the most probable pieces by a unigram language model (Kudo 2018,
    arXiv:1804.10959), a SentencePiece tokenizer.model; pattern, min_frequency, max_piece_length are not asked."""
    vocab_size: int = 4096
    """Ids at most, special tokens and the 256 bytes included. 4,096 for a few documents and a small model, 32,000 and
    more for a large corpus."""
    add: int = 1000
    """New ids at most, where a tokenizer is extended; vocab_size, pattern and special_tokens are then the old one's."""
    general: Literal["none", "python"] = "none"
    """General text beside the inputs: `python` is the documentation inside Python's own standard library."""
    column: str = COLUMN
    """Field of JSON lines, or column of a Parquet table, that holds the text."""
    pattern: str = "llama3"
    """How text is cut before merging: gpt2, cl100k, o200k, llama3, qwen2, smollm, or a regular expression of your own.
    llama3 is GPT-4's pattern as Llama 3 published it: numerals in threes, a word with its leading space."""
    min_frequency: int = 2
    """Occurrences that a pair needs to be merged; a small text then gives fewer ids than vocab_size."""
    max_token_length: int = 0
    """Longest token that may be learned, in bytes; 0: no limit. Of a unigram model in characters; 0: 16."""
    character_coverage: float = 0.9995
    """unigram: share of the text whose characters, the most frequent ones, become pieces; the rest is unknown."""
    max_piece_length: int = 1024
    """Bytes of the longest piece that is looked at whole; longer ones (base64, a file without spaces) are cut and
    counted in the summary."""
    special_tokens: tuple[str, ...] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
    """Tokens that no text can make, ids 0, 1, …: the end of a document, the start and end of a chat turn (ChatML),
    padding."""
    num_threads: int = 0
    """Threads that count words; 0: all cores. The result is the same for any number."""
    max_memory: float = 2048.0
    """Megabytes for the table of different words; what is more waits in a temporary folder."""

    def __post_init__(self) -> None:
        if "<|endoftext|>" not in self.special_tokens:
            raise ConfigError("special_tokens must hold <|endoftext|>, which ends every document")
        for name, least in (("min_frequency", 1), ("add", 1), ("max_piece_length", 16)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected {least} or more")
        if self.max_token_length and self.max_token_length < 2:
            raise ConfigError(f"max_token_length = {self.max_token_length}: expected 2 or more, or 0 for no limit")
        if not 0 < self.character_coverage <= 1:
            raise ConfigError(f"character_coverage = {self.character_coverage}: expected more than 0, at most 1")
        if self.num_threads < 0 or self.max_memory <= 0:
            raise ConfigError("num_threads must be 0 or more, max_memory more than 0")


@dataclass(frozen=True)
class TokenizerSummary:
    """What was trained, on how much text, and how well it packs that text. `before`: tokens before extending."""

    out: Path
    vocab_size: int
    wanted: int
    texts: int
    bytes: int
    tokens: int
    capped: int = 0
    cut: int = 0
    extended: int = 0
    before: int = 0

    def __str__(self) -> str:
        less = (
            f" (of {self.wanted:,}: no pair is left that occurs often enough)" if self.vocab_size < self.wanted else ""
        )
        lines = [f"{self.vocab_size:,} ids{less} from {counted(self.texts, 'text')}, {self.bytes / 1e6:.2f} MB"]
        packed = f"{self.bytes / max(self.tokens, 1):.2f} bytes a token on the training text"
        if self.extended:
            packed += f", {self.bytes / max(self.before, 1):.2f} before the {self.extended:,} new ids"
        if self.capped:
            lines.append(f"{self.capped:,} pieces were longer than --max-piece-length and were cut there")
        if self.cut:
            lines.append(f"{self.cut:,} longer stretches without a place to cut at were cut anyway")
        return "\n".join([*lines, f"{packed}; tokenizer in {self.out}"])


def train_tokenizer(
    inputs: Sequence[Path],
    out: Path,
    config: TokenizerConfig | None = None,
    *,
    extend: Path | None = None,
    overwrite: bool = False,
) -> TokenizerSummary:
    """Train a tokenizer on the training split of `inputs` (see core/data/texts.py) into folder `out`;
    with `extend`, a tokenizer's folder or file, continue that one.

    Does nothing if the same work is there. Raises VocabularyError for a vocabulary that is too small, PatternError,
    InputError for inputs without text, ArtifactError for other work in `out` (unless `overwrite`), TokenizerFileError.
    """
    config, out = config or TokenizerConfig(), Path(out)
    inputs = apart(inputs, out)
    hashes, documents = hash_texts(inputs, general=config.general)
    settings = without_default({name: v for name, v in asdict(config).items() if name not in NOT_IN_RESULT})
    known: dict[str, Path | str | None] = {**hashes, "extend": None if extend is None else Path(extend)}
    work = Artifact(out, "train-tokenizer", settings, known, documents=documents, overwrite=overwrite)
    if work.done:
        say(f"{out} is up to date")
        return _summary(out)
    if config.model == "unigram":
        return _train_unigram(work, inputs, config, extend)
    base = _base(extend, config)
    texts = _Texts(inputs, config, base)
    words = _count(texts, config, base.pattern if base else config.pattern)
    with work:
        trained = _learn(words, config, base)
        facts = {"texts": texts.texts, "bytes": texts.bytes, "capped": words.capped, "cut": words.cut}
        _write(work.folder, trained, base, facts, config)
    return _summary(out)


def _base(extend: Path | None, config: TokenizerConfig) -> Tokenizer | None:
    """The tokenizer to go on from, or None; settings that cannot be are refused before any text is read."""
    from luthier.tokenizers.bpe import Tokenizer
    from luthier.tokenizers.bpe_train import check_vocab_size
    from luthier.tokenizers.formats import load_tokenizer
    from luthier.tokenizers.pretokenize import compile_pattern

    if extend is None:
        check_vocab_size(config.vocab_size, config.special_tokens)
        compile_pattern(config.pattern)
        return None
    base = load_tokenizer(Path(extend))
    if not isinstance(base, Tokenizer):
        raise ConfigError(f"{extend} is no byte-level BPE tokenizer: only those can be extended")
    return base


class _Texts:
    """The texts to learn from, read once, and how many there were."""

    def __init__(self, inputs: Sequence[Path], config: TokenizerConfig, base: Tokenizer | None) -> None:
        from luthier.tokenizers.pretokenize import PATTERNS
        from luthier.tokenizers.word_counts import PART

        self.texts = self.bytes = 0
        pattern = base.pattern if base else config.pattern
        # Words of a unigram model end at blanks only, and no part may end between a letter and its accent.
        self._normalized = bool(base and base.normalizer)
        whole = pattern not in PATTERNS or self._normalized or config.model == "unigram"
        self._size = 0 if whole else PART
        self._inputs, self._config = inputs, config

    def read(self, advance: Callable[..., None]) -> Iterator[str]:
        general, column = self._config.general, self._config.column
        for text in read_texts(self._inputs, general=general, part_size=self._size, column=column):
            size = len(text.text.encode("utf-8"))
            advance(size)
            if text.split == "train":
                self.texts += not text.part
                self.bytes += size
                yield unicodedata.normalize("NFC", text.text) if self._normalized else text.text

    def size(self) -> int | None:
        """Bytes to read, None where that is not known before."""
        files = [path for given in self._inputs for path in find_texts(given)]
        files = [path / "documents.jsonl" if path.is_dir() else path for path in files]
        packed = self._config.general != "none" or any(f.suffix.lower() in (*PACKED, ".parquet") for f in files)
        return None if packed else sum(file.stat().st_size for file in files)


def _count(texts: _Texts, config: TokenizerConfig, pattern: str) -> WordCounts:
    from luthier.tokenizers.word_counts import count_words

    announce_compiling(numba=False)
    with progress("counting words", texts.size(), "bytes") as advance:
        return count_words(
            texts.read(advance),
            pattern,
            num_threads=config.num_threads or _cores(),
            max_memory=config.max_memory,
            max_piece_length=config.max_piece_length,
        )


def _cores() -> int:
    return (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) or 1


def _learn(words: WordCounts, config: TokenizerConfig, base: Tokenizer | None) -> Trained:
    from luthier.tokenizers.bpe_train import extend_on_words, train_on_words

    limits: dict[str, Any] = {"min_frequency": config.min_frequency, "max_token_length": config.max_token_length}
    with progress("merging", 100, "%") as advance:
        done = 0.0

        def on_progress(share: float, ids: int) -> None:
            nonlocal done
            advance(max(100 * share - done, 0), f"{ids:,} ids")
            done = max(done, 100 * share)

        if base is not None:
            return extend_on_words(base, words, config.add, **limits, on_progress=on_progress)
        limits |= {"special_tokens": config.special_tokens, "pattern": config.pattern}
        return train_on_words(words, config.vocab_size, **limits, on_progress=on_progress)


def _train_unigram(
    work: Artifact, inputs: Sequence[Path], config: TokenizerConfig, extend: Path | None
) -> TokenizerSummary:
    """The same for a unigram model; the texts are read a second time to count their tokens."""
    from luthier.tokenizers.sentencepiece_model import save_sentencepiece
    from luthier.tokenizers.unigram_train import train_unigram

    if extend is not None:
        raise ConfigError(f"{extend} cannot be extended by a unigram model: leave out one of extend and model")
    texts = _Texts(inputs, config, None)
    with progress("reading", texts.size(), "bytes") as advance:
        tokenizer = train_unigram(
            texts.read(advance),
            config.vocab_size,
            special_tokens=config.special_tokens,
            character_coverage=config.character_coverage,
            max_piece_length=config.max_token_length or 16,
            num_threads=config.num_threads or _cores(),
            on_round=lambda pieces, likelihood: advance(0, f"{pieces:,} pieces, {likelihood:.2f} nats a word"),
        )
    again = _Texts(inputs, config, None)
    with progress("counting tokens", again.size(), "bytes") as advance:
        tokens = sum(map(tokenizer.count, again.read(advance)))
    facts = {"vocab_size": tokenizer.vocab_size, "wanted": config.vocab_size, "texts": texts.texts}
    with work:
        save_sentencepiece(tokenizer, work.folder / "tokenizer.model")
        write_json(work.folder / FACTS, {**facts, "bytes": texts.bytes, "tokens": tokens})
    return _summary(work.out)


def _write(
    folder: Path, trained: Trained, base: Tokenizer | None, facts: dict[str, int], config: TokenizerConfig
) -> None:
    """The tokenizer and the facts of its training."""
    from luthier.core.data.conversations import CHATML_TEMPLATE
    from luthier.tokenizers.formats import tokenizer_files

    tokenizer = trained.tokenizer
    if base is None and {"<|im_start|>", "<|im_end|>"} <= tokenizer.special_tokens.keys():
        tokenizer.chat_template = CHATML_TEMPLATE
    for name, text in tokenizer_files(tokenizer).items():
        with atomic_open(folder / name) as file:
            file.write(text)
    wanted = base.vocab_size + config.add if base else config.vocab_size
    facts = {"vocab_size": tokenizer.vocab_size, "wanted": wanted, **facts, "tokens": trained.after}
    if base is not None:
        facts |= {"extended": tokenizer.vocab_size - base.vocab_size, "before": trained.before}
    write_json(folder / FACTS, facts)


def _summary(out: Path) -> TokenizerSummary:
    return TokenizerSummary(out, **read_json(out / FACTS))
