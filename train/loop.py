"""The training loop, for pretraining, fine-tuning, compression and ablation alike; alone or under ``torchrun``.

What differs between them is the module that learns, its batches and the losses of one: all are handed in. Under
``torchrun`` each rank takes the batches whose number leaves its rank as remainder, and torch's
DistributedDataParallel averages the gradients.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import dataclasses
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Subset

from emoinv_edge.files import write_atomically
from emoinv_edge.spec import EncoderSpec

from .batch_norm import folded
from .distributed import copy_from_first_rank, from_first_rank, rank, world_size
from .model import save_checkpoint
from .muon import MuonAdamW
from .progress import Progress, Report, silent
from .schedule import Schedule

__all__ = ["Batch", "Batches", "Judge", "Losses", "State", "run"]

EMA_DECAY = 0.998
LOG_EVERY = 20

Batch = dict[str, Tensor]
Judge = Callable[[Any], dict[str, float]]
Losses = Callable[[Batch, int], dict[str, Tensor]]
"""A batch and the number of the step, from 0, to the losses by name; ``loss`` is the one to be lowered."""


def run(
    out: Path,
    schedule: Schedule,
    state: State,
    batches: Callable[[int], Batch],
    losses: Losses,
    judge: Judge | None = None,
    progress: Report = silent,
) -> Any:
    """Train to the end of the schedule, from where an earlier call stopped.

    Parameters
    ----------
    out : Path
        Folder for ``last.pt`` (if it is there, the run goes on from it, to the losses of a run that never
        stopped), ``best.pt`` (averaged weights) and ``log.csv``. Rank 0 alone writes and reads it.
    state : State
        What learns; changed in place.
    batches : callable
        Number, from 0, to this rank's batch; a step takes ``schedule.accumulate`` of them. `Batches` is one.
    losses : callable
        Of a batch at a step, computed by the module of `state`.
    judge : callable, optional
        Figures of the averaged encoder for the log, every ``schedule.judge_every`` steps and at the end.
    progress : callable
        Called with (steps done, steps); a `Progress` learns, too, how fast crops are learned from.

    Returns
    -------
    ResidualEncoder, or what ``plain`` of the state gives
        The exponential moving average of the weights, ready to embed; of rank 0 on every rank.
    """
    if rank() == 0:
        out.mkdir(parents=True, exist_ok=True)
    peaks = [group["lr"] for group in state.optimizer.param_groups]
    begin = state.resume(out)
    learner, pace, saved_at = _Learner(state, losses, schedule), Pace(), time.monotonic()
    for number in range(begin, schedule.steps):
        for group, peak in zip(state.optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * schedule.factor(number)
        found = learner.step(number, pace.timed(batches))
        if rank() != 0:
            continue
        done, finished = number + 1, number + 1 == schedule.steps
        if isinstance(progress, Progress):
            progress(done, schedule.steps, str(pace))
        else:
            progress(done, schedule.steps)
        judged = judge(state.averaged()) if judge and schedule.judges(done) else None
        if judged is not None or finished or done % LOG_EVERY == 0:
            _log(out / "log.csv", done, {name: float(loss) for name, loss in found.items()} | (judged or {}))
        if finished or time.monotonic() - saved_at > schedule.checkpoint_every_s:
            state.save(out, done, schedule)
            saved_at = time.monotonic()
    copy_from_first_rank(state.average.values())
    return state.averaged()


class Pace:
    """How many crops a second all ranks learn from, and which share of the time this one waits for them."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._waited, self._crops = 0.0, 0

    def timed(self, batches: Callable[[int], Batch]) -> Callable[[int], Batch]:
        """The same batches; what they take counts as waiting."""

        def read(number: int) -> Batch:
            asked = time.monotonic()
            batch = batches(number)
            self._waited += time.monotonic() - asked
            self._crops += len(next(iter(batch.values()))) * world_size()
            return batch

        return read

    def __str__(self) -> str:
        seconds = max(time.monotonic() - self._begun, 1e-9)
        return f"{self._crops / seconds:.3g} crops/s, {self._waited / seconds:.0%} of the time waiting for data"


class _Learner:
    """Steps down the gradient: of the mean loss of some batches, on all ranks."""

    def __init__(self, state: State, losses: Losses, schedule: Schedule) -> None:
        self._state, self._accumulate, self._clip_norm = state, schedule.accumulate, schedule.clip_norm
        self._losses: nn.Module = _LossesOf(state.module, losses)
        if torch.distributed.is_initialized():
            self._losses = DistributedDataParallel(self._losses)

    def step(self, number: int, batches: Callable[[int], Batch]) -> dict[str, Tensor]:
        """Learn from the batches of a step; their mean losses, without a gradient."""
        accumulate = self._accumulate
        self._state.optimizer.zero_grad()
        of_batches = []
        for which in range(accumulate):
            batch = batches(number * accumulate + which)
            with self._apart(which + 1 < accumulate):
                losses = self._losses(batch, number)
                torch.autograd.backward(losses["loss"] / accumulate)
            of_batches.append({name: loss.detach() for name, loss in losses.items()})
        self._state.follow(number, self._clip_norm)
        return {name: torch.stack([each[name] for each in of_batches]).mean() for name in of_batches[0]}

    def _apart(self, apart: bool) -> contextlib.AbstractContextManager[Any]:
        """While gradients gather, the ranks need not exchange them."""
        if apart and isinstance(self._losses, DistributedDataParallel):
            return self._losses.no_sync()
        return contextlib.nullcontext()


class _LossesOf(nn.Module):
    """Losses as a module, which is what DistributedDataParallel takes."""

    def __init__(self, module: nn.Module, losses: Losses) -> None:
        super().__init__()
        self.module, self._losses = module, losses

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        return self._losses(batch, step)


class State:
    """What a run changes and keeps: a module, its optimiser, and the moving average of the encoder in it.

    Parameters
    ----------
    module : nn.Module
        Everything that learns.
    optimizer : torch.optim.Optimizer or MuonAdamW
        Its groups' rates are the peaks of the schedule.
    encoder : ResidualEncoder
        `module`, or the part of it whose weights are averaged; with batch norms or without.
    plain, save : callable
        What turns it into an encoder to embed with, and what writes that (path, encoder, spec, what else is known):
        for another architecture than the residual encoder's.
    about
        What ``best.pt`` holds beside the weights and the spec.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | MuonAdamW,
        encoder: Any,
        spec: EncoderSpec,
        plain: Callable[[Any], Any] = folded,
        save: Callable[..., None] = save_checkpoint,
        **about: Any,
    ) -> None:
        self.module, self.optimizer, self.encoder, self.spec, self.about = module, optimizer, encoder, spec, about
        self._plain, self._save = plain, save
        self.average = {name: value.detach().clone() for name, value in encoder.state_dict().items()}

    def follow(self, step: int, clip_norm: float) -> None:
        """Take the step of the gradients at hand, unless they are not finite, and move the average on."""
        if torch.isfinite(nn.utils.clip_grad_norm_(self.module.parameters(), clip_norm)):
            self.optimizer.step()
        decay = min(EMA_DECAY, (1 + step) / (10 + step))  # faster at first
        with torch.no_grad():
            for name, value in self.encoder.state_dict().items():
                if value.is_floating_point():
                    self.average[name].lerp_(value, 1 - decay)

    def averaged(self) -> Any:
        """A plain encoder with the averaged weights, batch norms folded in."""
        encoder = copy.deepcopy(self.encoder)
        encoder.load_state_dict(self.average)
        return self._plain(encoder)

    def save(self, folder: Path, step: int, schedule: Schedule) -> None:
        """Write ``last.pt`` and ``best.pt``, each atomically."""
        content = io.BytesIO()
        module, optimizer = self.module.state_dict(), self.optimizer.state_dict()
        torch.save({"module": module, "optimizer": optimizer, "average": self.average, "step": step}, content)
        write_atomically(folder / "last.pt", content.getvalue(), 0o666)
        self._save(
            folder / "best.pt", self.averaged(), self.spec, step=step, finished=step == schedule.steps,
            schedule=dataclasses.asdict(schedule), **self.about,
        )  # fmt: skip

    def resume(self, folder: Path) -> int:
        """Take up what `save` left, if anything; the number of the step to go on with.

        Raises
        ------
        ValueError
            If another version of training left it.
        """
        saved = from_first_rank(lambda: _read_last(folder / "last.pt"))
        if saved is not None:
            self.module.load_state_dict(saved["module"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.average = {name: value.to(self.average[name].device) for name, value in saved["average"].items()}
        copy_from_first_rank([*self.module.state_dict().values(), *self.average.values()])
        return int(saved["step"]) if saved is not None else 0


def _read_last(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if missing := {"module", "optimizer", "average", "step"} - saved.keys():
        raise ValueError(f"{path}: no run to go on with, {sorted(missing)} missing; give another folder")
    return saved


class Batches:
    """Number -> this rank's batch, on `device`; made by `num_workers` processes ahead of the ones that follow.

    Parameters
    ----------
    count : int
        Of a rank: as many as a run takes (``schedule.batches``).
    """

    def __init__(self, batches: Dataset[Batch], count: int, num_workers: int, device: str = "cpu") -> None:
        self._batches, self._count, self._num_workers, self._device = batches, count, num_workers, device
        self._ahead: Iterator[Batch] = iter(())
        self._next = -1

    def __call__(self, number: int) -> Batch:
        if number != self._next:
            self._ahead = iter(self._from(number))
        self._next = number + 1
        return {name: values.to(self._device) for name, values in next(self._ahead).items()}

    def _from(self, number: int) -> DataLoader[Batch]:
        ranks, workers = world_size(), self._num_workers
        mine = Subset(self._batches, range(number * ranks + rank(), self._count * ranks, ranks))
        return DataLoader(mine, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None)


def _log(path: Path, step: int, figures: dict[str, float]) -> None:
    """Append one row a figure: step, name, value; rows are never rewritten."""
    new = not path.is_file()
    with open(path, "a", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        if new:
            rows.writerow(("step", "figure", "value"))
        rows.writerows((step, name, f"{value:.6g}") for name, value in figures.items())
