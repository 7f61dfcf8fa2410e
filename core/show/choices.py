"""How a run computes: what was decided at its start, is stored in run.json and its checkpoints and kept when it goes
on."""

from __future__ import annotations

from pathlib import Path

from luthier.core.artifacts import read_json

__all__ = ["show_choices"]


def show_choices(folder: Path) -> None:
    """Print the choices of the newest checkpoint, or, of a run that is done and has none, of run.json."""
    from luthier.core.training.checkpoint import CHOICES, STATE, newest

    run, found = read_json(folder / "run.json"), newest(folder)
    state = read_json(found / STATE) if found is not None and (found / STATE).is_file() else {}
    known = run | run.get("choices", {}) | state
    made = {name: known[name] for name in CHOICES if name in known}
    made.pop("micro_batch", None)
    where = f"step {state['step']:,}, kept by {found.name}" if state and found is not None else "kept in run.json"
    print(f"\ncomputed with ({where}):")
    for name, value in made.items():
        print(f"  {name:<12} {value}")
