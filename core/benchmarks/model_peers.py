"""The same decoder in other people's code, with the same weights: what `bench model` races.

    transformers   LlamaForCausalLM or GPT2LMHeadModel, attention by PyTorch's fused kernel; loss: cross entropy of all
                   logits, as its own loss does
    litgpt         litgpt.model.GPT and its chunked cross entropy; --peer litgpt=FOLDER where it is not installed (its
                   pins exclude numpy 2: `pip install --no-deps --target FOLDER litgpt lightning …` does)
    nanogpt        model.py of a checkout, --peer nanogpt=PATH/model.py: GPT-2's shape only

Each is a module, how it makes logits, a loss and, where it can, a greedy continuation.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.core.console import say
from luthier.core.errors import ConfigError
from luthier.models.config import ModelConfig
from luthier.models.generate import generate
from luthier.models.layouts import config_to_json, to_theirs
from luthier.models.transformer import Transformer

__all__ = ["Contender", "contenders", "ours", "paths_of"]


class Contender(NamedTuple):
    """A decoder in somebody's code."""

    module: nn.Module
    logits: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    """Mean over all labels."""
    write: Callable[[Tensor, int], list[list[int]]] | None = None
    """Greedy continuation of prompts [B, T] by so many tokens."""


def paths_of(peer: tuple[str, ...] | list[str]) -> dict[str, Path]:
    """Name → path of what --peer gave. Raises ConfigError."""
    paths = {}
    for one in peer:
        name, _, path = one.partition("=")
        if name not in ("litgpt", "nanogpt") or not path or not Path(path).exists():
            raise ConfigError(
                f"--peer {one}: expected litgpt=FOLDER (which holds the package) or nanogpt=PATH/model.py, both there"
            )
        paths[name] = Path(path)
    return paths


def contenders(model: Transformer, paths: Mapping[str, Path], only: str = "") -> dict[str, Contender]:
    """Every peer that is there and can have this model's shape, with its weights; by name and version."""
    build: dict[str, Callable[[], Contender]] = {
        "transformers": lambda: _transformers(model),
        "litgpt": lambda: _litgpt(model, paths.get("litgpt")),
        "nanogpt": lambda: _nanogpt(model, paths["nanogpt"]),
    }
    found = {}
    for name in _able(model.config, paths):
        if only in ("", name):
            with contextlib.redirect_stdout(sys.stderr):
                try:
                    found[_versioned(name)] = build[name]()
                except ImportError as error:
                    say(f"  {name} is left out: {error}")
    return found


def _able(config: ModelConfig, paths: Mapping[str, Path]) -> list[str]:
    """The peers that have this family's shape and are installed or were named."""
    there = {name for name in ("transformers", "litgpt") if importlib.util.find_spec(name)} | set(paths)
    shaped = ("transformers", "nanogpt") if config.model_type == "gpt2" else ("transformers", "litgpt")
    return [name for name in shaped if name in there]


def _versioned(name: str) -> str:
    try:
        return f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return name


def _mean(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


# ---------------------------------------------------------------- each


def ours(model: Transformer) -> Contender:
    def loss(ids: Tensor, labels: Tensor) -> Tensor:
        total, count = model.loss(ids, labels)
        return total / count

    def write(ids: Tensor, count: int) -> list[list[int]]:
        return [g.ids for g in generate(model, ids.tolist(), max_new_tokens=count)]

    return Contender(model, model, loss, write)


def _transformers(model: Transformer) -> Contender:
    import transformers

    transformers.logging.set_verbosity_error()
    raw = config_to_json(model.config, torch.float32, {"eos_token_id": None, "bos_token_id": None})
    kind = transformers.AutoConfig.for_model(raw.pop("model_type"), **raw)
    theirs = transformers.AutoModelForCausalLM.from_config(kind, attn_implementation="sdpa")
    missing, unknown = theirs.load_state_dict(to_theirs(model.state_dict(), model.config.model_type), strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unknown, (missing, unknown)

    def write(ids: Tensor, count: int) -> list[list[int]]:
        greedy: dict[str, Any] = {"do_sample": False, "max_new_tokens": count, "pad_token_id": 0, "use_cache": True}
        return theirs.generate(ids, attention_mask=torch.ones_like(ids), **greedy)[:, ids.shape[1] :].tolist()

    return Contender(theirs.eval(), lambda i: theirs(i).logits, lambda i, y: _mean(theirs(i).logits, y), write)


def _litgpt(model: Transformer, folder: Path | None) -> Contender:
    if folder is not None and str(folder) not in sys.path:
        sys.path.append(str(folder))
    import_module = importlib.import_module
    Config, GPT = import_module("litgpt.config").Config, import_module("litgpt.model").GPT
    loss, base = import_module("litgpt.utils").chunked_cross_entropy, import_module("litgpt.generate.base")
    c = model.config
    shape = {"n_layer": c.num_hidden_layers, "n_head": c.num_attention_heads, "n_query_groups": c.num_key_value_heads}
    shape |= {"vocab_size": c.vocab_size, "padded_vocab_size": c.vocab_size, "block_size": c.max_position_embeddings}
    shape |= {"n_embd": c.hidden_size, "intermediate_size": c.intermediate_size, "rope_base": int(c.rope_theta)}
    llama = {"norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "norm_eps": c.rms_norm_eps}
    theirs = GPT(Config(name="", bias=False, parallel_residual=False, rotary_percentage=1.0, **shape, **llama))
    theirs.lm_head.weight = theirs.transformer.wte.weight
    theirs.load_state_dict(_litgpt_names(model.state_dict(), c.num_hidden_layers))

    def write(ids: Tensor, count: int) -> list[list[int]]:
        theirs.set_kv_cache(batch_size=1, max_seq_length=ids.shape[1] + count)
        with torch.inference_mode():
            rows = [base.generate(theirs, row, len(row) + count, temperature=0.0, include_prompt=False) for row in ids]
        theirs.clear_kv_cache()
        return [row.tolist() for row in rows]

    return Contender(theirs.eval(), theirs, lambda i, y: loss(theirs(i), y, chunk_size=128), write)


def _litgpt_names(state: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    parts = {"input_layernorm": "norm_1", "post_attention_layernorm": "norm_2", "self_attn.o_proj": "attn.proj"}
    parts |= {"mlp.gate_proj": "mlp.fc_1", "mlp.up_proj": "mlp.fc_2", "mlp.down_proj": "mlp.proj"}
    named = {"transformer.wte.weight": state["embed_tokens.weight"], "lm_head.weight": state["embed_tokens.weight"]}
    named["transformer.ln_f.weight"] = state["norm.weight"]
    for n in range(layers):
        qkv = [state[f"layers.{n}.self_attn.{which}_proj.weight"] for which in "qkv"]
        named[f"transformer.h.{n}.attn.qkv.weight"] = torch.cat(qkv)
        named |= {f"transformer.h.{n}.{theirs}.weight": state[f"layers.{n}.{o}.weight"] for o, theirs in parts.items()}
    return named


def _nanogpt(model: Transformer, file: Path) -> Contender:
    spec = importlib.util.spec_from_file_location("nanogpt_model", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    c = model.config
    shape = {"n_layer": c.num_hidden_layers, "n_head": c.num_attention_heads, "n_embd": c.hidden_size}
    shape |= {"vocab_size": c.vocab_size, "block_size": c.max_position_embeddings}
    theirs = module.GPT(module.GPTConfig(dropout=0.0, bias=True, **shape))
    state = to_theirs(model.state_dict(), "gpt2")
    turned = {n: t.T if ".c_" in n and n.endswith("weight") else t for n, t in state.items()}  # its products are Linear
    theirs.load_state_dict(turned | {"lm_head.weight": turned["transformer.wte.weight"]})

    def logits(ids: Tensor) -> Tensor:
        return theirs(ids, ids)[0]  # without targets it makes the last place's only

    def write(ids: Tensor, count: int) -> list[list[int]]:
        return theirs.generate(ids, count, top_k=1)[:, ids.shape[1] :].tolist()

    return Contender(theirs.eval(), logits, lambda i, y: theirs(i, y)[1], write)
