"""Training tokenizers: ours beside Hugging Face's, gigatoken's, rustbpe's and sentencepiece's.

Everyone gets the same text in memory, GPT-2's pattern, the 256 bytes and one special token, and the same number of ids.
Each first trains once in a process of its own, which says what it learned and how much memory it took; then all take
turns in one process per number of threads, which the Rust packages choose once.

    tokenizers, gigatoken   equal: the same merges in the same order
    rustbpe                 breaks ties in another order; equal: 98% of the tokens are the same
    sentencepiece           BPE of characters, cut otherwise; equal: as many bytes a token, within 5%
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from typing import Any, NamedTuple

from luthier.core.benchmarks.texts import Kind, documents
from luthier.core.benchmarks.timing import Row, Tool, in_child, race, rows_of, thread_counts

__all__ = ["train"]

END = "<|endoftext|>"
Merges = list[tuple[bytes, bytes]]


class Work(NamedTuple):
    """What is trained on: documents that together are the text, how many ids, on how many threads."""

    texts: list[str]
    size: int
    threads: int

    @classmethod
    def of(cls, text: str, size: int, threads: int) -> Work:
        return cls(documents(text), size, threads)


class Trainer(NamedTuple):
    """`prepare` makes what the package wants of the work and returns the call to be timed; `learned` makes of the
    call's result what `same` compares with ours."""

    prepare: Callable[[Work], Callable[[], Any]]
    learned: Callable[[Any, Work], Any]
    check: str
    same: Callable[[Any, Any], bool]


def train(kind: Kind, repeats: int) -> list[Row]:
    """Rows of time and of memory, for each number of threads."""
    size = min(32_000, max(280, int(kind.megabytes * 5000)))
    rows: list[Row] = []
    for threads in thread_counts():
        label = f"{kind.name}, {kind.megabytes:.1f} MB, {size:,} ids, {threads} thread{'s' * (threads > 1)}"
        rows += _train(label, kind.text, size, threads, repeats)
    return rows


def _train(label: str, text: str, size: int, threads: int, repeats: int) -> list[Row]:
    environment = {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false"}
    alone = partial(in_child, environment=environment)
    once = {package: alone(_once, package, text, size, threads) for package in TRAINERS if _installed(package)}
    ours = once["ours"].result
    equal = {package: TRAINERS[package].same(ours, child.result) for package, child in once.items()}
    rows = alone(_race, list(once), text, size, threads, repeats, label).result
    for row in rows:
        package = row["peer"].split()[0] if row["peer"] != "ours again" else "ours"
        row |= {"equal": equal.get(package, True), "check": TRAINERS[package].check if package in TRAINERS else ""}
    for what, above in (("MB", False), ("MB above text and imports", True)):
        memory = {_label(p): [(child.peak - child.before * above) / 1e6] for p, child in once.items()}
        rows += rows_of(label, what, memory, {}, group="train, most memory", more_is_better=False)
    return rows


def _once(package: str, text: str, size: int, threads: int) -> Any:
    """In a process of its own: what the package learns."""
    work = Work.of(text, size, threads)
    return TRAINERS[package].learned(TRAINERS[package].prepare(work)(), work)


def _race(packages: Sequence[str], text: str, size: int, threads: int, repeats: int, label: str) -> list[Row]:
    """In a process of its own: all in turn. What they learned was compared before."""
    _once("ours", text[:10_000], 280, threads)  # loads what Numba compiled
    work = Work.of(text, size, threads)
    tools = {_label(p): Tool(TRAINERS[p].prepare(work), same=None) for p in packages}
    return race(label, "s", tools, min(repeats, 3), group="train")


def _label(package: str) -> str:
    return package if package == "ours" else f"{package} {metadata.version(package)}"


def _installed(package: str) -> bool:
    try:
        return package == "ours" or bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


# ---------------------------------------------------------------- the trainers


def _ours(work: Work) -> Callable[[], Any]:
    from inspect import signature

    from luthier.tokenizers.bpe_train import train_bpe

    threads = {"num_threads": work.threads} if "num_threads" in signature(train_bpe).parameters else {}
    return lambda: train_bpe(work.texts, work.size, special_tokens=(END,), pattern="gpt2", **threads)


def _our_merges(tokenizer: Any, _: Work) -> Merges:
    tokens = tokenizer.tokens
    return [(tokens[left], tokens[right]) for left, right in tokenizer.merges.tolist()]


def _gigatoken(work: Work) -> Callable[[], Any]:
    import gigatoken

    data = "".join(work.texts).encode("utf-8")
    return lambda: _silent(gigatoken.train_bpe, data, work.size, [END])


def _silent(function: Callable[..., Any], *args: Any) -> Any:
    """Call what prints as it goes, from Rust, past sys.stdout."""
    kept = os.dup(1), os.dup(2)
    with open(os.devnull, "w") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    try:
        return function(*args)
    finally:
        for number, copy in enumerate(kept, 1):
            os.dup2(copy, number)
            os.close(copy)


def _hugging_face(work: Work) -> Callable[[], Any]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    def train() -> Any:
        tokenizer: Any = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=work.size,
            min_frequency=2,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(work.texts, trainer)
        return tokenizer

    return train


def _hugging_face_merges(tokenizer: Any, _: Work) -> Merges:
    from luthier.tokenizers.formats import unspell

    return [(unspell(a), unspell(b)) for a, b in json.loads(tokenizer.to_str())["model"]["merges"]]


def _rustbpe(work: Work) -> Callable[[], Any]:
    import rustbpe

    from luthier.tokenizers.pretokenize import PATTERNS

    def train() -> Any:
        tokenizer = rustbpe.Tokenizer()
        tokenizer.train_from_iterator(iter(work.texts), work.size - 1, pattern=PATTERNS["gpt2"])
        return tokenizer

    return train


def _rustbpe_tokens(tokenizer: Any, _: Work) -> set[bytes]:
    return {bytes(token) for token, _ in tokenizer.get_mergeable_ranks() if len(token) > 1}


def _same_tokens(ours: Merges, theirs: set[bytes]) -> bool:
    tokens = {a + b for a, b in ours}
    return len(tokens & theirs) >= 0.98 * max(len(tokens), len(theirs))


def _sentencepiece(work: Work) -> Callable[[], Any]:
    import sentencepiece

    def train() -> bytes:
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(work.texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=work.size,
            num_threads=work.threads,
            byte_fallback=True,
            max_sentence_length=1 << 24,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        return model.getvalue()

    return train


SAME_MERGES = "the same merges in the same order"
TRAINERS: dict[str, Trainer] = {
    "ours": Trainer(_ours, _our_merges, SAME_MERGES, list.__eq__),
    "gigatoken": Trainer(_gigatoken, lambda found, _: found[1], SAME_MERGES, list.__eq__),
    "tokenizers": Trainer(_hugging_face, _hugging_face_merges, SAME_MERGES, list.__eq__),
    "rustbpe": Trainer(_rustbpe, _rustbpe_tokens, "98% of the tokens, ties broken otherwise", _same_tokens),
}
