"""The training loop: fine-tuning on parallel pairs and distillation, one readable function each way.

Runs alone or under ``torchrun`` (DistributedDataParallel): each rank takes the batches whose number
leaves its rank as remainder, so the gradient of one step is the mean over the ranks' batches.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Subset

from emoinv_edge.spec import EncoderSpec

from .distributed import rank, world_size
from .embed import autocast
from .losses import AngularMarginSoftmax, contrast_loss, pair_loss, relation_loss, target_loss
from .model import ResidualEncoder, save_checkpoint
from .pairs import PairBatches, Recipe

__all__ = ["Schedule", "averaged", "fit", "follow", "load_share", "log_figures"]

WEIGHT_DECAY = 1e-4
CLIP_NORM = 1.0
EMA_DECAY = 0.998


@dataclasses.dataclass(frozen=True, slots=True)
class Schedule:
    """Steps and learning rates.

    ``rate`` is the peak for the last stage and the linear layer; each stage below learns at
    ``lower_rate`` times the one above; the first ``frozen_stages`` do not learn.
    """

    steps: int
    rate: float = 1.5e-4
    lower_rate: float = 0.6
    frozen_stages: int = 1
    warmup_steps: int = 100
    checkpoint_every_s: float = 240.0
    judge_every: int = 0

    def factor(self, step: int) -> float:
        """Share of the peak rate at `step`: linear warm-up, then a half cosine to 2 %."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


class Trained(nn.Module):
    """Encoder and classifier as one module, so that one DDP wrapper averages all gradients."""

    def __init__(self, encoder: ResidualEncoder, softmax: AngularMarginSoftmax, recipe: Recipe, frozen: int) -> None:
        super().__init__()
        self.encoder, self.softmax, self.recipe, self.frozen = encoder, softmax, recipe, frozen

    def embed(self, features: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.encoder.frames(features, self.frozen) if self.frozen else None
        if x is None:
            return self.encoder(features)
        for stage in list(self.encoder.stages)[self.frozen :]:
            x = stage(x)
        return self.encoder.pool(x)

    def forward(self, batch: dict[str, Tensor], margin: float, pair_weight: float) -> dict[str, Tensor]:
        embeddings = self.embed(batch["features"])
        recipe = self.recipe
        first, second = embeddings.chunk(2)
        parts = {
            "target": target_loss(embeddings, batch["targets"], batch["weights"]),
            "relation": relation_loss(embeddings, batch["targets"]),
            "pair": pair_loss(first, second),
            "softmax": self.softmax(embeddings, batch["labels"], margin),
        }
        pull = recipe.speaker_target > 0 or recipe.own_target > 0
        parts["loss"] = (
            (parts["target"] if pull else 0.0)
            + recipe.relation_weight * parts["relation"]
            + pair_weight * parts["pair"]
            + recipe.softmax_weight * parts["softmax"]
        )
        if recipe.contrast_weight > 0.0:
            parts["contrast"] = contrast_loss(first, second, batch["labels"].chunk(2)[0])
            parts["loss"] = parts["loss"] + recipe.contrast_weight * parts["contrast"]
        return parts


def _groups(trained: Trained, schedule: Schedule) -> list[dict[str, Any]]:
    """Parameter groups with their rates; frozen layers are left out."""
    encoder = trained.encoder
    stages = list(encoder.stages)
    for layer in (encoder.stem, *stages[: schedule.frozen_stages]) if schedule.frozen_stages else ():
        layer.requires_grad_(False)
    groups = [
        {"params": list(encoder.linear.parameters()), "lr": schedule.rate},
        {"params": list(trained.softmax.parameters()), "lr": schedule.rate * 5},
    ]
    for below, stage in enumerate(reversed(stages[schedule.frozen_stages :])):
        groups.append({"params": list(stage.parameters()), "lr": schedule.rate * schedule.lower_rate**below})
    if not schedule.frozen_stages:
        lowest = schedule.rate * schedule.lower_rate ** len(stages)
        groups.append({"params": list(encoder.stem.parameters()), "lr": lowest})
    return groups


def load_share(
    batches: Dataset[dict[str, Tensor]], start: int, steps: int, num_workers: int
) -> DataLoader[dict[str, Tensor]]:
    """This rank's batches from step `start` on, made by `num_workers` processes ahead of their use."""
    ranks = world_size()
    mine = Subset(batches, range(start * ranks + rank(), steps * ranks, ranks))
    return DataLoader(mine, batch_size=None, num_workers=num_workers, prefetch_factor=4 if num_workers else None)


@torch.no_grad()
def follow(average: dict[str, Tensor], module: nn.Module, step: int) -> None:
    """Move averaged weights towards those of `module` after `step`: faster at first, then by `EMA_DECAY`."""
    decay = min(EMA_DECAY, (1 + step) / (10 + step))
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)


def fit(
    encoder: ResidualEncoder,
    spec: EncoderSpec,
    batches: PairBatches,
    recipe: Recipe,
    schedule: Schedule,
    out: Path,
    device: str = "cpu",
    num_workers: int = 1,
    judge: Callable[[ResidualEncoder], dict[str, float]] | None = None,
    progress: Callable[[int, int], None] = lambda step, steps: None,
    provenance: dict[str, Any] | None = None,
) -> ResidualEncoder:
    """Fine-tune an encoder on parallel pairs.

    Parameters
    ----------
    encoder : ResidualEncoder
        Where to start; changed in place.
    batches : PairBatches
        As many as ``schedule.steps`` times the number of ranks.
    out : Path
        Folder for ``last.pt`` (resumable), ``best.pt`` (averaged weights), ``log.csv``. If ``last.pt``
        is there, the run goes on from it and its losses are those of a run that never stopped.
    judge : callable
        Called with the averaged encoder every ``schedule.judge_every`` steps; its figures enter the log.

    Returns
    -------
    ResidualEncoder
        The exponential moving average of the weights.
    """
    out.mkdir(parents=True, exist_ok=True)
    encoder.to(device=device, memory_format=torch.channels_last)
    trained = Trained(
        encoder, AngularMarginSoftmax(torch.from_numpy(batches.centres)), recipe, schedule.frozen_stages
    ).to(device)
    optimizer = torch.optim.AdamW(_groups(trained, schedule), weight_decay=WEIGHT_DECAY)
    peaks = [group["lr"] for group in optimizer.param_groups]
    average = {name: value.detach().clone() for name, value in encoder.state_dict().items()}
    start = 0
    last = out / "last.pt"
    if last.is_file():
        saved = torch.load(last, map_location=device, weights_only=True)
        trained.load_state_dict(saved["trained"])
        optimizer.load_state_dict(saved["optimizer"])
        average, start = saved["average"], saved["step"]

    loader = load_share(batches, start, schedule.steps, num_workers)
    parallel = DistributedDataParallel(trained) if world_size() > 1 else trained
    leads = rank() == 0
    saved_at = time.monotonic()
    trained.train()
    for step, batch in enumerate(loader, start):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * schedule.factor(step)
        margin = recipe.margin * min(1.0, step / max(1, schedule.steps // 4))
        with autocast(device):
            weight = recipe.pair_weight_at(step / schedule.steps)
            parts = parallel({name: value.to(device) for name, value in batch.items()}, margin, weight)
        optimizer.zero_grad(set_to_none=True)
        parts["loss"].backward()
        norm = nn.utils.clip_grad_norm_(trained.parameters(), CLIP_NORM)
        if torch.isfinite(norm):
            optimizer.step()
        follow(average, encoder, step)
        if not leads:
            continue
        losses = {name: float(value.detach()) for name, value in parts.items()}
        progress(step + 1, schedule.steps)
        finished = step + 1 == schedule.steps
        if judge and schedule.judge_every and ((step + 1) % schedule.judge_every == 0 or finished):
            log_figures(out / "log.csv", step + 1, losses | judge(averaged(encoder, average)))
        elif (step + 1) % 20 == 0 or finished:
            log_figures(out / "log.csv", step + 1, losses)
        if finished or time.monotonic() - saved_at > schedule.checkpoint_every_s:
            _save_last(last, trained, optimizer, average, step + 1)
            save_checkpoint(
                out / "best.pt", averaged(encoder, average), spec, step=step + 1, provenance=provenance or {},
                recipe=dataclasses.asdict(recipe), schedule=dataclasses.asdict(schedule),
            )  # fmt: skip
            saved_at = time.monotonic()
    return averaged(encoder, average)


def averaged(encoder: ResidualEncoder, average: dict[str, Tensor]) -> ResidualEncoder:
    """An encoder of the same shape with the averaged weights, ready to embed."""
    model = ResidualEncoder(encoder.shape)
    model.load_state_dict(average)
    return model.eval()


def _save_last(
    path: Path, trained: Trained, optimizer: torch.optim.Optimizer, average: dict[str, Tensor], step: int
) -> None:
    part = path.with_suffix(".part")
    state = {"trained": trained.state_dict(), "optimizer": optimizer.state_dict(), "average": average, "step": step}
    torch.save(state, part)
    os.replace(part, path)


def log_figures(path: Path, step: int, figures: dict[str, float]) -> None:
    """Append one row a figure: step, name, value; rows are never rewritten."""
    new = not path.is_file()
    with open(path, "a", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        if new:
            rows.writerow(("step", "figure", "value"))
        rows.writerows((step, name, f"{value:.6g}") for name, value in figures.items())
