"""A smaller encoder from a larger one: cut, then taught stage by stage.

`cut` keeps the first block of each stage and as many of the following ones as the small shape has;
`fit_stages` makes every stage of the small encoder reproduce the large one's stage, sampled at the
small one's coarser grid of mel bins and frames (hints: Romero et al., arXiv:1412.6550), together
with the embedding. Whole distillation to clip embeddings and the pairs then go through `loop.fit`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from emoinv_edge.spec import EncoderSpec

from .embed import autocast
from .loop import Schedule, distillation_loss
from .model import EncoderShape, ResidualEncoder, save_checkpoint

__all__ = ["cut", "fit_stages", "hint_loss"]


def cut(large: ResidualEncoder, shape: EncoderShape) -> ResidualEncoder:
    """The small encoder of `shape`, every layer started from the large one's.

    Raises
    ------
    ValueError
        If the shape has more blocks than the large encoder or other widths: there is nothing to start from.
    """
    if shape.widths != large.shape.widths or any(
        few > many for few, many in zip(shape.blocks, large.shape.blocks, strict=True)
    ):
        raise ValueError(f"expected widths {large.shape.widths} and at most {large.shape.blocks} blocks, got {shape}")
    small = ResidualEncoder(shape)
    small.stem.load_state_dict(large.stem.state_dict())
    for small_stage, large_stage in zip(small.stages, large.stages, strict=True):
        blocks = list(large_stage)
        # The first block changes width and stride; of the others the last ones are nearest to the next stage.
        kept = [blocks[0], *blocks[len(blocks) - len(small_stage) + 1 :]]
        for block, source in zip(small_stage, kept, strict=True):
            state = source.state_dict()
            if isinstance(block.shortcut, nn.Conv2d) and not isinstance(source.shortcut, nn.Conv2d):
                block.conv1.load_state_dict(source.conv1.state_dict())
                block.conv2.load_state_dict(source.conv2.state_dict())
                nn.init.dirac_(block.shortcut.weight)
                nn.init.zeros_(block.shortcut.bias)
            else:
                block.load_state_dict(state)
    with torch.no_grad():
        small.mean_vector.copy_(large.mean_vector)
        small.linear.bias.copy_(large.linear.bias)
        channels = shape.widths[-1]
        dim = shape.embedding_dim
        bins = large.linear.in_features // (2 * channels)
        few = small.linear.in_features // (2 * channels)
        weight = large.linear.weight.view(dim, 2 * channels, bins)
        if bins % few:
            raise ValueError(f"{bins} rows of mel bins cannot be joined into {few}; change the strides")
        small.linear.weight.copy_(weight.view(dim, 2 * channels, few, bins // few).sum(dim=3).flatten(1))
    return small


def _stage_outputs(model: ResidualEncoder, features: Tensor) -> list[Tensor]:
    x = model.frames(features, 0)
    outputs = []
    for stage in model.stages:
        x = stage(x)
        # A copy: the next stage may write in place on what it was given.
        outputs.append(x)
    return outputs


def hint_loss(small: Tensor, large: Tensor) -> Tensor:
    """Mean square difference relative to the large stage's power, on the small stage's grid."""
    step_bins = round(large.shape[2] / small.shape[2])
    step_frames = round(large.shape[3] / small.shape[3])
    target = functional.avg_pool2d(large, (1, 1), (step_bins, step_frames))
    bins, frames = min(small.shape[2], target.shape[2]), min(small.shape[3], target.shape[3])
    small, target = small[:, :, :bins, :frames].float(), target[:, :, :bins, :frames].float()
    return (small - target).square().mean() / target.square().mean().clamp_min(1e-8)


def fit_stages(
    small: ResidualEncoder,
    large: ResidualEncoder,
    spec: EncoderSpec,
    batches: Iterable[Tensor],
    schedule: Schedule,
    out: Path,
    hints_until: float = 0.7,
    progress: Callable[[int, dict[str, float]], None] = lambda step, losses: None,
) -> ResidualEncoder:
    """Teach the small encoder the large one's stages and embedding on batches of features.

    Parameters
    ----------
    batches : iterable of Tensor, shape (batch, frames, bins)
        Mean-normalised features, the same for both encoders.
    hints_until : float
        Share of the steps over which the hints fade out; the embedding's weight grows from 1/4 to 1.
    """
    large = large.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    small = small.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(small.parameters(), lr=schedule.rate, weight_decay=1e-4)
    out.mkdir(parents=True, exist_ok=True)
    saved_at = time.monotonic()
    for step, features in enumerate(batches):
        if step >= schedule.steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate * schedule.factor(step)
        with autocast():
            with torch.no_grad():
                taught = _stage_outputs(large, features)
                target = large.pool(taught[-1])
            learnt = _stage_outputs(small, features)
            embedding = small.pool(learnt[-1])
            hints = torch.stack([hint_loss(s, t) for s, t in zip(learnt, taught, strict=True)]).sum()
            match = distillation_loss(embedding, target)
        fade = max(0.0, 1.0 - step / max(1.0, hints_until * schedule.steps))
        loss = fade * hints + (1.0 - 0.75 * fade) * match
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(small.parameters(), 1.0)
        optimizer.step()
        progress(step + 1, {"hints": float(hints.detach()), "match": float(match.detach())})
        if step + 1 == schedule.steps or time.monotonic() - saved_at > schedule.checkpoint_every_s:
            save_checkpoint(out / "stages.pt", small, spec, step=step + 1)
            saved_at = time.monotonic()
    return small.eval()
