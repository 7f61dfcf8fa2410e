"""The students' page on the transformer says what the code does: its lines give the kernels' results, its counts are
the models'."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.show.model import _operations, _size
from luthier.kernels.attention import attention
from luthier.kernels.rms_norm import rms_norm
from luthier.kernels.rope import frequencies, rope, rope_table
from luthier.kernels.swiglu import swiglu
from luthier.models.checkpoints import load_model, save_model
from luthier.models.config import flops_per_token, parameter_count, presets, training_bytes
from luthier.models.transformer import Transformer
from luthier.tokenizers.bpe_train import train_bpe
from luthier.tokenizers.formats import load_tokenizer, save_tokenizer

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "transformer.md").read_text(encoding="utf-8")


def lines(file: str) -> str:
    """The indented lines that follow the words "from `kernels/file.py`"."""
    found = re.search(rf"[Ff]rom\s+`kernels/{file}\.py`:\n\n((?: {{4}}.*\n)+)", PAGE)
    assert found, file
    return re.sub(r"(?m)^ {4}", "", found[1])


def run(file: str, **given: Any) -> dict[str, Any]:
    room = {"torch": torch, "math": math, **given}
    exec(compile(lines(file), f"docs/transformer.md: {file}", "exec"), room)
    return room


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_the_lines_of_the_norm() -> None:
    x, weight = draw(3, 5, 24), draw(24)
    torch.testing.assert_close(run("rms_norm", x=x, weight=weight, eps=1e-5)["y"], rms_norm(x, weight, 1e-5))


def test_the_lines_of_rotary_positions() -> None:
    x, base, D, T = draw(2, 9, 3, 16), 10_000.0, 16, 9
    cos, sin = rope_table(frequencies(D, base), T)
    turned = run("rope", x=x, base=base, D=D, position=torch.arange(T))["turned"]
    torch.testing.assert_close(turned, rope(x, cos, sin))


def test_the_lines_of_attention() -> None:
    H, K, D, T = 6, 2, 16, 9
    q, k, v = draw(2, T, H, D), draw(2, T, K, D), draw(2, T, K, D)
    visible = torch.ones(1, T, T, dtype=torch.bool).tril()
    out = run("attention", q=q, k=k, v=v, H=H, K=K, D=D, visible=visible)["out"]
    torch.testing.assert_close(out, attention(q, k, v))


def test_the_lines_of_the_gate() -> None:
    x, gate, up, down = draw(2, 5, 8), draw(12, 8), draw(12, 8), draw(8, 12)
    y = run("swiglu", x=x, Wgate=gate, Wup=up, Wdown=down)["y"]
    torch.testing.assert_close(y, swiglu(x @ gate.T, x @ up.T) @ down.T)


def test_the_lines_of_longer_contexts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run as they stand, and leave a folder that opens with its tokenizer."""
    (block,) = re.findall(r"(?m)^ {4}from pathlib import Path\n(?:(?: {4}.*)?\n)+?(?=\S)", PAGE)
    tokenizer = train_bpe(["The soundboard is spruce. The bridge is maple. "] * 4, 280)
    config = replace(presets["demo"], vocab_size=280, num_hidden_layers=1)
    monkeypatch.chdir(tmp_path)
    save_model(Transformer(config), Path("model"))
    save_tokenizer(tokenizer, Path("model"))
    exec(compile(re.sub(r"(?m)^ {4}", "", block), "docs/transformer.md: longer", "exec"), {})
    scaling = load_model("longer").config.rope_scaling
    assert load_model("longer").config.context == 4096 and scaling is not None and scaling.rope_type == "yarn"
    assert list(load_tokenizer(Path("longer")).encode("spruce")) == list(tokenizer.encode("spruce"))
    assert json.loads(Path("longer/generation_config.json").read_text())["eos_token_id"]


def test_a_tied_head_names_the_token_itself_before_training_only() -> None:
    model = Transformer(presets["demo"])
    rows = torch.arange(model.config.vocab_size)

    def named() -> float:
        with torch.no_grad():
            said = (model.norm(model.embed_tokens.weight) @ model.head_weight.T).argmax(-1)
        return float((said == rows).float().mean())

    assert model.config.tie_word_embeddings and named() == 1
    with torch.no_grad():
        model.embed_tokens.weight[7] *= 30  # one row is longer, as training makes them
    assert named() < 0.9


def test_the_table_of_presets() -> None:
    rows = {name: cells for name, *cells in re.findall(r"(?m)^\| (\w+)" + r" \| ([^|]+)" * 5 + r" \|$", PAGE)}
    assert rows.keys() & presets.keys() == presets.keys()
    for name, c in presets.items():
        assert rows[name] == [
            f"{parameter_count(c):,}",
            f"{c.num_hidden_layers} × {c.hidden_size}",
            f"{c.num_attention_heads} / {c.num_key_value_heads}",
            _size(training_bytes(c, 4096)),
            _operations(flops_per_token(c)),
        ], name


def test_the_formulas_of_counts() -> None:
    """As the page writes them, on every preset: N of the model's own tensors, and the work."""
    (count,) = re.findall(r"(?m)^    N = (.+)$", PAGE)
    (work,) = re.findall(r"(?m)^    forward, a token = (.+)$", PAGE)
    for name, c in presets.items():
        model = Transformer(c, device="meta")
        N = sum(weight.numel() for weight in model.parameters())
        sizes = {"V": c.vocab_size, "L": c.num_hidden_layers, "C": c.hidden_size, "D": c.head_size}
        sizes |= {"F": c.intermediate_size, "H": c.num_attention_heads, "K": c.num_key_value_heads}
        sizes |= {"N": N - c.vocab_size * c.hidden_size, "T": c.max_position_embeddings}
        assert eval(count.replace("·", "*"), sizes) == N, name
        words = work.replace("N without embedding", "N").replace("·", "*")
        assert eval(words, sizes) == pytest.approx(flops_per_token(c)), name


def test_the_shapes_of_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the sentence under the drawing, from the tensors that pass."""
    from luthier.models import transformer

    model, seen = Transformer(presets["demo"]), {}
    layer = model.layers[0]
    real = transformer.attention

    def kept(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *more: Any, **named: Any) -> torch.Tensor:
        seen.setdefault("q", list(q.shape))
        seen.setdefault("k", [list(k.shape), list(v.shape)])
        return real(q, k, v, *more, **named)

    monkeypatch.setattr(transformer, "attention", kept)
    layer.register_forward_pre_hook(lambda _, args: seen.update(x=list(args[0].shape)))
    model.get_submodule("layers.0.mlp.down_proj").register_forward_pre_hook(
        lambda _, args: seen.update(gate=list(args[0].shape))
    )
    with torch.no_grad():
        model(torch.zeros(8, 256, dtype=torch.int64))
    said = PAGE.replace("\n", " ")
    assert f"make x {seen['x']}, q {seen['q']}, k and v {seen['k'][0]}, weights [8, 6, 256, 256]" in said
    assert seen["k"][0] == seen["k"][1] and f"gate and up {seen['gate']}." in said
