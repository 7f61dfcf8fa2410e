"""Model folders in Hugging Face's layout, in and out.

    config.json                   the decoder's numbers; which family it is
    model.safetensors             the weights, or, past 5 GB, model-00001-of-0000N.safetensors and
    model.safetensors.index.json  which tensor is in which file
    generation_config.json        the tokens that end an answer

A folder written here opens in `transformers` with the same logits, and the other way round; names of keys and tensors
are in layouts.py. `hub:owner/name` instead of a folder downloads one from the Hugging Face hub, if huggingface_hub is
installed; nothing else here uses the network.

Reading is all or nothing: names and shapes of every tensor are compared with what config.json asks for before the first
number is read, and numbers that are not finite are refused. New files are written and synced in a folder of their own,
`.saving`, and only then take their places, config.json last: a process that is killed while it writes leaves what was
there as it was, and a folder that can be read is whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
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

__all__ = ["ARCHITECTURES", "CheckpointError", "check_weights", "hub_folder", "load_config", "load_model"]
__all__ += ["open_weights", "save_model", "whole", "write_json"]

MOST_BYTES_A_FILE = 5 * 10**9  # where Hugging Face's own writer begins another file
HUB = "hub:"
# What is read of it: no second copy of the weights (Mistral's consolidated.safetensors), nothing in folders
HUB_FILES = ["*.json", "*.safetensors", "*.model", "merges.txt", "vocab.bpe", "chat_template.jinja"]
HUB_OTHERS = ["consolidated*", "*/*"]
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SAVING = ".saving"
POINTER = b"version https://git-lfs"  # how a file begins that Git LFS has not fetched
APART = f"; {CONFIG} and weights are not of one model, or not all of it: copy both again from where they come from"


class CheckpointError(ValueError):
    """A model folder cannot be read: which file or tensor, what was found, what was expected."""


# ---------------------------------------------------------------- config.json


def hub_folder(folder: Path | str) -> Path:
    """The folder itself; for `hub:owner/name` the folder that the hub's files were downloaded to, once. Raises
    CheckpointError for a checkpoint that a run keeps to go on from: its tensors are named otherwise."""
    name = str(folder)
    if (Path(folder) / "state.json").is_file():
        raise CheckpointError(
            f"{folder} is a checkpoint of a run\nMake a model folder of it: luthier export {folder} --out model"
        )
    if not name.startswith(HUB):
        return Path(folder)
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(f"{name}: downloading needs huggingface_hub: pip install huggingface_hub") from error
    try:
        found = snapshot_download(name.removeprefix(HUB), allow_patterns=HUB_FILES, ignore_patterns=HUB_OTHERS)
        return Path(found)
    except Exception as error:
        raise CheckpointError(f"{name} could not be downloaded: {type(error).__name__}: {error}") from error


def load_config(folder: Path | str) -> ModelConfig:
    """The decoder's numbers from a folder's config.json. Raises CheckpointError for what this decoder cannot be."""
    path = hub_folder(folder) / CONFIG
    raw = _read_json(path, f"{folder} is not a model folder: {_lacking(path.parent)}")
    name = _architecture(raw)
    if name not in ARCHITECTURES:
        raise CheckpointError(f"{path}: architecture {name} is not supported; those are {', '.join(ARCHITECTURES)}")
    try:
        return config_from_json(raw, ARCHITECTURES[name])
    except KeyError as error:
        raise CheckpointError(f"{path} has no {error}, which {name} needs") from error
    except (ModelConfigError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _lacking(folder: Path) -> str:
    """What a folder without config.json lacks. A name such as owner/name may be meant for the hub."""
    if folder.exists():
        return f"it has no {CONFIG}, which says what model its weights are of; copy it there from where they come from"
    owned = not folder.is_absolute() and len(folder.parts) == 2 and ".." not in folder.parts
    return "there is none of that name" + (f"; {HUB}{folder} would be one to download" if owned else "")


def _architecture(raw: dict[str, Any]) -> str:
    """The first that is named; where none is, the model_type's, by which transformers goes."""
    named = raw.get("architectures")
    if isinstance(named, list) and named:
        return str(named[0])
    of_type = {family: name for name, family in ARCHITECTURES.items()}
    return of_type.get(str(raw.get("model_type")), f"(none is named, model_type is {raw.get('model_type')!r})")


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
        where = _compared(folder, model, stack)
        for name in where:
            state |= to_ours(name, _finite(*where[name], dtype), family)
    head = state.pop("lm_head.weight", None) if config.tie_word_embeddings else None
    if head is not None and not torch.equal(head, state["embed_tokens.weight"]):
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
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
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
        for name, file in named.items():
            if not isinstance(file, str) or Path(file).name != file:
                raise CheckpointError(f"{folder / INDEX}: {name} is in {file!r}, expected the name of a file beside it")
        files = [folder / name for name in sorted(set(named.values()))]
        for file in files:
            if not file.is_file():
                first = min(name for name, f in named.items() if f == file.name)
                raise CheckpointError(f"{file} is missing; {INDEX} expects {first} and more in it. Copy it again.")
        return files
    hint = f": copy them there from where {CONFIG} comes from"
    if pickled := sorted(f.name for f in folder.glob("pytorch_model*.bin")):
        hint = f"; {pickled[0]} is a pickle, which may run code: convert it to safetensors first"
    elif shards := sorted(f.name for f in folder.glob("model-*.safetensors")):
        hint = f", which says what is in {shards[0]} and the others: copy it there"
    raise CheckpointError(f"{folder} has neither {WEIGHTS} nor {INDEX}{hint}")


def open_weights(path: Path) -> Any:
    """A safetensors file, opened. Raises CheckpointError for one that is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise CheckpointError(f"{path} points to weights that Git LFS did not fetch: run `git lfs pull` there")
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size:,} bytes) is damaged or cut short: {error}. Copy it again."
        ) from error


Stored = tuple[Path, Any, str]  # the file a tensor is in, that file opened, the tensor's name in it


def _compared(folder: Path, model: Transformer, stack: contextlib.ExitStack) -> dict[str, Stored]:
    """Where each of a model's tensors is, by its name in Hugging Face's spelling; files are open while `stack` is. A
    tied head that is written out is one of them."""
    config, family = model.config, model.config.model_type
    expected = {name: t.shape for name, t in to_theirs(dict(model.named_parameters()), family).items()}
    where: dict[str, Stored] = {}
    for path in _weight_files(folder):
        file = stack.enter_context(open_weights(path))
        for stored in file.keys():  # noqa: SIM118
            name = full_name(stored, family)
            if name in where:
                raise CheckpointError(f"tensor {name} is in {where[name][0]} and again in {path}; one of them is bad")
            where[name] = (path, file, stored)
    if config.tie_word_embeddings and "lm_head.weight" in where:
        expected["lm_head.weight"] = model.embed_tokens.weight.shape
    _compare(folder, expected, where, family)
    return {name: where[name] for name in expected}


def _compare(folder: Path, expected: dict[str, torch.Size], where: dict[str, Stored], family: str) -> None:
    """Names and shapes that the files hold against those that config.json asks for."""
    for name, shape in expected.items():
        if name not in where:
            hint = "; if the head is the embedding, set tie_word_embeddings to true there"
            raise CheckpointError(
                f"{folder}: tensor {name} is missing; {CONFIG} asks for it with shape {list(shape)}"
                f"{hint if name == 'lm_head.weight' else APART}"
            )
        path, file, stored = where[name]
        found = file.get_slice(stored).get_shape()
        if list(found) != list(shape):
            raise CheckpointError(
                f"{path}: tensor {name} has shape {list(found)}, {CONFIG} asks for {list(shape)}{APART}"
            )
        if (kind := file.get_slice(stored).get_dtype()) not in ("F64", "F32", "F16", "BF16"):
            raise CheckpointError(f"{path}: tensor {name} is of type {kind}, expected F32, F16, BF16 or F64")
    for name in where:
        if name not in expected and not harmless(name, family):
            raise CheckpointError(
                f"{where[name][0]}: tensor {name} has no place in the model that {CONFIG} describes{APART}"
            )


def _finite(path: Path, file: Any, name: str, dtype: torch.dtype) -> Tensor:
    """A file's tensor in `dtype`, if every number in it is one there; the sum is not finite if any term is not."""
    stored = file.get_tensor(name)
    weight = stored.to(dtype)
    if not torch.isfinite(weight.sum(dtype=torch.float64)):
        if wrong := int((~torch.isfinite(stored)).sum()):
            raise CheckpointError(
                f"{path}: tensor {name} holds {wrong:,} numbers that are NaN or infinite; the file is bad"
            )
        if wrong := int((~torch.isfinite(weight)).sum()):
            kind = str(dtype).removeprefix("torch.")
            raise CheckpointError(f"{path}: tensor {name} holds {wrong:,} numbers that are too large for {kind}")
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
    replaced, at the end. Raises CheckpointError if a weight is not finite; nothing is written then.
    """
    folder = Path(folder)
    ours = {name: weight.detach().cpu().contiguous() for name, weight in model.named_parameters()}
    weights = to_theirs(ours, model.config.model_type)
    for name, weight in weights.items():
        if not torch.isfinite(weight.sum(dtype=torch.float64)):
            raise CheckpointError(f"tensor {name} holds numbers that are NaN or infinite; {folder} was not written")
    eos = eos_token_id if eos_token_id is None or isinstance(eos_token_id, int) else [int(i) for i in eos_token_id]
    tokens = {"bos_token_id": bos_token_id, "eos_token_id": eos, "pad_token_id": pad_token_id}
    dtype = model.embed_tokens.weight.dtype
    with whole(folder, CONFIG, replaces=("model*.safetensors", INDEX)) as place:
        _write_weights(weights, place, most_bytes_a_file)
        given = {name: value for name, value in tokens.items() if value is not None}
        write_json(place / "generation_config.json", {"do_sample": False, **given})
        write_json(place / CONFIG, config_to_json(model.config, dtype, tokens))


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
        save_file(part, folder / file, metadata={"format": "pt"})
    if n > 1:
        index = {name: file for file, part in zip(names, parts, strict=True) for name in part}
        total = sum(weight.nbytes for weight in weights.values())
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": index})


def write_json(path: Path, value: dict[str, Any]) -> None:
    """A file as people read it."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def whole(folder: Path, last: str, *, replaces: Sequence[str] = ()) -> Iterator[Path]:
    """A folder for new files. When the block ends without an error they are synced and take their places in `folder`;
    others there that are named like `replaces` go, for a reader would take them for ours.

    `last`, without which the folder is none, goes first and comes last: what can be read is all old or all new.
    """
    place = folder / SAVING
    if place.exists():  # of a process that was killed
        shutil.rmtree(place)
    place.mkdir(parents=True)
    try:
        yield place
        names = [path.name for path in place.iterdir() if path.name != last] + [last]
        mode = (place / last).stat().st_mode
        for name in names:
            (place / name).chmod(mode)  # safetensors leaves its files to their owner alone
            with (place / name).open("rb+") as file:
                os.fsync(file.fileno())
        (folder / last).unlink(missing_ok=True)
        for path in (path for pattern in replaces for path in folder.glob(pattern)):
            if path.name not in names:
                path.unlink()
        for name in names:
            (place / name).replace(folder / name)
    finally:
        shutil.rmtree(place)
