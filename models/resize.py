"""Another vocabulary for a model: the rows of its embedding and head that belong to other tokens; a longer context.

A model knows a token by its row: the embedding's row is what the token means to it, the head's row is what it looks for
when the token is to come. A new vocabulary keeps what it can:

    a token that was there before, wherever its id is now      its old row, bit for bit
    a new token                                                the mean of the rows of the pieces it replaces

The pieces are what the old tokenizer spells the new token's bytes with: `kerfing` = mean(` k`, `er`, `fing`). So a new
token starts near what the model took its spelling for, instead of as noise (Hewitt 2021, "Initializing new word
embeddings for pretrained language models"; the mean of pieces: Gee et al. 2022, arXiv:2402.09977). Logits of old tokens
in old text are what they were. Rows for new tokens may also come from `vectors` that were learned on the new text.

**A longer context** needs no new weights: rotary positions are slowed (config.py: RopeScaling), so that the angles of a
long text are ones the model has seen. What must not change: with dynamic every text that fitted before; with yarn and
llama3 the fast pairs, which tell neighbours apart; with linear position factor·p is what p was. Tune the model on
some long texts afterwards; dynamic needs that least.

Legend: V old and W new number of ids, C hidden size.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from luthier.models.config import ModelConfig, RopeScaling, Scaling
from luthier.models.transformer import Embedding, Linear, Transformer
from luthier.tokenizers.bpe import Tokenizer, encode_by_the_book

__all__ = ["ResizeError", "extend_context", "extends", "replaced_pieces", "resize_vocabulary"]


class ResizeError(ValueError):
    """A model cannot be given this vocabulary or context."""


def extends(new: Tokenizer, old: Tokenizer) -> bool:
    """Whether every id of `old` that stands for something stands for the same in `new`."""
    both = zip(old.tokens, new.tokens, strict=False)
    kept = all(was == now or not was for was, now in both)
    special = old.special_tokens.items() <= new.special_tokens.items()
    return kept and special and new.vocab_size >= old.vocab_size


def resize_vocabulary(
    model: Transformer, old: Tokenizer, new: Tokenizer, *, vectors: Mapping[int, Tensor] | None = None
) -> int:
    """Give `model`, made for `old`, the vocabulary of `new`, in place; returns the number of rows that are new.

    `vectors` [C] are the embedding's rows of new ids, instead of the mean of pieces. Raises ResizeError if the model
    has fewer rows than `old` has ids, or a vector has another size or belongs to a token that is not new.
    """
    if model.config.vocab_size < old.vocab_size:
        raise ResizeError(f"the model has {model.config.vocab_size:,} rows, its tokenizer {old.vocab_size:,} ids")
    pieces = replaced_pieces(old, new)
    fresh = {i for i, ids in enumerate(pieces) if len(ids) != 1 or old.tokens[ids[0]] != new.tokens[i]}
    C, W = model.config.hidden_size, new.vocab_size
    _check_vectors(vectors or {}, fresh, C)
    embedding, head = Embedding(W, C), Linear(C, W)
    embedding.weight = _rows(model.embed_tokens.weight, pieces)
    for i, vector_C in (vectors or {}).items():
        embedding.weight.data[i] = vector_C.to(embedding.weight)
    model.embed_tokens = embedding
    if not model.config.tie_word_embeddings:
        head.weight = _rows(model.lm_head.weight, pieces)
        model.lm_head = head
    model.config = replace(model.config, vocab_size=new.vocab_size)
    return len(fresh)


def _check_vectors(vectors: Mapping[int, Tensor], fresh: Collection[int], C: int) -> None:
    for i, vector in vectors.items():
        if i not in fresh:
            raise ResizeError(f"the vector of id {i} is for a token that the model knows already")
        if vector.shape != (C,) or not bool(vector.isfinite().all()):
            raise ResizeError(f"the vector of id {i} has shape {list(vector.shape)}; {C} finite numbers are needed")


def extend_context(config: ModelConfig, tokens: int, kind: Scaling = "yarn") -> ModelConfig:
    """The config of the same model for texts of up to `tokens` tokens, its rotary positions scaled by `kind`.

    Give it to a loaded model as `model.config`, or write it with the weights. Raises ResizeError where it cannot be.
    """
    if config.learned_positions:
        raise ResizeError("gpt2 has learned a vector for each position; there are none beyond its context")
    if config.rope_scaling is not None:
        raise ResizeError(f"positions are scaled already ({config.rope_scaling.rope_type}); begin with the plain model")
    if tokens <= config.max_position_embeddings:
        raise ResizeError(f"a context of {tokens:,} tokens is no longer than the model's, {config.context:,}")
    P = config.max_position_embeddings
    scaling = RopeScaling(kind, tokens / P, original_max_position_embeddings=P)
    grown = {} if kind in ("linear", "dynamic") else {"max_position_embeddings": tokens}
    return replace(config, rope_scaling=scaling, **grown)


def replaced_pieces(old: Tokenizer, new: Tokenizer) -> list[list[int]]:
    """For each id of `new` the ids of `old` that it stands in for: one where the token was there, the spelling of its
    bytes where it was not, none for an id that stands for nothing."""
    outside = {**old.added_tokens, **old.special_tokens}
    names = {i: text for text, i in {**new.added_tokens, **new.special_tokens}.items()}
    ids, byte_ids, ranks = old.ids_of_bytes, [old.ids_of_bytes.get(bytes([b]), -1) for b in range(256)], old.ranks
    pieces = []
    for i, token in enumerate(new.tokens):
        known = outside.get(names[i]) if i in names else ids.get(token)
        spelled = encode_by_the_book(token, ranks, byte_ids) if known is None else [known]
        pieces.append([piece for piece in spelled if piece >= 0])
    return pieces


@torch.no_grad()
def _rows(old_VC: Tensor, pieces: Sequence[Sequence[int]]) -> torch.nn.Parameter:
    """A row for each of `pieces`: the mean of those rows of the old weight; of all of them where there is no piece."""
    new_WC = torch.empty(len(pieces), old_VC.shape[1], dtype=old_VC.dtype, device=old_VC.device)
    for i, ids in enumerate(pieces):
        rows = old_VC[list(ids)] if ids else old_VC
        new_WC[i] = rows[0] if len(ids) == 1 else rows.float().mean(dim=0)
    return torch.nn.Parameter(new_WC, requires_grad=old_VC.requires_grad)
