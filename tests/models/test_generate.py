"""Generation: batches equal to one at a time, greedy equal to the full forward and to `transformers`, draws as said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.models.checkpoints import save_model
from luthier.models.config import ModelConfig
from luthier.models.generate import GenerationError, generate, stream
from luthier.models.transformer import ContextError, Transformer


@pytest.fixture(params=["llama", "mistral", "qwen3"])
def model(request: pytest.FixtureRequest) -> Transformer:
    """A small model whose next tokens are far from equally likely."""
    config = ModelConfig(
        vocab_size=53,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=40,
        model_type=request.param,
        sliding_window=6 if request.param == "mistral" else None,
    )
    model = Transformer(config, seed=5).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 if weight.dim() == 1 else 12)
    return model


def prompts(n: int = 9) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    lengths = torch.randint(1, 20, (n,), generator=generator).tolist()
    return [torch.randint(0, 53, (length,), generator=generator).tolist() for length in lengths]


def by_full_forward(model: Transformer, prompt: list[int], steps: int) -> tuple[list[int], list[float]]:
    """Greedy without a cache: the whole text is read anew for each token."""
    ids, logprobs = list(prompt), []
    with torch.inference_mode():
        for _ in range(steps):
            p = model(torch.tensor([ids]))[0, -1].log_softmax(-1)
            ids.append(int(p.argmax()))
            logprobs.append(float(p.max()))
    return ids[len(prompt) :], logprobs


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_greedy_is_the_full_forward(model: Transformer, batch_size: int) -> None:
    results = generate(model, prompts(), max_new_tokens=12, batch_size=batch_size)
    for prompt, result in zip(prompts(), results, strict=True):
        ids, logprobs = by_full_forward(model, prompt, 12)
        assert result.ids == ids and not result.stopped
        assert result.logprobs == pytest.approx(logprobs, abs=1e-4)
        assert list(stream(model, prompt, max_new_tokens=12)) == ids


def test_greedy_is_that_of_transformers(model: Transformer, tmp_path: Path) -> None:
    import transformers

    save_model(model, tmp_path)
    other: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    for prompt, result in zip(prompts(4), generate(model, prompts(4), max_new_tokens=15), strict=True):
        text = torch.tensor([prompt])
        mask = torch.ones_like(text)  # else `transformers` takes the id 0 in a prompt for padding
        ids = other.generate(text, attention_mask=mask, max_new_tokens=15, do_sample=False, pad_token_id=0)
        assert result.ids == ids[0, len(prompt) :].tolist()


def test_stop_tokens_end_rows_and_leave_the_others_alone(model: Transformer) -> None:
    free = generate(model, prompts(), max_new_tokens=12)
    stop = {free[0].ids[4], free[3].ids[7]}
    for prompt, long, short in zip(
        prompts(), free, generate(model, prompts(), max_new_tokens=12, stop_ids=tuple(stop)), strict=True
    ):
        end = next((i for i, token in enumerate(long.ids) if token in stop), None)
        assert short.ids == long.ids[:end] and short.stopped == (end is not None)
        assert len(short.logprobs) == len(short.ids)
        assert list(stream(model, prompt, max_new_tokens=12, stop_ids=tuple(stop))) == short.ids


def test_nothing_is_written_past_the_context(model: Transformer) -> None:
    texts = [[1] * 39, [2] * 10, [3] * 30]
    results = generate(model, texts, max_new_tokens=100)
    assert [len(r.ids) for r in results] == [1, 30, 10]
    assert len(list(stream(model, texts[2], max_new_tokens=100))) == 10
    for prompt, result in zip(texts, results, strict=True):
        assert result.ids == by_full_forward(model, prompt, len(result.ids))[0]


@pytest.mark.parametrize("cut", [{}, {"top_k": 5}, {"top_p": 0.7}, {"top_k": 8, "top_p": 0.9}])
def test_a_draw_does_not_depend_on_the_batch(model: Transformer, cut: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 10, "temperature": 0.8, **cut}
    together = generate(model, prompts(), generator=torch.Generator().manual_seed(1), **settings)
    one = torch.Generator().manual_seed(1)
    pairs = generate(model, prompts(), generator=one, batch_size=2, **settings)
    assert [r.ids for r in together] == [r.ids for r in pairs]
    one = torch.Generator().manual_seed(1)
    assert [r.ids for r in together] == [generate(model, [p], generator=one, **settings)[0].ids for p in prompts()]
    assert [r.ids for r in together] != [r.ids for r in generate(model, prompts(), max_new_tokens=10)]


def test_draws_follow_the_probabilities(model: Transformer) -> None:
    """4,000 draws of one token: each token's share within 4 standard deviations of its cut probability."""
    prompt, n = prompts(1)[0], 4000
    with torch.inference_mode():
        p = (model(torch.tensor([prompt]))[0, -1].double() / 1.5).softmax(-1)
    order = p.argsort(descending=True)
    kept = order[:10]
    before = p[kept].cumsum(0) - p[kept]
    kept = kept[before < 0.8 * p[kept].sum()]
    expected = torch.zeros_like(p)
    expected[kept] = p[kept] / p[kept].sum()
    settings: dict[str, Any] = {"max_new_tokens": 1, "temperature": 1.5, "top_k": 10, "top_p": 0.8, "batch_size": n}
    drawn = [r.ids[0] for r in generate(model, [prompt] * n, **settings)]
    share = torch.bincount(torch.tensor(drawn), minlength=53) / n
    assert len(kept) > 2 and bool((share[expected == 0] == 0).all())
    assert bool(((share - expected).abs() <= 4 * (expected * (1 - expected) / n).sqrt() + 1e-9).all())


def test_a_small_temperature_is_greedy(model: Transformer) -> None:
    greedy = generate(model, prompts(), max_new_tokens=6)
    assert [r.ids for r in generate(model, prompts(), max_new_tokens=6, temperature=1e-5)] == [r.ids for r in greedy]
    assert [r.ids for r in generate(model, prompts(), max_new_tokens=6, temperature=2.0, top_k=1)] == [
        r.ids for r in greedy
    ]


def test_the_global_generator_is_left_alone_and_the_default_repeats(model: Transformer) -> None:
    state = torch.get_rng_state()
    once = generate(model, prompts(), max_new_tokens=5, temperature=1.0)
    assert once == generate(model, prompts(), max_new_tokens=5, temperature=1.0)
    assert torch.equal(state, torch.get_rng_state())


def test_rows_that_no_token_has_are_never_chosen(model: Transformer) -> None:
    greedy = generate(model, prompts(), max_new_tokens=8, vocab_size=7)
    drawn = generate(model, prompts(), max_new_tokens=8, vocab_size=7, temperature=2.0)
    assert max(i for r in (*greedy, *drawn) for i in r.ids) < 7
    assert list(stream(model, prompts()[0], max_new_tokens=8, vocab_size=7)) == greedy[0].ids


def test_what_cannot_be_written(model: Transformer) -> None:
    assert generate(model, [], max_new_tokens=5) == []
    assert generate(model, [[1]], max_new_tokens=0)[0].ids == []
    with pytest.raises(ContextError, match=r"41 tokens .* 40"):
        generate(model, [[1], [1] * 41], max_new_tokens=5)
    with pytest.raises(GenerationError, match="empty prompt"):
        generate(model, [[]], max_new_tokens=5)
    for wrong in (53, -1):
        with pytest.raises(GenerationError, match=f"id {wrong}; the model's are 0 to 52"):
            generate(model, [[1], [1, wrong]], max_new_tokens=5)
        with pytest.raises(GenerationError, match=f"id {wrong};"):
            next(stream(model, [wrong], max_new_tokens=5))
    with pytest.raises(GenerationError, match="top_p"):
        generate(model, [[1]], max_new_tokens=5, top_p=0.0)
