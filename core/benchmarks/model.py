"""Our decoder beside transformers', litgpt's and nanoGPT's on this machine's processor: same weights, same tokens.

    forward    logits of a batch; equal: max|theirs − ours in float64| / max|ours| ≤ 2·10⁻⁵, and ours the same
    train      forward, loss, backward and torch's fused AdamW; equal: the first loss within 10⁻⁵
    decode     greedy, 64 tokens after a prompt of 64, for 1 and for 8 prompts; equal: the same tokens
    memory     the most that a training step held beyond the libraries: weights, gradients, means, activations
    compiled   train, everybody under torch.compile, and ours as it is beside them; only if asked for by --only
               compiled: it takes half a minute a model, and a C++ compiler

Three shapes: 5M (vocabulary 4,096, width 256, 6 layers, 16 × 256 tokens), 27M (8,192, 512, 8 layers, 2 × 512) and
22M-32k (32,000, 384, 6 layers, 2 × 512), each as Llama and, where nanoGPT or gpt2 is named, as GPT-2. The allocator is
told to keep freed memory (core/training/allocator.py) for all of them, since all share the process.

A row's share is the model's work (models/config.py) over the best product of two matrices that PyTorch made after it.

--with FILE.py:FUNCTION races your own: it is called with the ModelConfig and a dict of our weights, and returns a
module that makes logits [B, T, V] of ids [B, T].
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.core.benchmarks.model_peers import Contender, contenders, ours, paths_of
from luthier.core.benchmarks.timing import Row, Tool, in_child, load_own, most_memory, race, rows_of
from luthier.core.console import say
from luthier.core.errors import ConfigError, did_you_mean
from luthier.core.training.allocator import keep_freed_memory
from luthier.models.config import ModelConfig, flops_per_token, preset
from luthier.models.transformer import Transformer

__all__ = ["GROUPS", "SHAPES", "run"]

GROUPS = ("forward", "train", "decode", "memory", "compiled")
FAMILIES = ("llama", "gpt2")
PROMPT, NEW = 64, 64  # tokens
PLAIN = "ours, not compiled"
BUDGET = 12.0  # seconds a tool may take in one race
NEAR_LOGITS, NEAR_LOSS = 2e-5, 1e-5


class Shape(NamedTuple):
    config: ModelConfig
    rows: int

    @property
    def tokens(self) -> int:
        return self.rows * self.config.max_position_embeddings


SHAPES = {
    "5M": Shape(preset("tiny"), 16),
    "27M": Shape(preset("small"), 2),
    "22M-32k": Shape(
        preset("small", vocab_size=32_000, hidden_size=384, intermediate_size=1024, num_hidden_layers=6), 2
    ),
}


def run(*, only: Sequence[str] = (), own: str | None = None, peer: Sequence[str] = (), repeats: int = 5) -> list[Row]:
    """All rows; `only` names groups, shapes, families. Raises ConfigError for a name or a peer that is none."""
    known = (*GROUPS, *SHAPES, *FAMILIES)
    for name in only:
        if name not in known:
            raise ConfigError(f"--only {name}: no such group{did_you_mean(name, known)}; there are {', '.join(known)}")
    paths, tool = paths_of(tuple(peer)), load_own(own) if own else None
    groups = [g for g in GROUPS if g in only] or list(GROUPS[:-1])
    if "compiled" in groups and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise ConfigError("--only compiled: torch.compile needs a C++ compiler (c++, g++ or clang++); none is found")
    keep_freed_memory()
    rows: list[Row] = []
    for name in [s for s in SHAPES if s in only] or SHAPES:
        for family in [f for f in FAMILIES if f in only] or FAMILIES[: 1 + ("nanogpt" in paths)]:
            shape = _of(family, SHAPES[name])
            case = f"{name} {family}, {shape.rows} × {shape.config.max_position_embeddings}"
            rows += _measured(case, shape, groups, paths, tool, repeats)
    return sorted(rows, key=lambda row: GROUPS.index(row["group"].split(",")[0]))


def _of(family: str, shape: Shape) -> Shape:
    """The shape as another family's."""
    if family == "llama":
        return shape
    c = shape.config
    gpt2 = {"num_key_value_heads": c.num_attention_heads, "intermediate_size": 4 * c.hidden_size, "hidden_act": "gelu"}
    return Shape(replace(c, model_type="gpt2", **gpt2), shape.rows)


def _batch(shape: Shape) -> tuple[Tensor, Tensor]:
    """Random tokens and those that follow them."""
    size = (shape.rows, shape.config.max_position_embeddings + 1)
    ids = torch.randint(0, shape.config.vocab_size, size, generator=torch.Generator().manual_seed(0))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def _everyone(shape: Shape, paths: Mapping[str, Path], tool: Any) -> dict[str, Contender]:
    """Fresh models of equal weights, ours first."""
    model = Transformer(shape.config)
    entered = {"ours": ours(model), **contenders(model, paths)}
    if tool is not None:
        module = tool[1](shape.config, {name: w.detach().clone() for name, w in model.state_dict().items()})
        loss = lambda i, y: F.cross_entropy(module(i).flatten(0, 1), y.flatten())  # noqa: E731
        entered[tool[0]] = Contender(module, module, loss)
    return entered


def _measured(
    case: str, shape: Shape, groups: Sequence[str], paths: Mapping[str, Path], tool: Any, repeats: int
) -> list[Row]:
    ids, labels = _batch(shape)
    with torch.inference_mode():
        truth = Transformer(shape.config).double()(ids)
    rows: list[Row] = []
    if "forward" in groups:
        rows += _forward(case, shape, _everyone(shape, paths, tool), ids, truth, repeats)
    expected = float(F.cross_entropy(truth.flatten(0, 1), labels.flatten()))
    for group in ("train", "compiled"):
        if group in groups:
            entered = _everyone(shape, paths, tool)
            if group == "compiled":
                entered[PLAIN] = ours(Transformer(shape.config))
            rows += _train(group, case, shape, entered, (ids, labels), expected, repeats)
    if "decode" in groups:
        entered = _everyone(shape, paths, None)
        for count in (1, 8):
            rows += _decode(case, count, entered, ids, repeats)
    if "memory" in groups:
        rows += _memory(case, shape, paths)
    return rows


# ---------------------------------------------------------------- groups


def _forward(
    case: str, shape: Shape, entered: Mapping[str, Contender], ids: Tensor, truth: Tensor, repeats: int
) -> list[Row]:
    def same(logits: Tensor) -> bool:
        return float((logits - truth).abs().max() / truth.abs().max()) <= NEAR_LOGITS

    def call(one: Contender) -> Tensor:
        with torch.inference_mode():
            return one.logits(ids)

    tools = {name: Tool(lambda one=one: call(one), shape.tokens, same) for name, one in entered.items()}
    check = f"logits within {NEAR_LOGITS:g} of float64's"
    rows = race(case, "tokens/s", tools, repeats, group="forward", check=check, budget=BUDGET)
    return _with_share(rows, flops_per_token(shape.config, shape.config.max_position_embeddings))


def _train(
    group: str,
    case: str,
    shape: Shape,
    entered: Mapping[str, Contender],
    batch: tuple[Tensor, Tensor],
    expected: float,
    repeats: int,
) -> list[Row]:
    tools = {}
    for name, one in entered.items():
        if group == "compiled" and name != PLAIN:
            _compile(name, one)
        tools[name] = Tool(_stepper(one, batch), shape.tokens, lambda loss: abs(loss / expected - 1) <= NEAR_LOSS)
    check = f"first loss within {NEAR_LOSS:g}"
    rows = race(case, "tokens/s", tools, repeats, group=group, check=check, budget=BUDGET)
    return _with_share(rows, 3 * flops_per_token(shape.config, shape.config.max_position_embeddings))


def _stepper(one: Contender, batch: tuple[Tensor, Tensor]) -> Callable[[], float]:
    """A training step; the first one's loss is that of the weights all began with."""
    optimizer = torch.optim.AdamW(one.module.train().parameters(), lr=3e-4, fused=True)

    def step() -> float:
        loss = one.loss(*batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def _compile(name: str, one: Contender) -> None:
    """Ours layer by layer, as `pretrain --compile on` does; theirs whole."""
    for module in one.module.layers if name == "ours" else [one.module]:  # pyright: ignore[reportGeneralTypeIssues]
        module.compile()


def _with_share(rows: list[Row], flops: float) -> list[Row]:
    from luthier.core.training.execution import matmul_speed

    peak = matmul_speed(torch.device("cpu"))
    return [row | {"share": round(row["ours"] * flops / peak, 3)} for row in rows]


def _decode(case: str, count: int, entered: Mapping[str, Contender], ids: Tensor, repeats: int) -> list[Row]:
    prompts = ids.flatten()[: count * PROMPT].view(count, PROMPT)
    found = {}

    def same(written: list[list[int]]) -> bool:
        return written == found.setdefault("ours", written)

    tools = {
        name: Tool(lambda write=one.write: write(prompts, NEW), count * NEW, same)
        for name, one in entered.items()
        if one.write is not None
    }
    name = f"{case.split(',')[0]}, {count} prompt{'s' * (count > 1)}"
    return race(name, "tokens/s", tools, repeats, group="decode", check="the same tokens", budget=BUDGET)


def _memory(case: str, shape: Shape, paths: Mapping[str, Path]) -> list[Row]:
    say(f"  {case}, memory")
    names = ["ours", *contenders(Transformer(shape.config), paths)]
    peaks = {name: [in_child(_memory_of, shape, paths, name.split()[0]) / 1e6] for name in names}
    equal = dict.fromkeys(peaks, True)
    return rows_of(case, "MB at most", peaks, equal, group="memory", more_is_better=False)


def _memory_of(shape: Shape, paths: Mapping[str, Path], name: str) -> int:
    """Bytes that two steps needed, in a process that has imported all it needs: a first step of 128 tokens, from where
    on our loops of a CPU are taken, loads Numba's."""
    keep_freed_memory()
    small = replace(shape.config, vocab_size=64, num_hidden_layers=1, max_position_embeddings=128)
    model = Transformer(small)
    warm = ours(model) if name == "ours" else next(iter(contenders(model, paths, name).values()))
    _stepper(warm, _batch(Shape(small, 1)))()
    batch = _batch(shape)
    with most_memory() as memory:
        model = Transformer(shape.config)
        one = ours(model) if name == "ours" else next(iter(contenders(model, paths, name).values()))
        del model
        step = _stepper(one, batch)
        for _ in range(2):
            step()
    return memory.most - memory.before
