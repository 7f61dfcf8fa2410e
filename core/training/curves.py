"""The curve for others: TensorBoard's event files and Weights & Biases, where they are asked for.

metrics.jsonl is always written and is what luthier itself reads. These two get the same rows. Both hold rows back for
a while before they write them, so that a killed run loses some there; a run that goes on hands them over once more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.core.artifacts import read_json, read_jsonl
from luthier.core.errors import ConfigError
from luthier.core.training.loop_config import LoopConfig

__all__ = ["METRICS", "Curves", "check_curves"]

METRICS = "metrics.jsonl"


def check_curves(config: LoopConfig) -> None:
    """ConfigError, before anything is made, if a package that is asked for is not installed."""
    if config.tensorboard and not _there("tensorboard"):
        raise ConfigError("tensorboard is not installed: pip install tensorboard, or leave out --tensorboard")
    if config.wandb and not _there("wandb"):
        raise ConfigError("wandb is not installed: pip install wandb, or leave out --wandb")


def _there(package: str) -> bool:
    from importlib.util import find_spec

    try:
        return find_spec(package) is not None
    except ValueError:  # hidden by a None in sys.modules
        return False


class Curves:
    """Hands every row of metrics.jsonl on but those on rollbacks. `start` is the step that a resumed run goes on from:
    the rows up to there are read from the folder's metrics.jsonl and stand for what was there before."""

    def __init__(self, config: LoopConfig, folder: Path, start: int = 0) -> None:
        self.board: Any = None
        self.run: Any = None
        check_curves(config)
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(folder / "tensorboard", purge_step=0)
        if config.wandb:
            import wandb  # pyright: ignore[reportMissingImports]

            about = folder / "run.json"
            self.run = wandb.init(
                project=config.wandb,
                id=read_json(about).get("id") if about.is_file() else None,  # a run that goes on is the same one there
                name=folder.name.removeprefix(".").removesuffix(".building"),
                dir=folder.parent,
                resume="allow",
            )
        if start and (self.board is not None or self.run is not None):
            known = self.run.step if self.run is not None else 0  # W&B takes no step twice; offline it knows of none
            for row in read_jsonl(folder / METRICS):
                if "rolled_back_from" in row:  # no point of a curve
                    continue
                self._to_board(row)
                if row["step"] >= known:
                    self._to_run(row)

    def write(self, row: dict[str, Any]) -> None:
        """Hand one row on."""
        self._to_board(row)
        self._to_run(row)

    def _to_board(self, row: dict[str, Any]) -> None:
        if self.board is not None:
            for name, value in _numbers(row).items():
                self.board.add_scalar(name, value, row["step"])

    def _to_run(self, row: dict[str, Any]) -> None:
        if self.run is not None:
            self.run.log(_numbers(row), step=row["step"])

    def __enter__(self) -> Curves:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.board is not None:
            self.board.close()
        if self.run is not None:
            self.run.finish()


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {k: v for k, v in row.items() if k != "step" and isinstance(v, int | float)}
