"""Checkpoints: everything that a killed run needs to go on as if nothing had happened.

    step-00001000/
        model.safetensors        the trained weights, in the precision they are trained in
        optimizer.safetensors    running means of every weight, `OPTIMIZER.WEIGHT.NAME`; torch's random state
        state.json               step, position in the data, length of metrics.jsonl …; and how it was computed:
                                 threads, compiling, kernels, number of processes, versions

The data order and the learning rate are functions of the step (batches.py, schedules.py) and are not stored. Sums of
floating-point numbers depend on how threads share the work and on which kernel adds them: what was chosen at the start
is part of the state, is used again on resume, and is not changed in silence.

**Beside the loop.** `save` copies the tensors, which takes as long as reading them once, and a thread writes the copy
while the loop goes on. It writes under another name, forces the bytes to disk, renames, and only then deletes the one
before. At every moment there is at least one whole checkpoint, a disk that fills up included.

**Several processes** write together through PyTorch's distributed checkpoint (`torch.distributed.checkpoint`), each its
own shards; any number of processes, one included, can read them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.core.artifacts import read_json, write_json
from luthier.core.console import say
from luthier.core.errors import TrainingError

__all__ = [
    "Checkpoints",
    "ComputedOtherwise",
    "agree",
    "at_step",
    "interrupts",
    "load_checkpoint",
    "newest",
    "read_tensors",
    "recover",
]

PATTERN = "step-*"
STATE = "state.json"
WRITING, DELETED = ".step.writing", ".step.deleted"
# What a checkpoint says about how it was computed, in words and with the setting that changes it.
CHOICES = {
    "threads": "--threads",
    "compile": "--compile",
    "kernels": "the machine's kernels",
    "processes": "the number of processes",
    "micro_batch": "--micro-batch",
    "torch": "the version of PyTorch",
    "luthier": "the version of luthier",
}


class ComputedOtherwise(TrainingError):
    """Going on from here would give other bits; `what` was otherwise then."""

    def __init__(self, message: str, what: str) -> None:
        super().__init__(message)
        self.what = what


def newest(folder: Path) -> Path | None:
    """The checkpoint with the most steps in `folder`."""
    return max(folder.glob(PATTERN), default=None)


def at_step(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:08d}"


def recover(folder: Path) -> None:
    """A step that is written once more is without its name for a moment; what was killed then gets it back."""
    unfinished = folder / WRITING
    if newest(folder) is None and (unfinished / STATE).is_file():  # the file that is written last
        unfinished.rename(at_step(folder, read_json(unfinished / STATE)["step"]))


@contextlib.contextmanager
def interrupts(processes: int = 1) -> Iterator[Callable[[], bool]]:
    """A function that tells whether Ctrl-C or SIGTERM has come: a step that is being made is ended and kept. The second
    one acts as always; but to several processes torchrun sends another of its own."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # where Python takes no signals
        yield lambda: False
        return

    def note(number: int, _: Any) -> None:
        if not came:
            say(f"stopping after this step and its checkpoint{'' if processes > 1 else '; once more stops at once'}")
        came.append(number)
        if processes == 1:
            put_back()

    heard = [
        n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN
    ]  # others: with nohup, &
    before = {number: signal.signal(number, note) for number in heard}

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        yield lambda: bool(came)
    finally:
        put_back()


class Checkpoints:
    """Writes the checkpoints of one run, one at a time, beside the loop. Use it as a context: leaving it waits.

    `main` is true in the one process that renames and deletes; `group` is the process group that writes together, and
    None where there is one process only.
    """

    def __init__(self, folder: Path, *, main: bool = True, group: Any = None) -> None:
        self.folder, self.main, self.group = Path(folder), main, group
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None
        self._step = 0

    @property
    def busy(self) -> bool:
        """Whether the last one is still being written."""
        return self._thread is not None and self._thread.is_alive()

    def save(
        self,
        step: int,
        model: torch.nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        facts: dict[str, Any],
        keep: Collection[int] = (),
    ) -> None:
        """Copy the state and begin to write it as `step-…`; then only this one and those of the steps `keep` stay.

        TrainingError if the one before could not be written.
        """
        self.wait()
        whole = {**_prefixed("weights", trained_weights(model)), **_prefixed("optimizer", optimizer_means(optimizers))}
        whole |= _prefixed("random", _random_state())
        copy = {name: value.detach().to("cpu", copy=True) for name, value in whole.items()}
        self._step = step
        self._thread = threading.Thread(target=self._write, args=(step, copy, {"step": step, **facts}, set(keep)))
        self._thread.start()

    def wait(self) -> None:
        """Until the last one is on disk, under its name, for all processes; none deletes what another still reads.

        TrainingError if it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self.group is not None:
            import torch.distributed as dist

            dist.barrier(self.group)
        if self._error is not None:
            error, self._error = self._error, None
            last = newest(self.folder)
            raise TrainingError(
                f"the checkpoint of step {self._step} could not be written: {error.strerror}\n"
                f"{f'{last.name} is whole; ' if last else ''}make room on the disk of {self.folder.parent} and start "
                "the same command again"
            ) from error

    def drop(self, after: int) -> None:
        """Delete the checkpoints of later steps than `after`: a run that was rolled back does not go on from them."""
        self.wait()
        if self.main:
            for path in sorted(self.folder.glob(PATTERN), reverse=True):
                if path > at_step(self.folder, after):
                    self._delete(path)

    def remove(self, keep: Collection[int] = ()) -> None:
        """Delete all but those of the steps `keep`: the run has ended."""
        self.wait()
        if self.main:
            self._prune(set(keep))

    def _write(self, step: int, tensors: dict[str, Tensor], facts: dict[str, Any], keep: set[int]) -> None:
        """In the thread: all files under another name, then the rename, then the pruning."""
        unfinished = self.folder / WRITING
        try:
            if self.main:
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
            if self.group is None:
                _save(_under("weights", tensors), unfinished / "model.safetensors")
                _save(tensors_of_optimizer(tensors), unfinished / "optimizer.safetensors")
            else:
                _save_together(tensors, unfinished, self.group)
            if self.main:
                write_json(unfinished / STATE, facts)
                place = at_step(self.folder, step)
                self._delete(place)
                unfinished.rename(place)
                self._prune(keep | {step})
        except OSError as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            self._error = error
        except Exception as error:  # safetensors and DCP wrap what the operating system says in errors of their own
            shutil.rmtree(unfinished, ignore_errors=True)
            self._error = OSError(0, str(error).splitlines()[0])

    def _prune(self, keep: set[int]) -> None:
        kept = {at_step(self.folder, step) for step in keep}
        for path in (*sorted(self.folder.glob(PATTERN)), self.folder / WRITING, self.folder / DELETED):
            if path not in kept:
                self._delete(path)

    def _delete(self, path: Path) -> None:
        """Under another name first: a kill half-way must not leave half a checkpoint that looks like one."""
        gone = self.folder / DELETED
        shutil.rmtree(gone, ignore_errors=True)
        if path.is_dir():
            path.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if kind is None:
            self.wait()
        elif self._thread is not None:
            self._thread.join()  # an interrupted run still finishes the checkpoint it began


def agree(state: dict[str, Any], now: dict[str, Any], forced: Collection[str], where: Path, inexact: bool) -> None:
    """Whether a run that computes as `now` says may go on from a checkpoint. ComputedOtherwise if the result would be
    another.

    `forced` are the choices that somebody asked for; the others follow the checkpoint where they can.
    """
    if "luthier" not in state:  # of a processor it knew no more than "torch"
        state = {**state, "luthier": "an earlier one", "kernels": now.get("kernels")}
    fixed = {*forced, "kernels", "processes", "torch", "luthier"}
    differ = [key for key in CHOICES if key in fixed and key in state and state[key] != now.get(key)]
    if differ and not inexact:
        what = "; ".join(f"{CHOICES[key]}: {state[key]} then, {now.get(key)} now" for key in differ)
        raise ComputedOtherwise(
            f"{where} was computed otherwise ({what}): going on would not give the same bits\n"
            "Set it as it was, or go on with --allow-inexact, equal up to rounding; without the folder it starts anew.",
            what,
        )


# ---------------------------------------------------------------- reading


def load_checkpoint(place: Path, model: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Any]:
    """Put a checkpoint into model, optimizers and torch's random state; returns its state.json."""
    state = read_json(place / STATE)
    if (place / "model.safetensors").is_file():
        weights, means = (read_tensors(place / name) for name in ("model.safetensors", "optimizer.safetensors"))
    else:
        weights, means = _load_together(place, model, optimizers)
    known = trained_weights(model)
    if weights.keys() != known.keys():
        name = min(weights.keys() ^ known.keys())
        raise TrainingError(f"{place} belongs to another model: {name} is in one of them only")
    with torch.no_grad():
        for name, p in known.items():
            p.copy_(weights[name])
    for number, optimizer in enumerate(optimizers):
        whole = optimizer.state_dict()
        whole["state"] = {}
        for key, value in means.items():
            of, weight, name = key.split(".") if not key.startswith("random.") else ("-1", "0", "")
            if int(of) == number:
                whole["state"].setdefault(int(weight), {})[name] = value
        optimizer.load_state_dict(whole)
    if "random.cpu" in means:
        torch.set_rng_state(means["random.cpu"])
    return state


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint's file. TrainingError if it is damaged: a kill leaves none that is."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, FileNotFoundError) as error:
        raise TrainingError(
            f"{file} is damaged or gone: {error}\nPut it back from a copy, or delete {file.parent}: the same command "
            "then goes on from the checkpoint before, or anew."
        ) from error


def trained_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters that are trained, by name, each once: tied weights are one parameter, frozen ones are the base's."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def optimizer_means(optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """What the optimizers keep of each weight, as `OPTIMIZER.WEIGHT.NAME`."""
    return {
        f"{number}.{weight}.{name}": value
        for number, optimizer in enumerate(optimizers)
        for weight, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def _random_state() -> dict[str, Tensor]:
    return {"cpu": torch.get_rng_state()}


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}


def tensors_of_optimizer(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What goes into optimizer.safetensors."""
    return {**_under("optimizer", tensors), **{k: v for k, v in tensors.items() if k.startswith("random.")}}


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


# ---------------------------------------------------------------- several processes


def _save_together(tensors: dict[str, Tensor], place: Path, group: Any) -> None:
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp

    dist.barrier(group)  # the folder is there
    dcp.save(tensors, checkpoint_id=place, process_group=group)  # pyright: ignore[reportPrivateImportUsage]
    dist.barrier(group)  # all have written


def _load_together(
    place: Path, model: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and running means in the shape this run has them in, whatever number of processes wrote them."""
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp

    alone = not (dist.is_available() and dist.is_initialized())
    reader: Any = dcp.FileSystemReader(place)  # pyright: ignore[reportPrivateImportUsage]
    stored = reader.read_metadata().state_dict_metadata
    target = {f"weights.{name}": torch.empty_like(p) for name, p in trained_weights(model).items()}
    weights = [[p for group in optimizer.param_groups for p in group["params"]] for optimizer in optimizers]
    for key, about in stored.items():
        if key.startswith("optimizer."):
            _, of, weight, _name = key.split(".")
            like = weights[int(of)][int(weight)]
            kind = about.properties.dtype
            same = like.shape == about.size
            target[key] = torch.zeros_like(like, dtype=kind) if same else torch.zeros(about.size, dtype=kind)
        elif key.startswith("random."):
            target[key] = torch.zeros(about.size, dtype=about.properties.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # alone, as was asked for
        dcp.load(target, checkpoint_id=place, no_dist=alone)  # pyright: ignore[reportPrivateImportUsage]
    return _under("weights", target), tensors_of_optimizer(target)
