"""Model folders in Hugging Face's layout, in and out.

    config.json                   the decoder's numbers; which family it is
    model.safetensors             the weights, or, past 5 GB, model-00001-of-0000N.safetensors and
    model.safetensors.index.json  which tensor is in which file
    generation_config.json        the tokens that end an answer

Names of tensors are ours with `model.` before them, but for `lm_head.weight`. What `transformers` needs more is in
config.json; a folder written here opens there with the same logits, and the other way round.

Reading is all or nothing: names and shapes of every tensor are compared with what config.json asks for before the first
number is read, and numbers that are not finite are refused. Each file is written under another name, synced and
renamed, config.json last, so that a folder that can be read is whole.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.models.config import ModelConfig, ModelConfigError, RopeScaling
from luthier.models.transformer import Transformer

__all__ = ["ARCHITECTURES", "CheckpointError", "load_config", "load_model", "save_model"]

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",  # Llama 2 and 3, SmolLM and SmolLM2
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
# What a family's config.json may leave out, with the values that transformers then takes.
LEFT_OUT: dict[str, dict[str, Any]] = {
    "llama": {"rms_norm_eps": 1e-6},
    "mistral": {"rms_norm_eps": 1e-6, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"rms_norm_eps": 1e-6, "num_key_value_heads": 32},
    "qwen3": {"rms_norm_eps": 1e-6, "num_key_value_heads": 32, "head_dim": 128},
}
MOST_BYTES_A_FILE = 5 * 10**9  # where Hugging Face's own writer begins another file
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


class CheckpointError(ValueError):
    """A model folder cannot be read: which file or tensor, what was found, what was expected."""


# ---------------------------------------------------------------- config.json


def load_config(folder: Path) -> ModelConfig:
    """The decoder's numbers from a folder's config.json. Raises CheckpointError for what this decoder cannot be."""
    path = Path(folder) / CONFIG
    raw = _read_json(path, f"{folder} is not a model folder: it has no {CONFIG}")
    names = raw.get("architectures") or [f"none named (model_type {raw.get('model_type')!r})"]
    if names[0] not in ARCHITECTURES:
        raise CheckpointError(f"{path}: architecture {names[0]} is not supported; those are {', '.join(ARCHITECTURES)}")
    try:
        return _from_json(LEFT_OUT[ARCHITECTURES[names[0]]] | raw, ARCHITECTURES[names[0]])
    except KeyError as error:
        raise CheckpointError(f"{path} has no {error}, which {names[0]} needs") from error
    except (ModelConfigError, CheckpointError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _from_json(raw: dict[str, Any], family: Any) -> ModelConfig:
    """Hugging Face's keys into ours, refusing every setting that would change the logits and is not supported."""
    rope = raw.get("rope_parameters") or {"rope_theta": raw.get("rope_theta", 10_000.0)} | (
        raw.get("rope_scaling") or {}
    )  # transformers 5 | transformers 4
    window = raw.get("sliding_window") if family == "mistral" or raw.get("use_sliding_window") else None
    if family != "mistral" and window is not None:
        raise CheckpointError("use_sliding_window is true, which is supported for MistralForCausalLM only")
    for key, supported in (("hidden_act", "silu"), ("mlp_bias", False), ("partial_rotary_factor", 1.0)):
        if raw.get(key, supported) != supported:
            raise CheckpointError(f"{key} = {raw[key]!r} is not supported, only {supported!r}")
    if "quantization_config" in raw:
        raise CheckpointError("the weights are quantised (quantization_config); take the folder of the plain model")
    heads = raw["num_attention_heads"]
    return ModelConfig(
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        num_hidden_layers=raw["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim"),
        max_position_embeddings=raw["max_position_embeddings"],
        rope_theta=rope.get("rope_theta", raw.get("rope_theta", 10_000.0)),
        rope_scaling=_rope_scaling(rope),
        rms_norm_eps=raw["rms_norm_eps"],
        tie_word_embeddings=raw.get("tie_word_embeddings", False),
        model_type=family,
        attention_bias=family in ("llama", "qwen3") and bool(raw.get("attention_bias")),
        sliding_window=window,
        initializer_range=raw.get("initializer_range", 0.02),
    )


def _rope_scaling(rope: dict[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise CheckpointError(f"rope scaling of type {kind!r} is not supported, only 'llama3'")
    return RopeScaling(
        factor=rope["factor"],
        low_freq_factor=rope["low_freq_factor"],
        high_freq_factor=rope["high_freq_factor"],
        original_max_position_embeddings=rope["original_max_position_embeddings"],
    )


def _to_json(config: ModelConfig, dtype: torch.dtype, tokens: dict[str, Any]) -> dict[str, Any]:
    """Ours into Hugging Face's keys, the spelling that transformers 4 and 5 both read."""
    architecture = next(name for name, family in ARCHITECTURES.items() if family == config.model_type)
    scaling = config.rope_scaling
    raw: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling is None else {"rope_type": "llama3", **vars(scaling)},
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
        **tokens,
    }
    if config.model_type in ("llama", "qwen3"):
        raw["attention_bias"] = config.attention_bias
    if config.model_type == "mistral":
        raw["sliding_window"] = config.sliding_window
    return raw


# ---------------------------------------------------------------- reading


def load_model(folder: Path, *, dtype: torch.dtype | None = None) -> Transformer:
    """The model in `folder`, in evaluation mode, its weights in `dtype` (default float32, a CPU's fastest).

    Raises CheckpointError naming the file, the tensor, what was found and what was expected; nothing is half-loaded.
    """
    folder, config = Path(folder), load_config(folder)
    model = Transformer(config, device="meta")
    expected = {_theirs(name): weight.shape for name, weight in model.named_parameters()}
    state: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack:
        opened = {path: stack.enter_context(_open(path)) for path in _weight_files(folder)}
        where = {name: (path, file) for path, file in opened.items() for name in file.keys()}  # noqa: SIM118
        _compare(folder, expected, where, tied=config.tie_word_embeddings)
        for name in expected:
            path, file = where[name]
            state[_ours(name)] = _finite(file.get_tensor(name), name, path).to(dtype or torch.float32)
        if config.tie_word_embeddings and "lm_head.weight" in where:
            path, file = where["lm_head.weight"]
            head = file.get_tensor("lm_head.weight").to(dtype or torch.float32)
            if not torch.equal(head, state["embed_tokens.weight"]):
                raise CheckpointError(
                    f"{path}: lm_head.weight differs from the embedding, but {CONFIG} says tie_word_embeddings; "
                    "set it to false there if the head is its own"
                )
    model.load_state_dict(state, assign=True)
    return model.eval()


def _theirs(name: str) -> str:
    return name if name.startswith("lm_head.") else f"model.{name}"


def _ours(name: str) -> str:
    return name.removeprefix("model.")


def _read_json(path: Path, missing: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(missing) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return value


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder; all of those that the index names must be there."""
    if (folder / INDEX).is_file():
        named = _read_json(folder / INDEX, "").get("weight_map")
        if not isinstance(named, dict) or not named:
            raise CheckpointError(f"{folder / INDEX} has no weight_map")
        files = [folder / name for name in sorted(set(named.values()))]
        for file in files:
            if not file.is_file():
                first = min(name for name, f in named.items() if f == file.name)
                raise CheckpointError(f"{file} is missing; {INDEX} expects {first} and more in it. Copy it again.")
        return files
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    pickled = sorted(f.name for f in folder.glob("pytorch_model*.bin"))
    hint = f"; {pickled[0]} is a pickle, which may run code: convert it to safetensors first" if pickled else ""
    raise CheckpointError(f"{folder} has neither {WEIGHTS} nor {INDEX}{hint}")


def _open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size:,} bytes) is damaged or cut short: {error}. Copy it again."
        ) from error


def _compare(folder: Path, expected: dict[str, torch.Size], where: dict[str, Any], *, tied: bool) -> None:
    """Names and shapes that the files hold against those that config.json asks for."""
    for name, shape in expected.items():
        if name not in where:
            raise CheckpointError(f"{folder}: tensor {name} is missing; {CONFIG} asks for it with shape {list(shape)}")
        path, file = where[name]
        found = file.get_slice(name).get_shape()
        if list(found) != list(shape):
            raise CheckpointError(f"{path}: tensor {name} has shape {list(found)}, {CONFIG} asks for {list(shape)}")
        if (kind := file.get_slice(name).get_dtype()) not in ("F64", "F32", "F16", "BF16"):
            raise CheckpointError(f"{path}: tensor {name} is of type {kind}, expected F32, F16, BF16 or F64")
    for name in where.keys() - expected.keys():
        # Old folders carry the rotary frequencies, which follow from config.json; a tied head is checked by the caller.
        if not name.endswith("rotary_emb.inv_freq") and not (tied and name == "lm_head.weight"):
            raise CheckpointError(f"{where[name][0]}: tensor {name} has no place in the model that {CONFIG} describes")


def _finite(weight: Tensor, name: str, path: Path) -> Tensor:
    """The tensor, if every number in it is one; the sum is not finite if any term is not."""
    if not torch.isfinite(weight.sum(dtype=torch.float64)):
        wrong = int((~torch.isfinite(weight)).sum())
        raise CheckpointError(
            f"{path}: tensor {name} holds {wrong:,} numbers that are NaN or infinite; the file is bad"
        )
    return weight


# ---------------------------------------------------------------- writing


def save_model(
    model: Transformer,
    folder: Path,
    *,
    eos_token_id: int | Sequence[int] | None = None,
    bos_token_id: int | None = None,
    pad_token_id: int | None = None,
    most_bytes_a_file: int = MOST_BYTES_A_FILE,
) -> None:
    """Write the model's folder: weights in the dtype they have, generation_config.json, config.json.

    `eos_token_id` are the tokens at which generation ends, one or several. Files of an earlier model in the folder are
    replaced. Raises CheckpointError if a weight is not finite; nothing is written then.
    """
    folder = Path(folder)
    weights = {_theirs(name): weight.detach().cpu().contiguous() for name, weight in model.named_parameters()}
    for name, weight in weights.items():
        if not torch.isfinite(weight.sum(dtype=torch.float64)):
            raise CheckpointError(f"tensor {name} holds numbers that are NaN or infinite; {folder} was not written")
    folder.mkdir(parents=True, exist_ok=True)
    eos = eos_token_id if eos_token_id is None or isinstance(eos_token_id, int) else [int(i) for i in eos_token_id]
    tokens = {"bos_token_id": bos_token_id, "eos_token_id": eos, "pad_token_id": pad_token_id}
    dtype = model.embed_tokens.weight.dtype
    (folder / CONFIG).unlink(missing_ok=True)  # from here until the end the folder is no model folder
    _write_weights(weights, folder, most_bytes_a_file)
    given = {name: value for name, value in tokens.items() if value is not None}
    _write_json(folder / "generation_config.json", {"do_sample": False, **given})
    _write_json(folder / CONFIG, _to_json(model.config, dtype, tokens))


def _write_weights(weights: dict[str, Tensor], folder: Path, most: int) -> None:
    """One file, or several of at most `most` bytes (a larger tensor has one of its own) and their index."""
    from safetensors.torch import save_file

    parts: list[dict[str, Tensor]] = [{}]
    room = most
    for name, weight in weights.items():
        room -= weight.nbytes
        if room < 0 and parts[-1]:
            parts.append({})
            room = most - weight.nbytes
        parts[-1][name] = weight
    n = len(parts)
    names = [WEIGHTS] if n == 1 else [f"model-{i:05d}-of-{n:05d}.safetensors" for i in range(1, n + 1)]
    for file, part in zip(names, parts, strict=True):
        _atomically(folder / file, lambda path, part=part: save_file(part, path, metadata={"format": "pt"}))
    if n > 1:
        index = {name: file for file, part in zip(names, parts, strict=True) for name in part}
        total = sum(weight.nbytes for weight in weights.values())
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": index})
    _remove_others(folder, {*names, *([INDEX] if n > 1 else [])})


def _remove_others(folder: Path, written: Iterable[str]) -> None:
    """Weights of an earlier model, which a reader would take for ours."""
    for path in [*folder.glob("model*.safetensors"), folder / INDEX]:
        if path.name not in written:
            path.unlink(missing_ok=True)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    text = json.dumps(value, indent=2) + "\n"
    _atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a file beside `path`, sync it and give it the name: whole, or not there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # safetensors leaves its files to their owner alone
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
