"""Training tokenizers: ours beside Hugging Face's, gigatoken's, rustbpe's and sentencepiece's.

Everyone gets the same text in memory and the same number of ids; BPE gets GPT-2's pattern, the 256 bytes and one
special token. Each first trains once in a process of its own, which says what it learned and how much memory it took;
then all take turns in one process per number of threads, which the Rust packages choose once.

    BPE      tokenizers, gigatoken   equal: the same merges in the same order
             rustbpe                 breaks ties in another order; equal: 98% of the tokens are the same
             sentencepiece           of characters, cut otherwise; equal: as many ids for the text, within 10%
    unigram  sentencepiece           equal: the likelihood of the text under ours no more than 0.5% below its own
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
from luthier.core.benchmarks.timing import AGAIN, Memory, Row, Tool, in_child, most_memory, race, rows_of, thread_counts

__all__ = ["train", "unigram"]

END = "<|endoftext|>"
WARM = [f"{n} is a number, and {n * n} is its square.\n" for n in range(3000)]  # trained on first: all is compiled then
JUDGED = 1_000_000  # characters of the text that a vocabulary is judged by where merges cannot be compared
Merges = list[tuple[bytes, bytes]]


class Work(NamedTuple):
    """What is trained on: documents that together are the text, how many ids, on how many threads."""

    texts: list[str]
    size: int
    threads: int

    @property
    def judged(self) -> str:
        return "".join(self.texts)[:JUDGED]


class Trainer(NamedTuple):
    """`prepare` makes what the package wants of the work and returns the call to be timed; `learned` makes of the
    call's result what `same` (ours, theirs) compares, in the words of `check`."""

    prepare: Callable[[Work], Callable[[], Any]]
    learned: Callable[[Any, Work], Any]
    check: str
    same: Callable[[Any, Any], bool]


def train(kind: Kind, repeats: int) -> list[Row]:
    """Byte-level BPE: rows of time and of memory, for each number of threads."""
    return _threads("train", kind, min(32_000, max(280, int(kind.megabytes * 5000))), repeats)


def unigram(kind: Kind, repeats: int) -> list[Row]:
    """The same for the unigram model."""
    return _threads("unigram", kind, min(8000, max(300, int(kind.megabytes * 3000))), repeats)


def _threads(group: str, kind: Kind, size: int, repeats: int) -> list[Row]:
    rows: list[Row] = []
    for threads in thread_counts():
        label = f"{kind.name}, {kind.megabytes:.1f} MB, {size:,} ids, {threads} thread{'s' * (threads > 1)}"
        rows += _in_turn(group, label, kind.text, size, threads, repeats)
    return rows


def _in_turn(group: str, label: str, text: str, size: int, threads: int, repeats: int) -> list[Row]:
    environment = {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false"}
    alone, trainers = partial(in_child, environment=environment), GROUPS[group]
    once = {name: alone(_once, group, name, text, size, threads) for name in trainers if _installed(name)}
    equal = {name: trainers[name].same(once["ours"][0], learned) for name, (learned, _) in once.items()}
    rows = alone(_race, group, list(once), text, size, threads, repeats, label)
    for row in rows:
        name = "ours" if row["peer"] in (AGAIN, "none") else row["peer"].split()[0]
        row |= {"equal": equal[name], "check": trainers[name].check}
    for what, above in (("MB", False), ("MB above text and imports", True)):
        memory = {_label(name): [(m.most - m.before * above) / 1e6] for name, (_, m) in once.items()}
        rows += rows_of(label, what, memory, {}, group=f"{group}, most memory", more_is_better=False)
    return rows


def _once(group: str, name: str, text: str, size: int, threads: int) -> tuple[Any, Memory]:
    """In a process of its own: what the package learns, and the memory it takes once all is imported."""
    trainer = GROUPS[group][name]
    trainer.prepare(Work(WARM, 300, threads))()
    work = Work(documents(text), size, threads)
    train = trainer.prepare(work)
    with most_memory() as memory:
        trained = train()
    return trainer.learned(trained, work), memory


def _race(group: str, names: Sequence[str], text: str, size: int, threads: int, repeats: int, label: str) -> list[Row]:
    """In a process of its own: all in turn. What they learned was compared before."""
    GROUPS[group]["ours"].prepare(Work(WARM, 300, threads))()  # loads what Numba compiled
    work = Work(documents(text), size, threads)
    tools = {_label(name): Tool(GROUPS[group][name].prepare(work), same=None) for name in names}
    return race(label, "s", tools, min(repeats, 3), group=group)


def _label(name: str) -> str:
    return name if name == "ours" else f"{name} {metadata.version(name)}"


def _installed(name: str) -> bool:
    try:
        return name == "ours" or bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


# ---------------------------------------------------------------- byte-level BPE


class Learned(NamedTuple):
    """Our merges, and how many ids the judged text has with them."""

    merges: Merges
    ids: int


def _ours(work: Work) -> Callable[[], Any]:
    from luthier.tokenizers.bpe_train import train_bpe

    return lambda: train_bpe(work.texts, work.size, special_tokens=(END,), pattern="gpt2", num_threads=work.threads)


def _ours_learned(tokenizer: Any, work: Work) -> Learned:
    tokens = tokenizer.tokens
    merges = [(tokens[left], tokens[right]) for left, right in tokenizer.merges.tolist()]
    return Learned(merges, tokenizer.count(work.judged))


def _gigatoken(work: Work) -> Callable[[], Any]:
    import gigatoken  # pyright: ignore[reportMissingImports]

    data = "".join(work.texts).encode("utf-8")
    return lambda: _silent(gigatoken.train_bpe, data, work.size, [END])


def _silent(function: Callable[..., Any], *args: Any) -> Any:
    """Call what prints as it goes, from Rust, past sys.stdout."""
    kept = os.dup(1), os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    try:
        return function(*args)
    finally:
        for number, copy in enumerate(kept, 1):
            os.dup2(copy, number)
            os.close(copy)
        os.close(nothing)


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


def _same_merges(ours: Learned, theirs: Learned | Merges) -> bool:
    return ours.merges == (theirs.merges if isinstance(theirs, Learned) else theirs)


def _rustbpe(work: Work) -> Callable[[], Any]:
    import rustbpe  # pyright: ignore[reportMissingImports]

    from luthier.tokenizers.pretokenize import PATTERNS

    def train() -> Any:
        tokenizer: Any = rustbpe.Tokenizer()  # pyright: ignore[reportAttributeAccessIssue]
        tokenizer.train_from_iterator(iter(work.texts), work.size - 1, pattern=PATTERNS["gpt2"])
        return tokenizer

    return train


def _rustbpe_tokens(tokenizer: Any, _: Work) -> set[bytes]:
    return {bytes(token) for token, _ in tokenizer.get_mergeable_ranks() if len(token) > 1}


def _same_tokens(ours: Learned, theirs: set[bytes]) -> bool:
    tokens = {a + b for a, b in ours.merges}
    return len(tokens & theirs) >= 0.98 * max(len(tokens), len(theirs))


# ---------------------------------------------------------------- sentencepiece


def _sentencepiece(work: Work, **settings: Any) -> Callable[[], Any]:
    import sentencepiece

    def train() -> bytes:
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
            sentence_iterator=iter(work.texts),
            model_writer=model,
            vocab_size=work.size,
            num_threads=work.threads,
            max_sentence_length=1 << 24,
            hard_vocab_limit=False,
            minloglevel=2,
            **settings,
        )
        return model.getvalue()

    return train


WITH_SPACES = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
_sentencepiece_bpe = partial(
    _sentencepiece, model_type="bpe", byte_fallback=True, allow_whitespace_only_pieces=True, **WITH_SPACES
)


def _sentencepiece_ids(model: bytes, work: Work) -> int:
    return len(_processor(model).encode(work.judged))


def _processor(model: bytes) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=model)  # pyright: ignore[reportCallIssue]


def _our_unigram(work: Work) -> Callable[[], Any]:
    from luthier.tokenizers.unigram_train import train_unigram

    return lambda: train_unigram(work.texts, work.size, num_threads=work.threads)


def _our_likelihood(tokenizer: Any, work: Work) -> float:
    ids = tokenizer.encode_batch(documents(work.judged))[0]
    return float(tokenizer.scores[ids[ids != tokenizer.unk_id]].sum())


def _likelihood(model: bytes, work: Work) -> float:
    """Logarithm of the probability of the text's best segmentation. A character that is unknown counts for neither."""
    processor = _processor(model)
    ids = [i for found in processor.encode(documents(work.judged)) for i in found if i != processor.unk_id()]
    return sum(processor.get_score(ids))


SAME_MERGES = "the same merges in the same order"
GROUPS: dict[str, dict[str, Trainer]] = {
    "train": {
        "ours": Trainer(_ours, _ours_learned, SAME_MERGES, _same_merges),
        "gigatoken": Trainer(_gigatoken, lambda found, _: found[1], SAME_MERGES, _same_merges),
        "tokenizers": Trainer(_hugging_face, _hugging_face_merges, SAME_MERGES, _same_merges),
        "rustbpe": Trainer(_rustbpe, _rustbpe_tokens, "98% of the tokens, ties broken otherwise", _same_tokens),
        "sentencepiece": Trainer(
            _sentencepiece_bpe,
            _sentencepiece_ids,
            "as many ids for the text, within 10%",
            lambda ours, theirs: abs(ours.ids / theirs - 1) < 0.1,
        ),
    },
    "unigram": {
        "ours": Trainer(_our_unigram, _our_likelihood, "", lambda ours, theirs: True),
        "sentencepiece": Trainer(
            partial(_sentencepiece, model_type="unigram"),
            _likelihood,
            "log-likelihood of the text no more than 0.5% below",
            lambda ours, theirs: ours >= theirs - 0.005 * abs(theirs),
        ),
    },
}
