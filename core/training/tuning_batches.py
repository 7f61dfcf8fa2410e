"""Which examples are tuned on at which step: everything a function of the step alone.

A step takes `batch_size` examples of its epoch's random order, some windows of plain text beside them (replay), and
packs them into rows (batches.py). An example longer than a row is dropped and reported, split, or an error, as asked;
never cut short in silence, since an answer without its end teaches a model not to stop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.core.artifacts import atomic_open
from luthier.core.console import counted, say
from luthier.core.data.questions import wording as same_words
from luthier.core.errors import InputError, TrainingError
from luthier.core.training.batches import Batch, Example, chance, mixed, pack
from luthier.core.training.dpo import encode_preference, with_reference
from luthier.core.training.examples import Found, Wording, encode_wording, split_wording, vary, with_question
from luthier.core.training.examples import wordings_of as asked_in

if TYPE_CHECKING:
    from luthier.core.data.shards import Shards
    from luthier.core.training.finetune_config import FinetuneConfig
    from luthier.models.transformer import Transformer
    from luthier.tokenizers.bpe import Tokenizer

__all__ = ["batches", "measured", "preference_batches", "that_fit"]

MEASURED = 64  # held-out wordings whose loss is followed while training


def batches(
    config: FinetuneConfig, found: Found, tokenizer: Tokenizer, row: int, replay: Path | None
) -> Callable[[int], Batch]:
    """The batch of every step, as a function of the step alone."""
    wordings, held = found.wordings, asked_in(found.held_out)
    plain = [_encoded(tokenizer, w) for w in wordings]
    per_epoch = -(-len(wordings) // config.batch_size)
    trained = sum(int((e.labels >= 0).sum()) for e in plain) / per_epoch
    replayed = _replayed(config, tokenizer, row, replay, trained)

    def shown(epoch: int, i: int) -> Example:
        """Example i as this epoch shows it; a variation that says what a held-out wording says is not shown."""
        messages, random = wordings[i].messages, chance(config.seed, 11, epoch, i)
        question = next((m.content for m in reversed(messages) if m.role == "user"), "")
        varied = vary(question, random, share=config.vary_share, drop=config.vary_drop)
        if varied == question or wordings[i].part is not None or same_words(varied) in held:
            return plain[i]
        example = _encoded(tokenizer, wordings[i], with_question(messages, varied))
        return example if len(example) <= row else plain[i]

    def batch_at(step: int) -> Batch:
        examples = [shown(epoch, i) for epoch, i in _chosen(config, len(wordings), step)]
        return pack([*examples, *replayed(step)], row, tokenizer.pad_id)

    return batch_at


def _replayed(
    config: FinetuneConfig, tokenizer: Tokenizer, row: int, replay: Path | None, trained: float
) -> Callable[[int], list[Example]]:
    """Windows of plain text for every step: so many that their tokens are `replay_share` of all trained ones."""
    if replay is None or not config.replay_share:
        return lambda step: []
    from luthier.core.data.shards import open_shards
    from luthier.core.training.pretrain_batches import sources

    shards = open_shards(Path(replay), "train")
    _same_tokens(tokenizer, shards)
    if not len(shards.tokens):
        return lambda step: []
    window = min(128, row)
    own, general = sources(shards, context=window, seed=config.seed, number=2)
    a_step = trained * config.replay_share / (1 - config.replay_share) / window
    share = config.general_share if general is not None else 0.0
    return lambda step: [
        mixed(own, general, share, place) for place in range(int(step * a_step), int((step + 1) * a_step))
    ]


def _same_tokens(tokenizer: Tokenizer, shards: Shards) -> None:
    """InputError for shards whose ids mean other tokens; the tokenizer that made them lies beside them, unless they are
    of ids from elsewhere."""
    from luthier.tokenizers.formats import load_tokenizer

    what = f"{shards.vocab_size:,} tokens, the model's has {tokenizer.vocab_size:,}"
    if shards.vocab_size == tokenizer.vocab_size:
        known = (shards.folder / "tokenizer.json").is_file() or (shards.folder / "tokenizer.model").is_file()
        if not known or load_tokenizer(shards.folder).tokens == tokenizer.tokens:
            return
        what = "as large as the model's, with other tokens"
    raise InputError(
        f"{shards.folder} was encoded with another tokenizer ({what})\n"
        "Encode again with the model's folder: luthier encode … --tokenizer MODEL"
    )


def preference_batches(
    config: FinetuneConfig, found: Found, tokenizer: Tokenizer, row: int, model: Transformer, keep: Path | None
) -> Callable[[int], Batch]:
    """The preferences of every step, with the log-probabilities that `model` gives them before the first one."""
    examples = [encode_preference(tokenizer, p) for p in found.preferences]
    if keep is not None and keep.is_file():
        lengths = np.cumsum([len(e) for e in examples])[:-1]
        known = np.split(np.load(keep), lengths)
        examples = [replace(e, reference=r) for e, r in zip(examples, known, strict=True)]
    else:
        examples = with_reference(model, examples)
        if keep is not None:
            with atomic_open(keep, "wb") as file:
                np.save(file, np.concatenate([e.reference for e in examples if e.reference is not None]))

    def batch_at(step: int) -> Batch:
        chosen = [examples[i] for _, i in _chosen(config, len(examples), step)]
        return pack(chosen, 2 * row, tokenizer.pad_id)  # a pair is two conversations

    return batch_at


def _chosen(config: FinetuneConfig, count: int, step: int) -> list[tuple[int, int]]:
    """(epoch, number) of the examples of a step."""
    epoch, place = divmod(step, -(-count // config.batch_size))
    order = chance(config.seed, 10, epoch).permutation(count)
    return [(epoch, int(i)) for i in order[place * config.batch_size : (place + 1) * config.batch_size]]


def measured(found: Found, tokenizer: Tokenizer, row: int) -> list[Batch]:
    """Held-out wordings whose loss is followed, the same at every measurement; TrainingError: none fits into a row."""
    if not found.held_out:
        return []
    fit = [e for e in (_encoded(tokenizer, w) for w in found.held_out) if len(e) <= row]
    if not fit:
        raise TrainingError(
            f"none of the {len(found.held_out):,} wordings held out fits into {row} tokens: nothing to measure on\n"
            'Raise context, shorten them, or hold none out (no "held_out" in their rows).'
        )
    if len(fit) < len(found.held_out):
        found.left_out[f"held-out wordings longer than {row} tokens"] += len(found.held_out) - len(fit)
    return [pack(fit[:: max(1, len(fit) // MEASURED)], row, tokenizer.pad_id)]


def _encoded(tokenizer: Tokenizer, wording: Wording, messages: Any = None) -> Example:
    example = encode_wording(tokenizer, messages or wording.messages, wording.source)
    if wording.part is None:
        return example
    part = slice(*wording.part)
    return Example(example.ids[part], example.labels[part], example.document[part], example.source)


# ---------------------------------------------------------------- what does not fit


def that_fit(tokenizer: Tokenizer, found: Found, row: int, config: FinetuneConfig) -> None:
    """Keep in `found` what fits into a row; the rest is split or left out and counted, and the first is named.

    TrainingError if nothing fits, or if the settings say that everything must.
    """
    if found.preferences:
        _preferences_that_fit(tokenizer, found, row, config)
        return
    kept, over = [], []
    for w in found.wordings:
        example = _encoded(tokenizer, w)
        if len(example) <= row:
            kept.append(w)
            continue
        over.append((len(example), w.source))
        if config.too_long == "split":
            kept += split_wording(w, example, row)
    found.pairs -= len({w.source for w in found.wordings} - {w.source for w in kept})
    found.wordings = kept
    _report(found, over, bool(kept), row, config)


def _preferences_that_fit(tokenizer: Tokenizer, found: Found, row: int, config: FinetuneConfig) -> None:
    if config.too_long == "split":
        raise TrainingError("too_long = 'split': half a preference cannot be compared; choose drop or error")
    kept, over = [], []
    for p in found.preferences:
        example = encode_preference(tokenizer, p)
        longest = int(np.bincount(example.document).max())
        if longest <= row:
            kept.append(p)
        else:
            over.append((longest, p.where))
    found.preferences, found.pairs = kept, len(kept)
    _report(found, over, bool(kept), row, config)


def _report(found: Found, over: list[tuple[int, str]], any_left: bool, row: int, config: FinetuneConfig) -> None:
    if not over:
        return
    where = f"the longest has {max(over)[0]:,} tokens, the first is {over[0][1]}"
    if not any_left:
        raise TrainingError(f"no example fits into {row} tokens: {where}\nRaise context, or shorten the answers.")
    if config.too_long == "error":
        raise TrainingError(
            f"{counted(len(over), 'example')} longer than {row} tokens: {where}\n"
            "Raise context, shorten them, or say what becomes of them: --too-long drop, or split."
        )
    if config.too_long == "split":
        say(f"  split        {counted(len(over), 'example')} longer than {row} tokens ({where})")
    else:
        found.left_out[f"examples longer than {row} tokens ({where})"] += len(over)
