"""Another vocabulary for a model: the rows of its embedding and head that belong to other tokens.

A model knows a token by its row: the embedding's row is what the token means to it, the head's row is what it looks for
when the token is to come. A new vocabulary keeps what it can:

    a token that was there before, wherever its id is now      its old row, bit for bit
    a new token                                                the mean of the rows of the pieces it replaces

The pieces are what the old tokenizer spells the new token's bytes with: `kerfing` = mean(` k`, `er`, `fing`). So a new
token starts near what the model took its spelling for, instead of as noise (Hewitt 2021, "Initializing new word
embeddings for pretrained language models"; the mean of pieces: Gee et al. 2022, arXiv:2402.09977). Logits of old tokens
in old text are what they were.

Legend: V old and W new number of ids, C hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from luthier.models.transformer import Embedding, Linear, Transformer
from luthier.tokenizers.bpe import Tokenizer, encode_by_the_book

__all__ = ["extends", "replaced_pieces", "resize_vocabulary"]


def extends(new: Tokenizer, old: Tokenizer) -> bool:
    """Whether every id of `old` that stands for something stands for the same in `new`."""
    both = zip(old.tokens, new.tokens, strict=False)
    kept = all(was == now or not was for was, now in both)
    special = old.special_tokens.items() <= new.special_tokens.items()
    return kept and special and new.vocab_size >= old.vocab_size


def resize_vocabulary(model: Transformer, old: Tokenizer, new: Tokenizer) -> int:
    """Give `model`, made for `old`, the vocabulary of `new`, in place; returns the number of rows that are new.

    Raises ValueError if the model has fewer rows than `old` has ids.
    """
    if model.config.vocab_size < old.vocab_size:
        raise ValueError(f"the model has {model.config.vocab_size:,} rows, its tokenizer {old.vocab_size:,} ids")
    pieces = replaced_pieces(old, new)
    C, W = model.config.hidden_size, new.vocab_size
    embedding, head = Embedding(W, C), Linear(C, W)
    embedding.weight = _rows(model.embed_tokens.weight, pieces)
    model.embed_tokens = embedding
    if not model.config.tie_word_embeddings:
        head.weight = _rows(model.lm_head.weight, pieces)
        model.lm_head = head
    model.config = replace(model.config, vocab_size=new.vocab_size)
    return sum(len(ids) != 1 or old.tokens[ids[0]] != new.tokens[i] for i, ids in enumerate(pieces))


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
