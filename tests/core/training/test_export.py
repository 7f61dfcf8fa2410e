"""Export: the files say what the model says, or nothing is left; GGUF read back by the gguf package."""

import json
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from luthier.core.errors import TrainingError
from luthier.core.training import export as module
from luthier.core.training.export import ExportConfig, export
from luthier.models.checkpoints import load_model, save_model
from luthier.models.config import ModelConfig, RopeScaling
from luthier.models.generate import generate
from luthier.models.gguf import GgufError, quantize_q8_0, save_gguf
from luthier.models.rotary import rotary_frequencies
from luthier.models.transformer import Transformer
from luthier.scripts import cli
from luthier.tokenizers.bpe_train import train_bpe
from luthier.tokenizers.formats import save_tokenizer

FAMILIES = {
    "llama": {},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": False},
    "qwen3": {"model_type": "qwen3"},
}


def made(**changes):
    tokenizer = train_bpe(["The soundboard is spruce. What is it made of? Wer sind Sie? Grüße. " * 9], 320)
    shape = {"vocab_size": 328, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 96}
    config = ModelConfig(**{**shape, **changes})
    model = Transformer(config, seed=3)
    with torch.no_grad():  # far from zero, so that the largest logit is a clear one
        for p in model.parameters():
            p.mul_(4.0 if p.dim() > 1 else 1.0).add_(0.01 if p.dim() == 1 else 0.0)
    return model, tokenizer


def folder_of(tmp_path, **changes):
    model, tokenizer = made(**changes)
    from luthier.core.data.conversations import chat_template, stop_ids

    tokenizer.chat_template = chat_template(tokenizer)
    save_tokenizer(tokenizer, tmp_path / "model")
    save_model(model, tmp_path / "model", eos_token_id=stop_ids(tokenizer))
    return tmp_path / "model"


def read(path):
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(path)
    keys = {name: f.contents() for name, f in reader.fields.items() if not name.startswith("GGUF.")}
    return keys, {t.name: gguf.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]) for t in reader.tensors}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_gguf_holds_the_weights(tmp_path, family, kind):
    """Read by the gguf package, put back under our names: the weights up to rounding, and for f16 the same words."""
    model, tokenizer = made(**FAMILIES[family])
    save_gguf(model, tokenizer, tmp_path / "m.gguf", kind)
    keys, tensors = read(tmp_path / "m.gguf")
    arch = "llama" if family == "llama" else family
    assert keys["general.architecture"] == arch and keys[f"{arch}.attention.head_count_kv"] == 2
    assert keys[f"{arch}.rope.freq_base"] == model.config.rope_theta and keys["tokenizer.ggml.pre"] == "llama-bpe"
    again = Transformer(model.config, seed=9)
    with torch.no_grad():
        for name, p in again.named_parameters():
            given, weight = dict(model.named_parameters())[name], torch.from_numpy(tensors.pop(theirs(name)).copy())
            if arch == "llama" and ("q_proj" in name or "k_proj" in name):  # neighbours turn together there
                weight = weight.view(-1, 8, 2, 64).transpose(1, 2).reshape(weight.shape)
            worst = 0.0 if p.dim() == 1 else float(given.detach().abs().max()) * (2**-11 if kind == "f16" else 1 / 250)
            assert float((weight - given).abs().max()) <= worst, name
            p.copy_(weight)
    assert not tensors
    prompts = [tokenizer.encode(t).tolist() for t in ("The", "What is", "Wer sind")]
    a, b = ([g.ids for g in generate(m, prompts, max_new_tokens=20)] for m in (model, again))
    assert a == b or kind == "q8_0"


def theirs(name):
    """llama.cpp's names, written down by hand here."""
    known = {
        "embed_tokens.weight": "token_embd.weight",
        "norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    parts = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
             "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
             "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}  # fmt: skip
    if name in known:
        return known[name]
    _, layer, *middle, end = name.split(".")
    return f"blk.{layer}.{parts['.'.join(middle)]}.{end}"


def test_neighbouring_rotation_is_ours_turned_round():
    """q and k in llama.cpp's order, turned by neighbours, give the scores that ours give turned by halves."""
    from luthier.models.gguf import _turned

    config = ModelConfig(hidden_size=8, num_attention_heads=1, num_key_value_heads=1)
    random = torch.Generator().manual_seed(0)
    wq, wk = (torch.randn(8, 8, generator=random) for _ in range(2))
    x, angle = torch.randn(5, 8, generator=random), torch.arange(5)[:, None] / 10 ** torch.arange(4)

    def halves(y):
        a, b = y[:, :4], y[:, 4:]
        return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], 1)

    def neighbours(y):
        a, b = y[:, 0::2], y[:, 1::2]
        return torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], 2).flatten(1)

    ours = halves(F.linear(x, wq)) @ halves(F.linear(x, wk)).T
    name = "layers.0.self_attn.{}_proj.weight"
    q, k = (F.linear(x, _turned(name.format(n), w, config)) for n, w in (("q", wq), ("k", wk)))
    torch.testing.assert_close(neighbours(q) @ neighbours(k).T, ours)


def test_q8_0_is_the_packages():
    gguf = pytest.importorskip("gguf")
    x = np.random.default_rng(0).normal(size=(50, 32)).astype(np.float32)
    x[7] = 0
    theirs = gguf.quantize(x, gguf.GGMLQuantizationType.Q8_0)
    ours = quantize_q8_0(x)
    assert (ours[:, :2] == theirs[:, :2]).all()
    assert np.abs(ours[:, 2:].view(np.int8).astype(int) - theirs[:, 2:].view(np.int8)).max() <= 1


def test_gguf_tokenizer_says_every_token(tmp_path):
    model, tokenizer = made()
    save_gguf(model, tokenizer, tmp_path / "m.gguf", name="piano")
    keys, _ = read(tmp_path / "m.gguf")
    tokens = keys["tokenizer.ggml.tokens"]
    assert len(tokens) == 328 and keys["general.name"] == "piano" and keys["tokenizer.ggml.add_bos_token"] is False
    spelled = json.loads(
        (save_tokenizer(tokenizer, tmp_path / "t"), (tmp_path / "t" / "tokenizer.json"))[1].read_text()
    )
    vocabulary = spelled["model"]["vocab"] | {t["content"]: t["id"] for t in spelled["added_tokens"]}
    assert all(tokens[i] == token for token, i in vocabulary.items())
    merges = [m if isinstance(m, str) else " ".join(m) for m in spelled["model"]["merges"]]
    assert keys["tokenizer.ggml.merges"] == merges
    assert [i for i, kind in enumerate(keys["tokenizer.ggml.token_type"]) if kind == 3][:4] == [0, 1, 2, 3]


def test_gguf_of_gpt2_joins_queries_keys_and_values(tmp_path):
    model, tokenizer = made(model_type="gpt2", num_key_value_heads=4, hidden_act="gelu_new")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) / 9)
    save_gguf(model, tokenizer, tmp_path / "m.gguf", "q8_0")
    keys, tensors = read(tmp_path / "m.gguf")
    assert keys["general.architecture"] == "gpt2" and "gpt2.attention.layer_norm_epsilon" in keys
    first, layer, norm = (cast(Any, part) for part in (model.layers[0], model.layers[1], model.norm))
    products = [getattr(layer.self_attn, f"{one}_proj") for one in "qkv"]
    weight, bias = (torch.cat([getattr(p, part) for p in products]).detach().numpy() for part in ("weight", "bias"))
    assert np.abs(tensors["blk.1.attn_qkv.weight"] - weight).max() <= np.abs(weight).max() / 250
    assert np.array_equal(tensors["blk.1.attn_qkv.bias"], bias)
    assert np.array_equal(tensors["position_embd.weight"], cast(Any, model.embed_positions).weight.detach().numpy())
    assert np.array_equal(tensors["output_norm.bias"], norm.bias.detach().numpy())
    assert np.array_equal(tensors["blk.0.ffn_up.bias"], first.mlp.up_proj.bias.detach().numpy())
    assert len(tensors) == 4 + 12 * len(model.layers)


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
def test_gguf_says_how_much_slower_each_pair_turns(tmp_path, kind):
    scaling = RopeScaling(kind, 4.0, 64)
    model, tokenizer = made(rope_scaling=scaling)
    save_gguf(model, tokenizer, tmp_path / "m.gguf")
    keys, tensors = read(tmp_path / "m.gguf")
    plain = model.config.rope_theta ** (-np.arange(0, model.config.head_size, 2) / model.config.head_size)
    omega, scale = rotary_frequencies(model.config)
    np.testing.assert_allclose(plain / tensors["rope_freqs.weight"], omega.numpy(), rtol=1e-5)
    assert keys.get("llama.rope.scaling.attn_factor", 1.0) == pytest.approx(scale)
    assert keys["llama.context_length"] == model.config.context


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"model_type": "mistral", "sliding_window": 8}, "a sliding window"),
        ({"rope_scaling": RopeScaling("dynamic", 4.0)}, "dynamic rotary positions of the type llama"),
        ({"model_type": "qwen2", "rope_scaling": RopeScaling("yarn", 4.0)}, "yarn rotary positions of the type qwen2"),
        ({"hidden_act": "gelu"}, "a feed-forward part with gelu"),
        ({"model_type": "qwen3", "attention_bias": True}, "attention with biases of the type qwen3"),
    ],
    ids=["window", "dynamic", "qwen2", "gelu", "biases"],
)
def test_what_gguf_cannot_say_is_refused(tmp_path, settings, what):
    model, tokenizer = made(**settings)
    with pytest.raises(GgufError, match=f"{what} cannot be exported"):
        save_gguf(model, tokenizer, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_an_export_says_the_same_everywhere(tmp_path, capsys):
    pytest.importorskip("transformers")
    folder = folder_of(tmp_path)
    done = export(folder, tmp_path / "out", ExportConfig(gguf="q8_0", max_new_tokens=12))
    assert done.opened_by.startswith("transformers") and done.files == ["model-q8_0.gguf", "model.safetensors"]
    assert not export(folder, tmp_path / "out", ExportConfig(gguf="q8_0", max_new_tokens=12)).changed
    assert (
        cli.main(["export", str(folder), "--out", str(tmp_path / "b"), "--prompt", "The", "--max-new-tokens", "5"]) == 0
    )
    assert "1 prompt, the same tokens" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["folder", "server"])
def test_an_export_that_says_something_else_leaves_nothing(tmp_path, monkeypatch, where):
    """A weight is changed after the files are written, or the server's."""
    folder, save = folder_of(tmp_path), module.self_test

    def broken(model, tokenizer, place, prompts, most):
        other = load_model(place)
        with torch.no_grad():
            other.embed_tokens.weight.copy_(other.embed_tokens.weight.flip(0))
        save_model(other, place)
        if where == "server":
            monkeypatch.setattr(module, "_compare", lambda *_: None)
        return save(model, tokenizer, place, prompts, most)

    monkeypatch.setattr(module, "self_test", broken)
    with pytest.raises(TrainingError, match=r"something else in (transformers|luthier|the server)"):
        export(folder, tmp_path / "out", ExportConfig(max_new_tokens=8))
    assert {p.name for p in tmp_path.iterdir()} <= {"model", ".out.lock"}


def test_a_kept_checkpoint_becomes_a_model_folder(tmp_path):
    """The weights of that step, adapters merged; the run is rebuilt from its folder."""
    from safetensors.torch import load_file

    from luthier.core.data.encode import EncodeConfig, encode
    from luthier.core.training.finetune import FinetuneConfig, finetune
    from luthier.core.training.pretrain import PretrainConfig, pretrain
    from luthier.models.adapter_files import load_adapter
    from luthier.models.lora import merge_adapters

    _, tokenizer = made()
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    (tmp_path / "a.txt").write_text("The soundboard is spruce. What is it made of? " * 40)
    encode([tmp_path / "a.txt"], tmp_path / "tokenizer", tmp_path / "shards", EncodeConfig(validation_fraction=0))
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    often: dict[str, Any] = {"keep": "every", "save_every": 0, "threads": 1, "context": 64, "batch_size": 4}
    config = PretrainConfig(**shape, num_key_value_heads=1, steps=6, evaluate_every=3, **often)
    pretrain(tmp_path / "shards", tmp_path / "run", config)
    export(tmp_path / "run" / "step-00000003", tmp_path / "out", ExportConfig(prompts=1, max_new_tokens=4))
    kept, found = load_file(tmp_path / "run" / "step-00000003" / "model.safetensors"), load_model(tmp_path / "out")
    assert all(torch.equal(kept[name], p) for name, p in found.named_parameters())
    assert not torch.equal(load_model(tmp_path / "run").head_weight, found.head_weight)

    row = {"question": "What is it made of?", "answer": "Spruce."}
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n")
    tuning = FinetuneConfig(lora_rank=2, epochs=4, **often)
    finetune(tmp_path / "run", [tmp_path / "q.jsonl"], tmp_path / "tuned", tuning)
    last = max((tmp_path / "tuned").glob("step-*"))
    export(last, tmp_path / "merged", ExportConfig(prompts=1, max_new_tokens=4))
    load_adapter(model := load_model(tmp_path / "run"), tmp_path / "tuned")  # as it was after the last step, one later
    adapters = load_file(last / "model.safetensors")
    assert len(adapters) == sum("adapters" in name for name, _ in model.named_parameters()) > 0
    for name, p in model.named_parameters():
        p.data.copy_(adapters.get(name, p))
    ids = torch.tensor([[5, 9, 12, 44]])
    assert torch.allclose(load_model(tmp_path / "merged")(ids), merge_adapters(model)(ids), atol=1e-5)
