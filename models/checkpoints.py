"""Model folders in Hugging Face's layout, in and out.

    config.json                   the decoder's numbers; which family it is
    model.safetensors             the weights, or, past 5 GB, model-00001-of-0000N.safetensors and
    model.safetensors.index.json  which tensor is in which file
    generation_config.json        the tokens that end an answer

A folder written here opens in `transformers` with the same logits, and the other way round; names of keys and tensors
are in layouts.py. `hub:owner/name` instead of a folder downloads one from the Hugging Face hub, if huggingface_hub is
installed; nothing else here uses the network.

Reading is all or nothing: names and shapes of every tensor are compared with what config.json asks for before the first
number is read, and numbers that are not finite are refused. Each file is written under another name, synced and
renamed, config.json last, so that a folder that can be read is whole.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.models.config import ModelConfig, ModelConfigError
from luthier.models.layouts import (
    ARCHITECTURES,
    config_from_json,
    config_to_json,
    full_name,
    harmless,
    to_ours,
    to_theirs,
)
from luthier.models.transformer import Transformer

__all__ = ["ARCHITECTURES", "CheckpointError", "check_weights", "hub_folder", "load_config", "load_model", "save_model"]

MOST_BYTES_A_FILE = 5 * 10**9  # where Hugging Face's own writer begins another file
HUB = "hub:"
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


class CheckpointError(ValueError):
    """A model folder cannot be read: which file or tensor, what was found, what was expected."""


# ---------------------------------------------------------------- config.json


def hub_folder(folder: Path | str) -> Path:
    """The folder itself; for `hub:owner/name` the folder that the hub's files were downloaded to, once."""
    name = str(folder)
    if not name.startswith(HUB):
        return Path(folder)
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(f"{name}: downloading needs huggingface_hub: pip install huggingface_hub") from error
    try:
        return Path(snapshot_download(name.removeprefix(HUB), allow_patterns=["*.json", "*.safetensors", "*.model"]))
    except Exception as error:
        raise CheckpointError(f"{name} could not be downloaded: {type(error).__name__}: {error}") from error


def load_config(folder: Path | str) -> ModelConfig:
    """The decoder's numbers from a folder's config.json. Raises CheckpointError for what this decoder cannot be."""
    path = hub_folder(folder) / CONFIG
    raw = _read_json(path, f"{folder} is not a model folder: it has no {CONFIG}")
    name = _architecture(raw)
    if name not in ARCHITECTURES:
        raise CheckpointError(f"{path}: architecture {name} is not supported; those are {', '.join(ARCHITECTURES)}")
    try:
        return config_from_json(raw, ARCHITECTURES[name])
    except KeyError as error:
        raise CheckpointError(f"{path} has no {error}, which {name} needs") from error
    except (ModelConfigError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _architecture(raw: dict[str, Any]) -> str:
    """The first that is named; where none is, the model_type's, by which transformers goes."""
    named = raw.get("architectures")
    if isinstance(named, list) and named:
        return str(named[0])
    of_type = {family: name for name, family in ARCHITECTURES.items()}
    return of_type.get(str(raw.get("model_type")), f"none named (model_type {raw.get('model_type')!r})")


# ---------------------------------------------------------------- reading


def load_model(folder: Path | str, *, dtype: torch.dtype | None = None) -> Transformer:
    """The model in `folder`, in evaluation mode, its weights in `dtype` (default float32, a CPU's fastest).

    Raises CheckpointError naming the file, the tensor, what was found and what was expected; nothing is half-loaded.
    """
    folder = hub_folder(folder)
    config, dtype = load_config(folder), dtype or torch.float32
    model, family = Transformer(config, device="meta"), config.model_type
    state: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack:
        expected, where = _compared(folder, model, stack)
        for name in expected:
            state |= to_ours(name, _finite(*where[name]).to(dtype), family)
        if config.tie_word_embeddings and "lm_head.weight" in where:
            head = where["lm_head.weight"][1].get_tensor("lm_head.weight").to(dtype)
            if not torch.equal(head, state["embed_tokens.weight"]):
                raise CheckpointError(
                    f"{where['lm_head.weight'][0]}: lm_head.weight differs from the embedding, but {CONFIG} says "
                    "tie_word_embeddings; set it to false there if the head is its own"
                )
    model.load_state_dict(state, assign=True)
    return model.eval()


def check_weights(folder: Path | str) -> None:
    """Compare names and shapes of a folder's tensors with its config.json, without reading numbers. Raises
    CheckpointError."""
    folder = hub_folder(folder)
    with contextlib.ExitStack() as stack:
        _compared(folder, Transformer(load_config(folder), device="meta"), stack)


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
    """The safetensors files of a folder: the one, which transformers takes too where there are both, or all of those
    that the index names, which must be there."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
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


def _compared(
    folder: Path, model: Transformer, stack: contextlib.ExitStack
) -> tuple[Collection[str], dict[str, tuple[Path, Any, str]]]:
    """The names of a model's tensors in Hugging Face's spelling, and where each is: files, open while `stack` is."""
    config = model.config
    expected = {name: t.shape for name, t in to_theirs(dict(model.named_parameters()), config.model_type).items()}
    where: dict[str, tuple[Path, Any, str]] = {}
    for path in _weight_files(folder):
        file = stack.enter_context(_open(path))
        where |= {full_name(name, config.model_type): (path, file, name) for name in file.keys()}  # noqa: SIM118
    _compare(folder, expected, where, config.model_type, tied=config.tie_word_embeddings)
    return expected, where


def _compare(
    folder: Path, expected: dict[str, torch.Size], where: dict[str, tuple[Path, Any, str]], family: str, *, tied: bool
) -> None:
    """Names and shapes that the files hold against those that config.json asks for."""
    for name, shape in expected.items():
        if name not in where:
            raise CheckpointError(f"{folder}: tensor {name} is missing; {CONFIG} asks for it with shape {list(shape)}")
        path, file, stored = where[name]
        found = file.get_slice(stored).get_shape()
        if list(found) != list(shape):
            raise CheckpointError(f"{path}: tensor {name} has shape {list(found)}, {CONFIG} asks for {list(shape)}")
        if (kind := file.get_slice(stored).get_dtype()) not in ("F64", "F32", "F16", "BF16"):
            raise CheckpointError(f"{path}: tensor {name} is of type {kind}, expected F32, F16, BF16 or F64")
    for name in where.keys() - expected.keys():
        if not harmless(name, family) and not (tied and name == "lm_head.weight"):  # the caller looks at a tied head
            raise CheckpointError(f"{where[name][0]}: tensor {name} has no place in the model that {CONFIG} describes")


def _finite(path: Path, file: Any, name: str) -> Tensor:
    """A file's tensor, if every number in it is one; the sum is not finite if any term is not."""
    weight = file.get_tensor(name)
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
    ours = {name: weight.detach().cpu().contiguous() for name, weight in model.named_parameters()}
    weights = to_theirs(ours, model.config.model_type)
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
    _write_json(folder / CONFIG, config_to_json(model.config, dtype, tokens))


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
