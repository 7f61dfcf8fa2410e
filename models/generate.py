"""Writing on: the most likely next token, or a drawn one, again and again, for many prompts at once.

    prompt ─▶ logits z of the next token ─▶ choose ─▶ append ─▶ until a stop token, a limit or the end of the context

**Greedy** (temperature 0) takes the largest logit. **Sampling** draws from softmax(z / temperature), cut to the `top_k`
largest (Fan et al. 2018, arXiv:1805.04833) and then to the smallest set whose probability reaches `top_p` (Holtzman et
al. 2020, arXiv:1904.09751, §3.1). A draw is one uniform number u: the first token at which the cumulated probability
passes u. All u are drawn before the first step, a row for each prompt, so that what a prompt gets does not depend on
which others stand beside it.

**Batches.** Prompts are sorted by length, taken `batch_size` at a time, padded on the left so that all grow at the same
place, and read once; then each step reads one token a row, the rest comes from the cache of keys and values. Rows that
are done leave the batch.

A `logprob` is log softmax(z) of the chosen token at temperature 1, whatever the temperature: the model's own opinion,
whose mean serves as its confidence.

Legend: B batch, T tokens, V vocabulary, N prompts, M new tokens.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.models.transformer import Cache, ContextError, Transformer

__all__ = ["Generation", "GenerationError", "Prompt", "generate", "stream"]

Prompt = Sequence[int] | np.ndarray


class GenerationError(ValueError):
    """Nothing can be written with these prompts or settings."""


@dataclass
class Generation:
    """What was written after one prompt."""

    ids: list[int] = field(default_factory=list)
    """The new tokens, without the stop token."""
    logprobs: list[float] = field(default_factory=list)
    """log p of each of them, in nats."""
    stopped: bool = False
    """Whether a stop token ended it, and not max_new_tokens or the context."""


def generate(
    model: Transformer,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int] = (),
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    generator: torch.Generator | None = None,
    vocab_size: int | None = None,
    batch_size: int = 64,
) -> list[Generation]:
    """Continue every prompt (token ids, at least one); results in the order of the prompts.

    temperature 0 is greedy; top_p 1 and top_k 0 cut nothing; `generator` (default: seeded with 0) is used for sampling
    only. `vocab_size` keeps to the first so many ids: a published model may have more rows than its tokenizer has
    tokens, rounded up for the machine, and no text can be made of those. Raises ContextError for a prompt that leaves
    no room in the model's context, GenerationError for an empty one, one with an id that the model has not, and for
    settings out of range.
    """
    choose = _Choice(temperature, top_p, top_k)
    for prompt in prompts:
        _check(model, prompt)
    uniform_NM = _uniform(len(prompts), max_new_tokens, choose, generator)
    results = [Generation() for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            _batch(model, prompts, rows, results, max_new_tokens, frozenset(stop_ids), choose, uniform_NM, vocab_size)
    return results


def stream(
    model: Transformer,
    prompt: Prompt,
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int] = (),
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    generator: torch.Generator | None = None,
    vocab_size: int | None = None,
) -> Iterator[int]:
    """Yield the tokens that `generate` would return for this one prompt, as they come."""
    choose = _Choice(temperature, top_p, top_k)
    _check(model, prompt)
    uniform_NM = _uniform(1, max_new_tokens, choose, generator)
    steps = _steps(model, [prompt], max_new_tokens, choose, uniform_NM, vocab_size)
    while True:
        with torch.inference_mode():  # not held while the caller has the token: it may train in between
            chosen = next(steps, None)
        if chosen is None or (token := int(chosen[0][0])) in stop_ids:
            return
        yield token


def _check(model: Transformer, prompt: Prompt) -> None:
    context = model.config.context
    if len(prompt) == 0:
        raise GenerationError("an empty prompt: nothing to continue; begin with the end-of-text token")
    if len(prompt) >= context:
        raise ContextError(
            f"a prompt of {len(prompt):,} tokens leaves no room in the model's context of {context:,} tokens: "
            "shorten it, or use a model with a longer context"
        )
    ids, V = np.asarray(prompt), model.config.vocab_size
    if len(wrong := ids[(ids < 0) | (ids >= V)]):
        raise GenerationError(f"a prompt holds the id {wrong[0]}; the model's are 0 to {V - 1:,}: use its tokenizer")


# ---------------------------------------------------------------- choosing


@dataclass(frozen=True)
class _Choice:
    """How the next token is chosen from the logits."""

    temperature: float
    top_p: float
    top_k: int

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise GenerationError(
                f"temperature ≥ 0, 0 < top_p ≤ 1 and top_k ≥ 0 are needed; found {self.temperature}, "
                f"{self.top_p}, {self.top_k}"
            )

    def __call__(self, logits_BV: Tensor, uniform_B: Tensor) -> Tensor:
        """One token id a row."""
        if self.temperature == 0:
            return logits_BV.argmax(-1)
        p_BV, ids_BV = (logits_BV.double() / self.temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
        if self.top_k:
            p_BV[:, self.top_k :] = 0
        before_BV = p_BV.cumsum(-1) - p_BV  # of the whole, up to but without this token; the first is always kept
        p_BV[before_BV >= self.top_p * p_BV.sum(-1, keepdim=True)] = 0
        cumulated_BV = p_BV.cumsum(-1)
        place_B1 = torch.searchsorted(cumulated_BV, uniform_B[:, None] * cumulated_BV[:, -1:], right=True)
        kept_B1 = (p_BV > 0).sum(-1, keepdim=True)
        return ids_BV.gather(1, torch.minimum(place_B1, kept_B1 - 1))[:, 0]


def _uniform(n: int, steps: int, choose: _Choice, generator: torch.Generator | None) -> Tensor:
    """Numbers in [0, 1), a row a prompt; none are drawn for greedy choice."""
    if choose.temperature == 0:
        return torch.zeros(n, steps, dtype=torch.float64)
    generator = generator or torch.Generator().manual_seed(0)
    return torch.rand(n, steps, dtype=torch.float64, generator=generator)


# ---------------------------------------------------------------- a batch


def _steps(
    model: Transformer,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    choose: _Choice,
    uniform_BM: Tensor,
    vocab_size: int | None,
) -> Generator[tuple[Tensor, Tensor], Tensor | None, None]:
    """Yield (ids [B], logprobs [B]) step by step. Send row numbers to go on with these rows only."""
    device, dtype = model.embed_tokens.weight.device, model.embed_tokens.weight.dtype
    longest = max(len(p) for p in prompts)
    first_B = torch.tensor([longest - len(p) for p in prompts], device=device)
    ids_BT = torch.zeros(len(prompts), longest, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids_BT[row, longest - len(prompt) :] = torch.as_tensor(np.asarray(prompt, dtype=np.int64))
    ids_BT, context = ids_BT.to(device), model.config.context
    cache, padding = Cache(model.config, first_B, longest + max_new_tokens, dtype), 0  # padding of the longest text
    for step in range(max_new_tokens):
        hidden_BC = model.hidden(ids_BT, cache=cache)[:, -1]
        logits_BV = F.linear(hidden_BC, model.head_weight[:vocab_size]).float()
        ids_B = choose(logits_BV, uniform_BM[:, step].to(device))
        logprobs_B = -F.cross_entropy(logits_BV, ids_B, reduction="none")
        keep = yield ids_B, logprobs_B
        if keep is not None:
            cache.keep(keep)
            ids_B, uniform_BM, padding = ids_B[keep], uniform_BM[keep.cpu()], int(cache.first_B.min())
        if cache.length - padding + 1 >= context:  # the token chosen now was the last that fits
            return
        ids_BT = ids_B[:, None]


def _batch(
    model: Transformer,
    prompts: Sequence[Prompt],
    rows: list[int],
    results: list[Generation],
    max_new_tokens: int,
    stop_ids: frozenset[int],
    choose: _Choice,
    uniform_NM: Tensor,
    vocab_size: int | None,
) -> None:
    """Continue the prompts whose numbers are `rows`, writing into `results`."""
    steps = _steps(model, [prompts[i] for i in rows], max_new_tokens, choose, uniform_NM[rows], vocab_size)
    context = model.config.context
    keep: Tensor | None = None
    while rows:
        try:
            ids_B, logprobs_B = steps.send(keep)
        except StopIteration:
            return
        live = []
        for row, (number, token, logprob) in enumerate(zip(rows, ids_B.tolist(), logprobs_B.tolist(), strict=True)):
            result = results[number]
            if token in stop_ids:
                result.stopped = True
                continue
            result.ids.append(token)
            result.logprobs.append(logprob)
            if len(prompts[number]) + len(result.ids) < context:
                live.append(row)
        keep = None if len(live) == len(rows) else torch.tensor(live, dtype=torch.int64, device=ids_B.device)
        rows = [rows[row] for row in live]
