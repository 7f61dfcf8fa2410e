"""From what a user names, a project, a model or an index, to an assistant that answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.artifacts import read_manifest
from luthier.core.assistant.assistant import Assistant, AssistantConfig
from luthier.core.errors import ArtifactError, InputError

__all__ = ["Opened", "open_assistant"]


@dataclass(frozen=True)
class Opened:
    """An assistant and what to call it."""

    assistant: Assistant
    name: str


def open_assistant(path: Path, index: Path | None = None, config: AssistantConfig | None = None) -> Opened:
    """Open the assistant of a project folder (its settings, build/tuned and build/index), a model folder, or an index.

    `index` is looked up beside a model, or instead of a project's own; `config` wins over a project's [assistant].
    Raises InputError if `path` is none of them, or if the project has nothing built yet.
    """
    path = Path(path)
    if (path / "luthier.toml").is_file():
        return _of_project(path, index, config)
    if _is_model(path):
        return Opened(Assistant(path, _checked(index), config), _name(path))
    try:
        return Opened(Assistant(None, _checked(path), config), _name(path))
    except ArtifactError as error:
        raise InputError(
            f"{path} is no project (luthier.toml), no model (config.json) and no index (index.sqlite)\n"
            "Name one of them: luthier chat PROJECT, or luthier chat MODEL --index INDEX"
        ) from error


def _of_project(path: Path, index: Path | None, config: AssistantConfig | None) -> Opened:
    from luthier.core.project import load_project

    project = load_project(path)
    model: Path | None = project.built("tuned")
    index = index or project.built("index")
    model = model if _is_model(model) else None
    store = index if (index / "manifest.json").is_file() else None
    if model is None and store is None:
        raise InputError(f"{path} has neither build/tuned nor build/index yet\nMake them: luthier run {path}")
    settings: Any = project.settings["assistant"]
    return Opened(Assistant(model, store, config or settings), project.config.name or _name(path))


def _is_model(folder: Path) -> bool:
    """Whether a folder holds a whole model, or an adapter that names its base."""
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def _checked(index: Path | None) -> Path | None:
    if index is not None:
        read_manifest(index, "index")
    return index


def _name(path: Path) -> str:
    return path.resolve().name or "assistant"
