"""Train a tokenizer: text in, a folder out that this library, `tokenizers` and `transformers` open with the same ids.

Only the training split is read: a tokenizer that has seen held-out text spells it in fewer tokens, and the bits per
byte measured on it would flatter. The algorithm is in `tokenizers/bpe_train.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from luthier.core.artifacts import Artifact, atomic_open, read_json, write_json
from luthier.core.console import progress, say
from luthier.core.data.texts import hash_texts, read_texts
from luthier.core.errors import ConfigError

if TYPE_CHECKING:
    from luthier.tokenizers.bpe import Tokenizer

__all__ = ["TokenizerConfig", "TokenizerSummary", "train_tokenizer"]

FACTS = "training.json"
STEP = 100  # ids between two looks at the progress bar


@dataclass(frozen=True)
class TokenizerConfig:
    """How large the vocabulary is and what its merges may join."""

    vocab_size: int = 4096
    """Ids at most, special tokens and the 256 bytes included. 4,096 for a few documents and a small model, 32,000 and
    more for a large corpus."""
    general: Literal["none", "python"] = "none"
    """General text beside the inputs: `python` is the documentation inside Python's own standard library."""
    pattern: str = "llama3"
    """How text is cut before merging: gpt2, cl100k, o200k, llama3, qwen2, smollm, or a regular expression of your own.
    llama3 is GPT-4's pattern as Llama 3 published it: numerals in threes, a word with its leading space."""
    min_frequency: int = 2
    """Occurrences that a pair needs to be merged; a small text then gives fewer ids than vocab_size."""
    special_tokens: tuple[str, ...] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
    """Tokens that no text can make, ids 0, 1, …: the end of a document, the start and end of a chat turn (ChatML),
    padding."""

    def __post_init__(self) -> None:
        if "<|endoftext|>" not in self.special_tokens:
            raise ConfigError("special_tokens must hold <|endoftext|>, which ends every document")
        if self.min_frequency < 1:
            raise ConfigError(f"min_frequency = {self.min_frequency}: expected 1 or more")


@dataclass(frozen=True)
class TokenizerSummary:
    """What was trained, on how much text, and how well it packs that text."""

    out: Path
    vocab_size: int
    wanted: int
    texts: int
    bytes: int
    tokens: int

    def __str__(self) -> str:
        less = (
            f" (of {self.wanted:,}: no pair is left that occurs often enough)" if self.vocab_size < self.wanted else ""
        )
        return (
            f"{self.vocab_size:,} ids{less} from {self.texts:,} texts, {self.bytes / 1e6:.2f} MB\n"
            f"{self.bytes / max(self.tokens, 1):.2f} bytes a token on the training text; tokenizer in {self.out}"
        )


def train_tokenizer(
    inputs: Sequence[Path], out: Path, config: TokenizerConfig | None = None, *, overwrite: bool = False
) -> TokenizerSummary:
    """Train a byte-level BPE tokenizer on the training split of `inputs` (see core/data/texts.py) into folder `out`.

    Does nothing if the same work is there. Raises VocabularyError for a vocabulary that is too small, PatternError,
    InputError for inputs without text, ArtifactError for other work in `out` (unless `overwrite`).
    """
    config, out = config or TokenizerConfig(), Path(out)
    inputs = [Path(path) for path in inputs]
    hashes, documents = hash_texts(inputs, general=config.general)
    work = Artifact(out, "train-tokenizer", asdict(config), hashes, documents=documents, overwrite=overwrite)
    if work.done:
        say(f"{out} is up to date")
        return _summary(out)
    from luthier.tokenizers.bpe_train import check_vocab_size
    from luthier.tokenizers.pretokenize import compile_pattern

    check_vocab_size(config.vocab_size, config.special_tokens)
    compile_pattern(config.pattern)
    texts = [t.text for t in read_texts(inputs, general=config.general) if t.split == "train"]
    with work:
        _write(work.folder, texts, config)
    return _summary(out)


def _write(folder: Path, texts: Sequence[str], config: TokenizerConfig) -> None:
    """Train on `texts` and write the tokenizer and the facts of its training into `folder`."""
    from luthier.core.data.conversations import CHATML_TEMPLATE
    from luthier.tokenizers.formats import tokenizer_files

    tokenizer = _train(texts, config)
    if {"<|im_start|>", "<|im_end|>"} <= tokenizer.special_tokens.keys():
        tokenizer.chat_template = CHATML_TEMPLATE
    for name, text in tokenizer_files(tokenizer).items():
        with atomic_open(folder / name) as file:
            file.write(text)
    facts = {
        "vocab_size": tokenizer.vocab_size,
        "wanted": config.vocab_size,
        "texts": len(texts),
        "bytes": sum(len(text.encode("utf-8")) for text in texts),
        "tokens": sum(map(tokenizer.count, texts)),
    }
    write_json(folder / FACTS, facts)


def _train(texts: Sequence[str], config: TokenizerConfig) -> Tokenizer:
    from luthier.tokenizers.bpe_train import count_words, train_on_words

    with progress("counting words", sum(map(len, texts)), "characters") as advance:
        words, counts = count_words(_told(texts, advance), config.pattern)
    with progress("merging", config.vocab_size, "ids") as advance:
        return train_on_words(
            words,
            counts,
            config.vocab_size,
            special_tokens=config.special_tokens,
            pattern=config.pattern,
            min_frequency=config.min_frequency,
            on_merge=lambda ids: advance(STEP) if ids % STEP == 0 else None,
        )


def _told(texts: Iterable[str], advance: Callable[..., None]) -> Iterator[str]:
    for text in texts:
        yield text
        advance(len(text))


def _summary(out: Path) -> TokenizerSummary:
    return TokenizerSummary(out, **read_json(out / FACTS))
