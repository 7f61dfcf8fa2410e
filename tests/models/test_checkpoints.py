"""Folders that `transformers` wrote are read here, and ours there, with equal logits; damage is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.models.checkpoints import CheckpointError, load_config, load_model, save_model
from luthier.models.config import preset
from luthier.models.generate import generate
from luthier.models.layouts import to_theirs
from luthier.models.transformer import Transformer

SMALL: dict[str, Any] = {
    "vocab_size": 89,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
SHORT = {"max_position_embeddings": 16}  # the text of 40 tokens is longer: scaling must carry it
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama 2": ("Llama", {}),
    "llama 3": ("Llama", {"rope_scaling": LLAMA3, "rope_theta": 500_000.0}),
    "llama, wide heads": ("Llama", {"head_dim": 20, "hidden_act": "gelu_pytorch_tanh"}),
    "smollm": ("Llama", {"tie_word_embeddings": True, "num_attention_heads": 3, "num_key_value_heads": 1}),
    "llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, linear": ("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama, dynamic": ("Llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}} | SHORT),
    "mistral": ("Mistral", {"sliding_window": 7, "head_dim": 20}),
    "mistral 0.3": ("Mistral", {"sliding_window": None}),
    "qwen 2": ("Qwen2", {}),
    "qwen 2.5, yarn": ("Qwen2", {"rope_scaling": YARN, "tie_word_embeddings": True} | SHORT),
    "qwen 3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen 3, yarn": ("Qwen3", {"rope_scaling": YARN | {"attention_factor": 1.3, "beta_fast": 8.0}, "head_dim": 32}),
    "gpt2": ("GPT2", {}),
    "gpt2, untied": ("GPT2", {"tie_word_embeddings": False, "n_inner": 72, "activation_function": "gelu"}),
}


def theirs(family: str) -> Any:
    """A random model of `transformers`, weights large enough that every part matters."""
    import transformers

    name, more = FAMILIES[family]
    if name == "GPT2":
        names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
        names |= {"max_position_embeddings": "n_positions", "vocab_size": "vocab_size"}
        config = transformers.GPT2Config(**{names[key]: SMALL[key] for key in names} | more)
        model = transformers.GPT2LMHeadModel(config).eval()
    else:
        model = getattr(transformers, f"{name}ForCausalLM")(
            getattr(transformers, f"{name}Config")(**SMALL | more)
        ).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(weight + 0.3 * noise if weight.dim() == 1 else 0.15 * noise)
    return model


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, SMALL["vocab_size"], shape, generator=torch.Generator().manual_seed(0))


def distance(ours: Tensor, other: Tensor) -> float:
    return float((ours - other).detach().abs().max() / other.detach().abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_both_ways(family: str, tmp_path: Path) -> None:
    """Logits and gradients within 1e-5, and no farther from float64 than twice their own distance; then back."""
    import transformers

    model, ids = theirs(family), tokens(2, 40)
    model.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    other = model(ids).logits
    assert distance(ours(ids), other) <= 1e-5

    with torch.no_grad():
        truth = load_model(tmp_path / "theirs", dtype=torch.float64)(ids)
        assert distance(ours(ids), truth) <= 2 * distance(other, truth) + 1e-6
        assert distance(model.double()(ids).logits, truth) <= 1e-5
    model.float()

    labels = tokens(2, 40).roll(-1, 1)
    loss, count = ours.loss(ids, labels)
    (loss / count).backward()
    torch.nn.functional.cross_entropy(model(ids).logits.flatten(0, 1), labels.flatten()).backward()
    gradients = {name: weight.grad for name, weight in ours.named_parameters() if weight.grad is not None}
    found = to_theirs(gradients, ours.config.model_type)
    for name, weight in model.named_parameters():
        assert weight.grad is not None and distance(found[name], weight.grad) <= 1e-5, name

    save_model(ours, tmp_path / "ours", eos_token_id=[1, 2], pad_token_id=0)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert type(back) is type(model)
    assert distance(ours(ids), back(ids).logits) <= 1e-5
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), back.parameters(), strict=True))
    assert back.generation_config.eos_token_id == [1, 2]
    assert load_config(tmp_path / "ours") == load_model(tmp_path / "ours").config


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_and_bfloat16(family: str, tmp_path: Path) -> None:
    """Greedy continuations of three prompts at once are those that transformers finds for each alone; in bfloat16 our
    logits are no farther from float64 than twice theirs."""
    model, ids = theirs(family), tokens(3, 30)
    model.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    prompts = [ids[0, :1], ids[1, :9], ids[2, :5]]
    written = generate(ours, [p.tolist() for p in prompts], max_new_tokens=12)
    if family != "llama, dynamic":  # there frequencies depend on the longest text of a batch, with transformers too
        for prompt, result in zip(prompts, written, strict=True):
            other = model.generate(prompt[None], max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None)
            assert result.ids == other[0, len(prompt) :].tolist()
    with torch.no_grad():
        truth = load_model(tmp_path, dtype=torch.float64)(ids)
        mine, other = load_model(tmp_path, dtype=torch.bfloat16)(ids), model.bfloat16()(ids).logits
        assert mine.dtype == torch.bfloat16
        assert distance(mine.double(), truth) <= 2 * distance(other.double(), truth)


def test_the_first_gpt2_folders(tmp_path: Path) -> None:
    """Names without their prefix, causal masks stored as weights, no n_inner: as gpt2 lies on the hub."""
    from safetensors.torch import load_file, save_file

    model, ids = theirs("gpt2"), tokens(1, 20)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = {name.removeprefix("transformer."): weight for name, weight in load_file(file).items()}
    weights["h.0.attn.bias"] = torch.ones(64, 64).tril()[None, None]
    save_file(weights, file)
    assert distance(load_model(tmp_path)(ids), model(ids).logits) <= 1e-5


def test_transformers_4_spelling_is_read(tmp_path: Path) -> None:
    """Version 5 writes rope_parameters and dtype where version 4 wrote rope_theta, rope_scaling and torch_dtype."""
    theirs("llama 3").save_pretrained(tmp_path)
    new = load_config(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    rope = raw.pop("rope_parameters")
    raw["rope_theta"] = rope.pop("rope_theta")
    raw["rope_scaling"] = rope
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert load_config(tmp_path) == new and new.rope_scaling is not None and new.rope_theta == 500_000.0


def test_sharded_folders_are_read_and_written(tmp_path: Path) -> None:
    import transformers

    model, ids = theirs("qwen 2"), tokens(1, 9)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    assert len(list((tmp_path / "theirs").glob("model-*.safetensors"))) > 2
    ours = load_model(tmp_path / "theirs")
    assert distance(ours(ids), model(ids).logits) <= 1e-5
    save_model(ours, tmp_path / "ours", most_bytes_a_file=40_000)
    files = sorted(f.name for f in (tmp_path / "ours").iterdir())
    assert len(files) > 5 and "model.safetensors.index.json" in files and "model.safetensors" not in files
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert distance(ours(ids), back(ids).logits) <= 1e-5
    save_model(ours, tmp_path / "ours")  # one file now: the parts of before must not be read
    assert sorted(f.name for f in (tmp_path / "ours").glob("model*")) == ["model.safetensors"]
    assert all(
        torch.equal(a, b) for a, b in zip(load_model(tmp_path / "ours").parameters(), ours.parameters(), strict=True)
    )


def test_where_one_file_and_an_index_are_the_one_is_read(tmp_path: Path) -> None:
    """As transformers does: shards of an earlier model may have been left behind."""
    import transformers

    model, ids = theirs("smollm"), tokens(1, 9)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    with torch.no_grad():
        model.model.norm.weight.mul_(2.0)
    model.save_pretrained(tmp_path / "newer")
    shutil.copy(tmp_path / "newer" / "model.safetensors", tmp_path)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits
    assert distance(other, model(ids).logits) <= 1e-5 and distance(load_model(tmp_path)(ids), other) <= 1e-5


def test_half_precision_is_kept_when_asked_for(tmp_path: Path) -> None:
    save_model(Transformer(preset("demo", vocab_size=64)).bfloat16(), tmp_path)
    assert load_model(tmp_path).embed_tokens.weight.dtype == torch.float32
    model = load_model(tmp_path, dtype=torch.bfloat16)
    assert model.embed_tokens.weight.dtype == torch.bfloat16 and bool(model(tokens(1, 5) % 64).isfinite().all())
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"


# ---------------------------------------------------------------- damage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(Transformer(preset("demo", vocab_size=64, num_hidden_layers=1)), tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], Any], name: str = "model.safetensors") -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / name)
    change(weights)
    save_file(weights, folder / name)


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


NORM, DOWN = "model.norm.weight", "model.layers.0.mlp.down_proj.weight"
DAMAGE: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "no config": (lambda f: (f / "config.json").unlink(), ["not a model folder", "config.json", "copy it there"]),
    "a folder for a config": (
        lambda f: ((f / "config.json").unlink(), (f / "config.json").mkdir()),
        ["config.json", "cannot be read", "directory"],
    ),
    "broken config": (lambda f: (f / "config.json").write_text("{"), ["config.json", "not valid JSON"]),
    "other architecture": (
        lambda f: configure(f, architectures=["BertModel"]),
        ["BertModel", "LlamaForCausalLM", "MistralForCausalLM", "Qwen3ForCausalLM", "GPT2LMHeadModel"],
    ),
    "a size missing": (
        lambda f: (f / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}'),
        ["config.json", "'num_attention_heads'"],
    ),
    "a wrong size": (lambda f: configure(f, num_attention_heads=5), ["config.json", "num_attention_heads = 5"]),
    "other activation": (lambda f: configure(f, hidden_act="relu2"), ["hidden_act", "relu2", "silu"]),
    "other scaling": (
        lambda f: configure(f, rope_scaling={"type": "longrope", "factor": 2.0}),
        ["longrope", "yarn", "llama3"],
    ),
    "scaling without a factor": (
        lambda f: configure(f, rope_scaling={"rope_type": "linear"}),
        ["config.json", "'linear'", "no factor"],
    ),
    "heads that transformers refuses": (
        lambda f: configure(f, num_attention_heads=10, num_key_value_heads=2, head_dim=32),
        ["num_attention_heads = 10", "hidden_size = 192", "mistral"],
    ),
    "quantised": (lambda f: configure(f, quantization_config={}), ["quantization_config"]),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ["model.safetensors", "copy them there"]),
    "a shard without an index": (
        lambda f: (f / "model.safetensors").rename(f / "model-00001-of-00002.safetensors"),
        ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "copy it there"],
    ),
    "pickled weights": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        ["pytorch_model.bin", "pickle"],
    ),
    "cut short": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
        ["model.safetensors", "cut short"],
    ),
    "no safetensors": (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), ["model.safetensors", "damaged"]),
    "a pointer of Git LFS": (
        lambda f: (f / "model.safetensors").write_text(
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}"
        ),
        ["model.safetensors", "git lfs pull"],
    ),
    "tensor missing": (
        lambda f: rewrite(f, lambda w: w.pop(DOWN)),
        [DOWN, "missing", "[192, 512]", "copy both again"],
    ),
    "head missing": (
        lambda f: configure(f, tie_word_embeddings=False),
        ["lm_head.weight", "missing", "[64, 192]", "set tie_word_embeddings to true"],
    ),
    "tensor too many": (
        lambda f: rewrite(f, lambda w: w.update({"model.layers.0.mlp.down_proj.bias": torch.ones(192)})),
        ["model.layers.0.mlp.down_proj.bias", "no place"],
    ),
    "tensor of another shape": (
        lambda f: rewrite(f, lambda w: w.update({DOWN: w[DOWN].T.contiguous()})),
        ["model.safetensors", DOWN, "[512, 192]", "[192, 512]"],
    ),
    "tensor of whole numbers": (lambda f: rewrite(f, lambda w: w.update({NORM: w[NORM].int()})), [NORM, "I32", "F32"]),
    "NaN": (lambda f: rewrite(f, lambda w: w[DOWN][3].fill_(float("nan"))), [DOWN, "512 numbers", "NaN"]),
    "infinite": (lambda f: rewrite(f, lambda w: w[NORM][:2].fill_(float("inf"))), [NORM, "2 numbers"]),
    "too large for float32": (
        lambda f: rewrite(f, lambda w: w.update({NORM: w[NORM].double() * 1e300})),
        [NORM, "192 numbers", "too large for float32"],
    ),
    "a tied head of another shape": (
        lambda f: rewrite(f, lambda w: w.update({"lm_head.weight": torch.ones(3, 192)})),
        ["lm_head.weight", "[3, 192]", "[64, 192]"],
    ),
    "a tied head of NaN": (
        lambda f: rewrite(f, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"] * float("nan")})),
        ["lm_head.weight", "NaN"],
    ),
    "two heads": (
        lambda f: rewrite(f, lambda w: w.update({"lm_head.weight": 2 * w["model.embed_tokens.weight"]})),
        ["lm_head.weight", "tie_word_embeddings"],
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(damage: str, folder: Path) -> None:
    hurt, words = DAMAGE[damage]
    hurt(folder)
    with pytest.raises(CheckpointError) as error:
        load_model(folder)
    assert all(word in str(error.value) for word in words), error.value
    assert len(str(error.value).splitlines()) <= 3


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    save_model(Transformer(preset("demo", vocab_size=64)), tmp_path, most_bytes_a_file=1_000_000)
    lost = sorted(tmp_path.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(CheckpointError, match=lost.name):
        load_model(tmp_path)


SHARDS: dict[str, tuple[Callable[[Path, dict[str, str]], Any], list[str]]] = {
    "a number for a file": (lambda _, files: files.update({DOWN: 3}), [DOWN, "3", "name of a file"]),  # type: ignore[dict-item]
    "a file outside": (lambda _, files: files.update({DOWN: "../model/model.safetensors"}), [DOWN, "../model"]),
    "a tensor in two files": (
        lambda f, files: rewrite(f, lambda w: w.update({DOWN: torch.zeros(192, 512)}), files[NORM]),
        [DOWN, "00002-of", "again in", "00004-of"],
    ),
}


@pytest.mark.parametrize("damage", SHARDS)
def test_what_an_index_says_wrongly_is_named(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    save_model(Transformer(preset("demo", vocab_size=64, num_hidden_layers=2)), folder, most_bytes_a_file=1_000_000)
    save_model(Transformer(preset("demo", vocab_size=64, num_hidden_layers=2)), tmp_path / "model")
    load_model(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    hurt, words = SHARDS[damage]
    hurt(folder, index["weight_map"])
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError) as error:
        load_model(folder)
    assert all(word in str(error.value) for word in words), error.value


def test_a_folder_that_is_a_file_or_nothing_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "nothing"):
        with pytest.raises(CheckpointError, match="not a model folder"):
            load_model(path)


def test_harmless_tensors_of_other_writers_are_passed_over(folder: Path) -> None:
    def add(weights: dict[str, Tensor]) -> None:
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(16)
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()  # tied, yet written out

    before = load_model(folder)
    rewrite(folder, add)
    assert torch.equal(load_model(folder)(tokens(1, 4) % 64), before(tokens(1, 4) % 64))


def test_bad_weights_are_not_written_and_a_failed_write_leaves_no_half(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(folder)
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    with pytest.raises(CheckpointError, match=r"norm\.weight"):
        save_model(model, folder)
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before

    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_model(Transformer(load_config(folder), seed=7), copy, most_bytes_a_file=1_000_000)
    assert {f.name: f.read_bytes() for f in copy.iterdir()} == before


@pytest.mark.parametrize("where", ["safetensors.torch.save_file", "os.fsync"])
def test_a_process_that_is_killed_while_it_saves_leaves_what_was_there(where: str, folder: Path) -> None:
    """As kill -9 does, at the second file or at the first sync; the next save leaves nothing of the first."""
    import signal
    import subprocess
    import sys

    module, _, name = where.rpartition(".")
    program = f"""
import importlib, os, sys
from pathlib import Path
from luthier.models.checkpoints import load_config, save_model
from luthier.models.transformer import Transformer
module = importlib.import_module({module!r})
real, calls = module.{name}, []
def killed(*a, **k):
    calls.append(real(*a, **k))
    if len(calls) > {name != "fsync":d}:
        os.kill(os.getpid(), 9)
module.{name} = killed
folder = Path(sys.argv[1])
save_model(Transformer(load_config(folder), seed=7), folder, most_bytes_a_file=1_000_000)
"""
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    done = subprocess.run([sys.executable, "-c", program, str(folder)])
    assert done.returncode == -signal.SIGKILL
    assert {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file()} == before
    model = load_model(folder)
    save_model(model, folder)
    assert {f.name for f in folder.iterdir()} == before.keys()
    assert load_model(folder).norm.weight.equal(model.norm.weight)


def test_a_hub_id_is_downloaded_when_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only with the prefix; the download itself is huggingface_hub's, replaced here by one that needs no network."""
    import sys
    from types import SimpleNamespace

    def snapshot_download(name: str, **_: Any) -> str:
        if name != "owner/name":
            raise OSError("404 Not Found")
        return str(folder)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    assert load_config("hub:owner/name") == load_config(folder)
    assert torch.equal(load_model(Path("hub:owner/name")).norm.weight, load_model(folder).norm.weight)
    with pytest.raises(CheckpointError, match=r"hub:owner/none .*404"):
        load_model("hub:owner/none")
    with pytest.raises(CheckpointError, match=r"not a model folder.*hub:owner/name would be one to download"):
        load_model(Path("owner/name"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="pip install huggingface_hub"):
        load_model("hub:owner/name")


def test_a_download_brings_what_is_read_and_no_second_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the hub's own filter, on the files of a folder such as Mistral's or GPT-2's."""
    import sys
    from types import SimpleNamespace

    from huggingface_hub.utils import filter_repo_objects

    files = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.model"]
    files += ["tokenizer.json", "vocab.json", "merges.txt", "chat_template.jinja", "adapter_model.safetensors"]
    others = ["README.md", "consolidated.safetensors", "onnx/model.json", "original/params.json", "pytorch_model.bin"]
    taken: list[str] = []

    def snapshot_download(_: str, **patterns: Any) -> str:
        taken.extend(filter_repo_objects(files + others, **patterns))
        return "nowhere"

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    with pytest.raises(CheckpointError):
        load_config("hub:owner/name")
    assert taken == files
