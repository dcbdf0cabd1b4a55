"""Fine-tuning on parallel pairs: the encoder and its classifier, the sum of losses, and the rates of the layers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from emoinv_edge.spec import EncoderSpec

from . import loop
from .losses import AngularMarginSoftmax, pair_loss, relation_loss, target_loss
from .model import ResidualEncoder, autocast, channels_last
from .pairs import PairBatches, Recipe
from .progress import Report, silent
from .schedule import Schedule

__all__ = ["FineTuned", "fit"]

WEIGHT_DECAY = 1e-4
SOFTMAX_RATE = 5.0  # of the classifier, relative to the last stage's


class FineTuned(nn.Module):
    """An encoder and the classifier of its training speakers, with all the losses of a recipe.

    Parameters
    ----------
    encoder : ResidualEncoder
        Where to start; changed in place.
    centres : Tensor, shape (speakers, embedding_dim)
        Where the classes start.
    frozen_stages : int
        The first stages, which do not learn, nor does the stem then.
    """

    def __init__(self, encoder: ResidualEncoder, centres: Tensor, recipe: Recipe, frozen_stages: int) -> None:
        super().__init__()
        self.encoder, self.softmax = encoder, AngularMarginSoftmax(centres)
        self.recipe, self.frozen_stages = recipe, frozen_stages
        for layer in (encoder.stem, *encoder.stages[:frozen_stages]) if frozen_stages else ():
            layer.requires_grad_(False)

    def below(self, features: Tensor) -> Tensor:
        """Activations (batch, channels, bins, frames) after the frozen stages, without a gradient."""
        with torch.no_grad():
            return self.encoder.frames(features, self.frozen_stages)

    def above(self, x: Tensor) -> Tensor:
        """Embeddings (batch, dim) of activations after the frozen stages."""
        for stage in list(self.encoder.stages)[self.frozen_stages :]:
            x = stage(x)
        return self.encoder.pool(x)

    def losses(self, embeddings: Tensor, batch: dict[str, Tensor], margin: float) -> dict[str, Tensor]:
        """Every loss of a batch of `PairBatches`, and their weighted sum, ``loss``."""
        recipe, (first, second) = self.recipe, embeddings.chunk(2)
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
            + recipe.pair_weight * parts["pair"]
            + recipe.softmax_weight * parts["softmax"]
        )
        return parts

    def forward(self, features: Tensor) -> Tensor:
        """Embeddings of features (batch, frames, mel bins)."""
        embeddings: Tensor = self.above(self.below(features)) if self.frozen_stages else self.encoder(features)
        return embeddings

    def optimizer(self, schedule: Schedule) -> torch.optim.AdamW:
        """AdamW with the schedule's peak rate for the last stage, and less for each stage below."""
        encoder, rate = self.encoder, schedule.rate
        learning = list(encoder.stages)[self.frozen_stages :]
        groups: list[dict[str, Any]] = [
            {"params": list(encoder.linear.parameters()), "lr": rate},
            {"params": list(self.softmax.parameters()), "lr": rate * SOFTMAX_RATE},
        ]
        for below, stage in enumerate(reversed(learning)):
            groups.append({"params": list(stage.parameters()), "lr": rate * schedule.lower_rate**below})
        if not self.frozen_stages:
            groups.append(
                {"params": list(encoder.stem.parameters()), "lr": rate * schedule.lower_rate ** len(learning)}
            )
        return torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)


def fit(
    encoder: ResidualEncoder,
    spec: EncoderSpec,
    batches: PairBatches,
    schedule: Schedule,
    out: Path,
    device: str = "cpu",
    num_workers: int = 1,
    judge: loop.Judge | None = None,
    progress: Report = silent,
    provenance: dict[str, Any] | None = None,
) -> ResidualEncoder:
    """Fine-tune an encoder on parallel pairs by the recipe of `batches`.

    Parameters
    ----------
    encoder : ResidualEncoder
        Where to start; changed in place.
    batches : PairBatches
        As many as ``schedule.batches`` times the number of ranks.
    out, judge, progress
        As `loop.run` takes them.
    provenance : dict, optional
        Goes into ``best.pt``.

    Returns
    -------
    ResidualEncoder
        The exponential moving average of the weights.
    """
    recipe = batches.recipe
    centres = torch.from_numpy(batches.centres)
    module = FineTuned(channels_last(encoder, device), centres, recipe, schedule.frozen_stages).to(device).train()
    about: dict[str, Any] = {"provenance": provenance or {}, "recipe": dataclasses.asdict(recipe)}
    state = loop.State(module, module.optimizer(schedule), encoder, spec, **about)
    ahead = loop.Batches(batches, schedule.batches, num_workers, device)

    def losses(batch: loop.Batch, step: int) -> dict[str, Tensor]:
        with autocast(device):
            return module.losses(module(batch["features"]), batch, recipe.margin_at(step, schedule.steps))

    averaged: ResidualEncoder = loop.run(out, schedule, state, ahead, losses, judge, progress)
    return averaged
