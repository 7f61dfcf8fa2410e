"""The decoder by what must hold: packing, causality, the loss, the generator, the context."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.models.config import ModelConfig, RopeScaling
from luthier.models.rotary import rotary_frequencies
from luthier.models.transformer import Cache, ContextError, Transformer

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 48,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "untied, wide heads": {"tie_word_embeddings": False, "head_dim": 12},
    "llama3": {"rope_scaling": RopeScaling(original_max_position_embeddings=16), "attention_bias": True},
    "mistral": {"model_type": "mistral", "sliding_window": 5},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "hidden_act": "gelu"},
    "gpt2": {"model_type": "gpt2", "num_key_value_heads": 4, "hidden_act": "gelu_new"},
    "linear": {"rope_scaling": RopeScaling("linear", 3.0)},
    "yarn": {"rope_scaling": RopeScaling("yarn", 4.0, 16)},
}


def make(shape: str = "llama", dtype: torch.dtype = torch.float64, **changes: Any) -> Transformer:
    """A small model with weights large enough that every part matters."""
    model = Transformer(ModelConfig(**SMALL | SHAPES[shape] | changes), seed=1).to(dtype)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=dtype)
            weight.copy_(weight + 0.3 * noise if weight.dim() == 1 else 0.25 * noise)
    return model


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, SMALL["vocab_size"], shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_packed_documents_are_what_they_are_alone(shape: str) -> None:
    """Logits, loss and every gradient of rows with several documents and padding, against one document at a time."""
    lengths = [[7, 1, 20, 3], [31]]
    ids = tokens(2, 31)
    labels = tokens(2, 31, seed=1)
    document = torch.tensor([[0] * 7 + [1] + [2] * 20 + [-1] * 3, [8] * 31])
    labels[document == -1] = -100
    model = make(shape)
    logits = model(ids, document_BT=document)
    loss, count = model.loss(ids, labels, document_BT=document)
    loss.backward()
    packed = {name: weight.grad for name, weight in model.named_parameters()}

    model.zero_grad()
    total, number = torch.zeros((), dtype=torch.float64), 0
    for row, parts in enumerate(lengths):
        start = 0
        for length in parts:
            at = (slice(row, row + 1), slice(start, start + length))
            start += length
            if document[at][0, 0] >= 0:
                torch.testing.assert_close(logits[at], model(ids[at]))
            part, n = model.loss(ids[at], labels[at])
            total, number = total + part, number + int(n)
    total.backward()
    torch.testing.assert_close(loss, total)
    assert int(count) == number == 28 + 31
    for name, weight in model.named_parameters():
        torch.testing.assert_close(packed[name], weight.grad, msg=lambda m, name=name: f"{name}: {m}")


def test_no_token_sees_the_future_or_another_document() -> None:
    model, ids = make(), tokens(1, 20)
    changed = ids.clone()
    changed[0, 12] = (ids[0, 12] + 1) % 61
    before, after = model(ids), model(changed)
    assert torch.equal(before[0, :12], after[0, :12]) and not torch.equal(before[0, 12:], after[0, 12:])
    document = torch.tensor([[0] * 15 + [1] * 5])
    before, after = model(ids, document_BT=document), model(changed, document_BT=document)
    assert torch.equal(before[0, 15:], after[0, 15:])


def test_loss_is_cross_entropy_of_the_logits() -> None:
    model, ids, labels = make(dtype=torch.float32), tokens(3, 17), tokens(3, 17, seed=1)
    labels[1] = -100
    loss, count = model.loss(ids, labels)
    expected = torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(loss, expected)
    assert int(count) == 34 and loss.dtype == torch.float32


def test_no_label_gives_zero_and_no_nan() -> None:
    model, ids = make(), tokens(2, 5)
    loss, count = model.loss(ids, torch.full_like(ids, -100))
    loss.backward()
    assert float(loss.detach()) == 0.0 and int(count) == 0
    assert all(w.grad is not None and bool((w.grad == 0).all()) for w in model.parameters())


@pytest.mark.parametrize("shape", SHAPES)
def test_reading_through_the_cache_is_reading_at_once(shape: str) -> None:
    """In pieces of 1 to 5 tokens, with rows padded on the left by different lengths."""
    model, first = make(shape), torch.tensor([0, 4, 9])
    ids = tokens(3, 20)
    cache = Cache(model.config, first, 20, torch.float64)
    with torch.inference_mode():
        pieces = [model(piece, cache=cache) for piece in ids.split([10, 1, 5, 1, 3], dim=1)]
        read = torch.cat(pieces, dim=1)
        for row, start in enumerate(first.tolist()):
            torch.testing.assert_close(read[row, start:], model(ids[row : row + 1, start:])[0])


def test_new_weights_come_from_the_generator_alone() -> None:
    config = ModelConfig(**SMALL)
    state = torch.get_rng_state()
    a, b, c = Transformer(config, seed=3), Transformer(config, torch.Generator().manual_seed(3)), Transformer(config)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.embed_tokens.weight, c.embed_tokens.weight)


def test_the_spread_of_new_weights() -> None:
    """Deviation 0.02, and 0.02/√(2·3 layers) where a product ends in the residual stream; norms 1, biases 0."""
    model = Transformer(ModelConfig(**SMALL | {"model_type": "qwen2", "hidden_size": 128, "intermediate_size": 256}))
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            assert bool((weight == 0).all())
        elif weight.dim() == 1:
            assert bool((weight == 1).all())
        else:
            expected = 0.02 / math.sqrt(6) if "o_proj" in name or "down_proj" in name else 0.02
            assert float(weight.detach().std()) == pytest.approx(expected, rel=0.06), name


def test_an_untrained_model_is_near_the_blind_guess() -> None:
    model = Transformer(ModelConfig(**SMALL))
    loss, count = model.loss(tokens(4, 40), tokens(4, 40, seed=1))
    assert float(loss.detach() / count) == pytest.approx(math.log(61), rel=0.05)


def test_a_text_longer_than_the_context_is_an_error() -> None:
    model = make()
    with pytest.raises(ContextError, match=r"49 tokens .* 48"):
        model(tokens(1, 49))
    model(tokens(1, 96), document_BT=torch.tensor([[0] * 48 + [1] * 48]))  # two documents that fit, in one long row


def test_tables_made_while_generating_serve_training() -> None:
    model, ids = make(), tokens(1, 9)
    with torch.inference_mode():
        model(ids)
    model.loss(ids, ids)[0].backward()
    assert model.embed_tokens.weight.grad is not None


def test_recomputing_gives_the_same_bits() -> None:
    model, ids = make(dtype=torch.float32), tokens(2, 20)
    document = torch.tensor([[0] * 8 + [1] * 12, [2] * 20])
    gradients = []
    for model.recompute in (False, True):
        model.zero_grad()
        model.loss(ids, ids, document_BT=document)[0].backward()
        gradients.append([weight.grad for weight in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_dynamic_scaling_begins_behind_the_old_context() -> None:
    plain, dynamic = make(), make(rope_scaling=RopeScaling("dynamic", 2.0))
    assert torch.equal(plain(tokens(1, 48)), dynamic(tokens(1, 48)))
    dynamic(tokens(1, 96))
    assert torch.equal(plain(tokens(1, 48)), dynamic(tokens(1, 48)))  # also after a longer text
    with pytest.raises(ContextError, match=r"97 tokens .* 96"):
        dynamic(tokens(1, 97))


def test_linear_scaling_squeezes_positions() -> None:
    """Position 3p then has the angle that p had."""
    old, new = rotary_frequencies(make().config)[0], rotary_frequencies(make("linear").config)[0]
    torch.testing.assert_close(new * 3, old)


WIRED = """
import torch, luthier.kernels.launch as launch
launch.use_triton = lambda name, impl, x: impl != "torch"  # as on a card
import luthier.models.transformer as on_card
assert on_card.use_triton("", "auto", None)
from luthier.models.config import ModelConfig, RopeScaling
from tests_of_wiring import reference
for shape, expected in reference.items():
    model = on_card.Transformer(ModelConfig(**expected["config"]))
    model.load_state_dict(expected["state"])
    loss, _ = model.loss(expected["ids"], expected["ids"], document_BT=expected["document"])
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected["loss"], rtol=1e-5, atol=1e-5)
    for name, weight in model.named_parameters():
        found, wanted = weight.grad, expected["gradients"][name]
        assert float((found - wanted).abs().max()) <= 2e-5 * float(wanted.abs().max()) + 1e-5, (shape, name)
    cache = on_card.Cache(model.config, expected["first"], 20)
    with torch.inference_mode():
        read = [model(piece, cache=cache)[:, -1] for piece in expected["ids"].split([13, 1, 1, 1], dim=1)]
    for row, wanted in zip(read, expected["read"], strict=True):
        assert float((row - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max()), shape
print("wired")
"""


def test_triton_computes_the_same(tmp_path: Path) -> None:
    """Every kernel that a card would run, in Triton's interpreter: packed rows, loss and gradients, the cache."""
    pytest.importorskip("triton")
    reference, ids = {}, tokens(2, 16)
    document = torch.tensor([[0] * 5 + [1] * 11, [2] * 14 + [3] * 2])
    for shape in ("mistral", "gpt2"):
        model, first = make(shape, torch.float32, num_hidden_layers=1), torch.tensor([0, 4])
        loss, _ = model.loss(ids, ids, document_BT=document)
        loss.backward()
        cache = Cache(model.config, first, 20)
        with torch.inference_mode():
            read = [model(piece, cache=cache)[:, -1].clone() for piece in ids.split([13, 1, 1, 1], dim=1)]
        reference[shape] = {
            "config": SMALL | SHAPES[shape] | {"num_hidden_layers": 1},
            "state": model.state_dict(),
            "ids": ids,
            "document": document,
            "first": first,
            "loss": loss.detach(),
            "gradients": {name: weight.grad for name, weight in model.named_parameters()},
            "read": read,
        }
    torch.save(reference, tmp_path / "reference.pt")
    file = tmp_path / "tests_of_wiring.py"
    file.write_text(f"import torch\nreference = torch.load({str(tmp_path / 'reference.pt')!r}, weights_only=True)\n")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    run = subprocess.run([sys.executable, "-c", WIRED], env=environment, capture_output=True, text=True)
    assert run.stdout == "wired\n", run.stderr[-3000:]


@pytest.mark.parametrize("labels", [True, False])
def test_a_tied_weight_has_one_gradient(labels: bool) -> None:
    """The head's with the embedding's rows added to it: that of the logits, and a whole one even without a label."""
    model = make(dtype=torch.float32, tie_word_embeddings=True)
    ids = torch.randint(0, model.config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    following = ids.roll(-1, 1) if labels else torch.full_like(ids, -100)
    model.loss(ids, following)[0].backward()
    found, model.embed_tokens.weight.grad = model.embed_tokens.weight.grad, None
    assert found is not None and found.layout == torch.strided
    if labels:
        F.cross_entropy(model(ids).flatten(0, 1), following.flatten(), reduction="sum").backward()
        torch.testing.assert_close(found, model.embed_tokens.weight.grad)
    else:
        assert not found.any()
