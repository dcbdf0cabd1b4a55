"""A smaller encoder from a larger one: cut, then distilled stage by stage.

`cut` keeps the first block of each stage and as many of the last ones as the small shape has, and of
each layer the channels that weigh most; `fit_stages` makes the stages of the small encoder reproduce
the large one's, sampled at the small one's coarser grid of mel bins and frames (hints: Romero et al.,
arXiv:1412.6550), together with the embedding.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from emoinv_edge.session import open_session
from emoinv_edge.spec import EncoderSpec

from . import loop
from .batch_norm import insert_batch_norm
from .losses import distillation_loss
from .model import BasicBlock, EncoderShape, ResidualEncoder, autocast, channels_last
from .muon import MuonAdamW
from .progress import Report, silent
from .schedule import Schedule

__all__ = ["Answers", "StageTeacher", "answers", "cut", "fit_stages", "hint_loss", "kept_channels"]

VECTOR_RATE = 1e-3  # of biases, batch norms and the first convolution, beside Muon's rate in the schedule
LEAST_MATCH = 0.25  # weight of the embedding's loss while the hints weigh most


def _strongest(weight: Tensor, count: int) -> Tensor:
    """The numbers of the `count` largest weights, in order."""
    return torch.sort(torch.topk(weight, count).indices).values


def kept_channels(large: ResidualEncoder, widths: tuple[int, ...]) -> list[Tensor]:
    """Which channels of each stage's output a thinner encoder keeps: those that the layers after it weigh most.

    Returns
    -------
    list of Tensor, each shape (width,), channel numbers in order
    """
    kept, stages = [], large.blocks()
    for number, (blocks, width) in enumerate(zip(stages, widths, strict=True)):
        channels = large.shape.widths[number]
        if number + 1 < len(stages):
            reading = stages[number + 1][0].conv1.weight.square().sum(dim=(0, 2, 3))
        else:
            linear = large.linear.weight.view(large.shape.embedding_dim, 2, channels, -1)
            reading = linear.square().sum(dim=(0, 1, 3))
        for block in blocks[1:]:
            reading = reading + block.conv1.weight.square().sum(dim=(0, 2, 3))
        kept.append(_strongest(reading.detach(), width))
    return kept


def cut(large: ResidualEncoder, shape: EncoderShape) -> ResidualEncoder:
    """The small encoder of `shape`, every layer started from the large one's.

    Raises
    ------
    ValueError
        If the shape has more blocks or channels than the large encoder, or another number of stages: there is
        nothing to start from.
    """
    fits = len(shape.widths) == len(large.shape.widths)
    if not fits or any(
        few > many
        for few, many in zip(shape.blocks + shape.widths, large.shape.blocks + large.shape.widths, strict=True)
    ):
        raise ValueError(f"expected at most {large.shape.blocks} blocks of {large.shape.widths} channels, got {shape}")
    small = ResidualEncoder(shape)
    kept = kept_channels(large, shape.widths)
    with torch.no_grad():
        # The stem writes what the first stage adds to, so it keeps that stage's channels.
        _cut_layer(small.stem, large.stem, kept[0], slice(None))
        before = kept[0]
        for few_blocks, blocks, after in zip(small.blocks(), large.blocks(), kept, strict=True):
            # The first block changes width and stride; of the others the last ones are nearest to the next stage.
            sources = [blocks[0], *blocks[len(blocks) - len(few_blocks) + 1 :]]
            for block, source in zip(few_blocks, sources, strict=True):
                _cut_block(block, source, before, after)
                before = after
        small.mean_vector.copy_(large.mean_vector)
        small.linear.bias.copy_(large.linear.bias)
        dim, channels = shape.embedding_dim, large.shape.widths[-1]
        bins = large.linear.in_features // (2 * channels)
        few = small.linear.in_features // (2 * shape.widths[-1])
        if bins % few:
            raise ValueError(f"{bins} rows of mel bins cannot be joined into {few}; change the strides")
        weight = large.linear.weight.view(dim, 2, channels, few, bins // few).sum(dim=4)[:, :, kept[-1]]
        small.linear.weight.copy_(weight.flatten(1))
    return small


def _cut_block(block: BasicBlock, source: BasicBlock, before: Tensor, after: Tensor) -> None:
    """Copy what a smaller block keeps of `source`: the channels `before` of its input and `after` of its output."""
    writing = source.conv1.weight.square().sum(dim=(1, 2, 3)) * source.conv2.weight.square().sum(dim=(0, 2, 3))
    inner = _strongest(writing, block.conv1.out_channels)
    _cut_layer(block.conv1, source.conv1, inner, before)
    _cut_layer(block.conv2, source.conv2, after, inner)
    if isinstance(block.shortcut, nn.Conv2d):
        if isinstance(source.shortcut, nn.Conv2d):
            _cut_layer(block.shortcut, source.shortcut, after, before)
        else:
            nn.init.dirac_(block.shortcut.weight)
            nn.init.zeros_(_bias(block.shortcut))


def _cut_layer(layer: nn.Conv2d, source: nn.Conv2d, out: Tensor, into: Tensor | slice) -> None:
    """Copy the channels `out` and `into` of a convolution."""
    layer.weight.copy_(source.weight[out][:, into])
    _bias(layer).copy_(_bias(source)[out])


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None  # the encoder's convolutions have one
    return layer.bias


class StageTeacher:
    """Stages and embedding of an int8 model file of `python -m export`: on a CPU several times faster than torch.

    Parameters
    ----------
    path : Path
        The model file; its session is opened at the first call, so that each worker process has its own.
    stages : tuple of int
        Numbers, from 0, of the stages whose outputs are given.
    """

    def __init__(self, path: Path, stages: tuple[int, ...], num_threads: int = 1) -> None:
        self.path, self.stages, self.num_threads = path, stages, num_threads
        self._session: Any = None
        self._scales: dict[str, float] = {}

    def _open(self) -> None:
        import onnx
        from onnx import numpy_helper

        model = onnx.load(str(self.path))
        made = {output for node in model.graph.node for output in node.output}
        values = {tensor.name: tensor for tensor in model.graph.initializer}
        for stage in self.stages:
            blocks = [m for name in made if (m := re.fullmatch(rf"stage{stage + 1}\.block(\d+)/quantised", name))]
            if not blocks:
                raise ValueError(f"{self.path}: no stage {stage + 1} in int8; expected a file of `python -m export`")
            name = max(blocks, key=lambda match: int(match[1]))[0]
            affine = name.removesuffix("quantised")
            self._scales[name] = float(numpy_helper.to_array(values[f"{affine}scale"]))
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None))
        self._session = open_session(model.SerializeToString(), self.num_threads)

    def __call__(self, features: NDArray[np.float32]) -> dict[str, Tensor]:
        """Features (batch, frames, bins) to ``embedding`` and ``stageN`` (uint8) with ``scaleN``, N from 0."""
        if self._session is None:
            self._open()
        embedding, *stages = self._session.run(["embedding", *self._scales], {"features": features})
        found = {"embedding": torch.from_numpy(embedding)}
        for number, values, scale in zip(self.stages, stages, self._scales.values(), strict=True):
            found |= {f"stage{number}": torch.from_numpy(values), f"scale{number}": torch.tensor(scale)}
        return found


def hint_loss(small: Tensor, large: Tensor) -> Tensor:
    """Mean square difference relative to the large stage's power, on the small stage's grid."""
    step_bins = round(large.shape[2] / small.shape[2])
    step_frames = round(large.shape[3] / small.shape[3])
    target = functional.avg_pool2d(large, (1, 1), (step_bins, step_frames))
    bins, frames = min(small.shape[2], target.shape[2]), min(small.shape[3], target.shape[3])
    small, target = small[:, :, :bins, :frames].float(), target[:, :, :bins, :frames].float()
    return (small - target).square().mean() / target.square().mean().clamp_min(1e-8)


@dataclasses.dataclass(frozen=True, slots=True)
class Answers:
    """What the large encoder makes of a batch: the outputs of some stages, by number, and the embedding."""

    stages: dict[int, Tensor]
    embedding: Tensor


def answers(batch: dict[str, Tensor], large: ResidualEncoder) -> Answers:
    """As the batch brings them (`StageTeacher`), else computed here."""
    if "embedding" in batch:
        stages = {
            int(name.removeprefix("stage")): values.float() * batch[name.replace("stage", "scale")]
            for name, values in batch.items()
            if name.startswith("stage")
        }
        return Answers(stages, batch["embedding"])
    with torch.no_grad():
        outputs = large.outputs(batch.get("clean", batch["features"]))
        return Answers(dict(enumerate(outputs)), large.pool(outputs[-1]))


def fit_stages(
    small: ResidualEncoder,
    large: ResidualEncoder,
    spec: EncoderSpec,
    batches: Dataset[dict[str, Tensor]],
    schedule: Schedule,
    out: Path,
    hints_until: float = 0.45,
    device: str = "cpu",
    num_workers: int = 1,
    judge: loop.Judge | None = None,
    progress: Report = silent,
    provenance: dict[str, Any] | None = None,
) -> ResidualEncoder:
    """Distil the large encoder's stages and embedding into the small one, with batch norms for the time of it.

    Parameters
    ----------
    small : ResidualEncoder
        Where to start; not changed.
    batches : Dataset
        Each with ``features`` (batch, frames, bins), mean-normalised, that the small encoder sees; ``clean``, if the
        large one shall see others; the answers of a `StageTeacher`, or else the large encoder computes them here.
        As many as ``schedule.batches`` times the number of ranks.
    hints_until : float
        Share of the steps over which the hints fade out; the embedding's weight grows to 1 meanwhile.
    out, judge, progress
        As `loop.run` takes them.
    provenance : dict, optional
        Goes into ``best.pt``.

    Returns
    -------
    ResidualEncoder
        The exponential moving average of the weights.
    """
    large = channels_last(large.eval().requires_grad_(False), device)
    kept = kept_channels(large, small.shape.widths)
    ahead = loop.Batches(batches, schedule.batches, num_workers, device)
    small = insert_batch_norm(channels_last(copy.deepcopy(small), device), ahead(0)["features"]).train()
    optimizer = MuonAdamW(small, schedule.rate, VECTOR_RATE)
    state = loop.State(small, optimizer, small, spec, provenance=provenance or {})
    hinted = hints_until * schedule.steps

    def losses(batch: loop.Batch, step: int) -> dict[str, Tensor]:
        fade = 1.0 - step / hinted if step < hinted else 0.0
        with autocast(device):
            wanted = answers(batch, large)
            stages = small.outputs(batch["features"])
            embedding = small.pool(stages[-1])
            hints = embedding.new_zeros(())
            if fade:
                each = [hint_loss(stages[i], values[:, kept[i]]) for i, values in wanted.stages.items()]
                hints = torch.stack(each).sum()
            match = distillation_loss(embedding, wanted.embedding)
        return {"hints": hints, "match": match, "loss": fade * hints + (1.0 - (1.0 - LEAST_MATCH) * fade) * match}

    averaged: ResidualEncoder = loop.run(out, schedule, state, ahead, losses, judge, progress)
    return averaged
