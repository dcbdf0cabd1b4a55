"""The training loop, for fine-tuning, compression and ablation alike; alone or under ``torchrun``.

What differs between them is the module that learns and the loss of a step: both are handed in. Under
``torchrun`` each rank takes the batches whose number leaves its rank as remainder, and gradients are
averaged over the ranks.
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from emoinv_edge.files import write_atomically
from emoinv_edge.spec import EncoderSpec

from .batch_norm import folded
from .distributed import average_over_ranks, copy_from_first_rank, rank, world_size
from .model import AnyNet, save_checkpoint
from .muon import MuonAdamW
from .progress import Report, silent
from .schedule import Schedule

__all__ = ["Batches", "Judge", "State", "run"]

CLIP_NORM = 1.0
EMA_DECAY = 0.998
LOG_EVERY = 20

Judge = Callable[[Any], dict[str, float]]  # of an encoder


def run(
    out: Path,
    schedule: Schedule,
    state: State[AnyNet],
    step: Callable[[int], dict[str, Tensor]],
    judge: Judge | None = None,
    progress: Report = silent,
) -> AnyNet:
    """Train to the end of the schedule, from where an earlier call stopped.

    Parameters
    ----------
    out : Path
        Folder for ``last.pt`` (if it is there, the run goes on from it, to the losses of a run that never
        stopped), ``best.pt`` (averaged weights) and ``log.csv``. Rank 0 alone writes.
    state : State
        What learns; changed in place.
    step : callable
        Number of a step, from 0, to its losses by name; ``loss`` is the one to be lowered.
    judge : callable, optional
        Figures of the averaged encoder for the log, every ``schedule.judge_every`` steps and at the end.
    progress : callable
        Called with (steps done, steps).

    Returns
    -------
    SpeakerNet
        The exponential moving average of the weights, ready to embed.
    """
    out.mkdir(parents=True, exist_ok=True)
    peaks = [group["lr"] for group in state.optimizer.param_groups]
    saved_at = time.monotonic()
    for number in range(state.resume(out), schedule.steps):
        for group, peak in zip(state.optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * schedule.factor(number)
        losses = step(number)
        state.learn(losses["loss"], number)
        if rank() != 0:
            continue
        done, finished = number + 1, number + 1 == schedule.steps
        progress(done, schedule.steps)
        judged = judge(state.averaged()) if judge and schedule.judges(done) else None
        if judged is not None or finished or done % LOG_EVERY == 0:
            _log(out / "log.csv", done, {name: float(loss.detach()) for name, loss in losses.items()} | (judged or {}))
        if finished or time.monotonic() - saved_at > schedule.checkpoint_every_s:
            state.save(out, done, schedule)
            saved_at = time.monotonic()
    return state.averaged()


class State(Generic[AnyNet]):
    """What a run changes and keeps: a module, its optimiser, and the moving average of the encoder in it.

    Parameters
    ----------
    module : nn.Module
        Everything that learns; rank 0's weights are copied to the other ranks.
    optimizer : torch.optim.Optimizer or MuonAdamW
        Its groups' rates are the peaks of the schedule.
    encoder : SpeakerNet
        `module`, or the part of it whose weights are averaged; with batch norms or without.
    about
        What ``best.pt`` holds beside the weights and the spec.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | MuonAdamW,
        encoder: AnyNet,
        spec: EncoderSpec,
        **about: Any,
    ) -> None:
        self.module, self.optimizer, self.encoder, self.spec, self.about = module, optimizer, encoder, spec, about
        copy_from_first_rank(module.state_dict().values())
        self.average = {name: value.detach().clone() for name, value in encoder.state_dict().items()}

    def learn(self, loss: Tensor, step: int) -> None:
        """One step down the gradient; a batch whose gradient is not finite is passed over."""
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        statistics = [buffer for name, buffer in self.module.named_buffers() if "running_" in name]
        average_over_ranks([p.grad for p in self.module.parameters() if p.grad is not None] + statistics)
        if torch.isfinite(nn.utils.clip_grad_norm_(self.module.parameters(), CLIP_NORM)):
            self.optimizer.step()
        decay = min(EMA_DECAY, (1 + step) / (10 + step))  # faster at first
        with torch.no_grad():
            for name, value in self.encoder.state_dict().items():
                if value.is_floating_point():
                    self.average[name].lerp_(value, 1 - decay)

    def averaged(self) -> AnyNet:
        """A plain encoder with the averaged weights, batch norms folded in."""
        encoder = copy.deepcopy(self.encoder)
        encoder.load_state_dict(self.average)
        return folded(encoder)

    def save(self, folder: Path, step: int, schedule: Schedule) -> None:
        """Write ``last.pt`` and ``best.pt``, each atomically."""
        content = io.BytesIO()
        module, optimizer = self.module.state_dict(), self.optimizer.state_dict()
        torch.save({"module": module, "optimizer": optimizer, "average": self.average, "step": step}, content)
        write_atomically(folder / "last.pt", content.getvalue(), 0o666)
        save_checkpoint(
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
        last = folder / "last.pt"
        if not last.is_file():
            return 0
        saved = torch.load(last, map_location=next(self.module.parameters()).device, weights_only=True)
        if missing := {"module", "optimizer", "average", "step"} - saved.keys():
            raise ValueError(f"{last}: no run to go on with, {sorted(missing)} missing; give another folder")
        self.module.load_state_dict(saved["module"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.average = saved["average"]
        return int(saved["step"])


class Batches:
    """Step -> this rank's batch, on `device`; made by `num_workers` processes ahead of the steps that follow."""

    def __init__(self, batches: Dataset[dict[str, Tensor]], steps: int, num_workers: int, device: str = "cpu") -> None:
        self._batches, self._steps, self._num_workers, self._device = batches, steps, num_workers, device
        self._ahead: Iterator[dict[str, Tensor]] = iter(())
        self._next = -1

    def __call__(self, step: int) -> dict[str, Tensor]:
        if step != self._next:
            self._ahead = iter(self._from(step))
        self._next = step + 1
        return {name: values.to(self._device) for name, values in next(self._ahead).items()}

    def _from(self, step: int) -> DataLoader[dict[str, Tensor]]:
        ranks, workers = world_size(), self._num_workers
        mine = Subset(self._batches, range(step * ranks + rank(), self._steps * ranks, ranks))
        return DataLoader(mine, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None)


def _log(path: Path, step: int, figures: dict[str, float]) -> None:
    """Append one row a figure: step, name, value; rows are never rewritten."""
    new = not path.is_file()
    with open(path, "a", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        if new:
            rows.writerow(("step", "figure", "value"))
        rows.writerows((step, name, f"{value:.6g}") for name, value in figures.items())
