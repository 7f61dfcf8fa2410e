"""The loss of a step does not depend on how it is cut: whole or in micro-batches, in one row a piece or packed, the
gradient is the same to 1e-6 by norm; so is what three steps of the loop make of the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.data.conversations import Message
from luthier.core.training.batches import Batch, Example, pack, split_rows
from luthier.core.training.examples import encode_wording
from luthier.core.training.loop import fit, next_token_loss
from luthier.core.training.optimizers import make_optimizers
from luthier.models.config import preset
from luthier.models.lora import LoraConfig, add_adapter
from luthier.models.transformer import Transformer
from luthier.tokenizers.bpe_train import train_bpe

CUTS = [(1000, 0), (1000, 1), (200, 1), (200, 2), (60, 3), (1, 0), (1, 1), (1, 5)]  # tokens a row, rows at once


@pytest.fixture(scope="module")
def examples() -> tuple[list[Example], int]:
    """Answers of very unequal length: where means of means go wrong."""
    talks = [(f"What is {i}?", f"It is {i}, " * (1 + 3 * (i % 4) ** 2) + "no more.") for i in range(12)]
    tokenizer = train_bpe([f"{q} {a}" for q, a in talks], 300)
    made = [
        encode_wording(tokenizer, [Message("user", q), Message("assistant", a)], f"talk {i}")
        for i, (q, a) in enumerate(talks)
    ]
    return made, tokenizer.pad_id


def model_with(adapters: bool) -> Transformer:
    shape = preset(
        "demo", vocab_size=300, hidden_size=48, intermediate_size=64, num_attention_heads=4, num_hidden_layers=2
    )
    model = Transformer(shape, seed=3)
    if adapters:
        add_adapter(model, LoraConfig(4, kind="dora"))
        for p in model.parameters():
            if p.requires_grad:
                p.data += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    return model


def cut(examples: tuple[list[Example], int], row: int) -> Batch:
    """The batch in rows of about `row` tokens; 1: each example in a row of its own."""
    made, pad = examples
    if row > 1:
        return pack(made, row, pad)
    width = max(len(e) for e in made)
    rows = [pack([e], width, pad) for e in made]
    filled: dict[str, Any] = {}
    for name, filling in (("ids_BT", pad), ("labels_BT", -100), ("document_BT", -1)):
        ones = [getattr(r, name) for r in rows]
        filled[name] = torch.cat([torch.nn.functional.pad(t, (0, width - t.shape[1]), value=filling) for t in ones])
    return Batch(**filled)


@pytest.mark.parametrize("adapters", [False, True])
def test_the_gradient_is_the_same_for_any_cut(examples: tuple[list[Example], int], adapters: bool) -> None:
    model, found = model_with(adapters), []
    for row, micro_batch in CUTS:
        batch, total = cut(examples, row), 0.0
        for piece in split_rows(batch, micro_batch):
            summed = next_token_loss(model, piece)
            (summed / batch.trained).backward()
            total += float(summed.detach())
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((total / batch.trained, grads))
        model.zero_grad(set_to_none=True)
    for loss, grads in found[1:]:
        assert abs(loss - found[0][0]) <= 1e-6 * found[0][0]
        assert (grads - found[0][1]).norm() <= 1e-6 * found[0][1].norm()


def test_the_loop_ends_with_the_same_weights(examples: tuple[list[Example], int], tmp_path: Path) -> None:
    ends = []
    for number, (row, micro_batch) in enumerate([(1000, 0), (200, 1), (1, 5)]):
        model, folder = model_with(False), tmp_path / str(number)
        folder.mkdir()
        fit(
            model,
            make_optimizers(model, name="muon", lr=1e-3),
            lambda step, row=row: cut(examples, row),
            steps=3,
            factor=lambda step: 1.0,
            folder=folder,
            micro_batch=micro_batch,
        )
        losses = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        ends.append((losses, torch.cat([p.detach().flatten() for p in model.parameters()])))
    for losses, weights in ends[1:]:
        assert losses == pytest.approx(ends[0][0], rel=1e-5)
        assert (weights - ends[0][1]).norm() <= 1e-5 * ends[0][1].norm()
