"""A smaller encoder from a larger one: cut, then taught stage by stage.

`cut` keeps the first block of each stage and as many of the following ones as the small shape has, and of
each layer the channels that weigh most; `fit_stages` makes the stages of the small encoder reproduce
the large one's, sampled at the small one's coarser grid of mel bins and frames (hints: Romero et al.,
arXiv:1412.6550), together with the embedding.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from emoinv_edge.spec import EncoderSpec

from .batch_norm import folded, insert_batch_norm
from .distributed import average_over_ranks, copy_from_first_rank, rank
from .embed import autocast
from .loop import CLIP_NORM, Schedule, follow, log_figures
from .losses import distillation_loss
from .model import BasicBlock, EncoderShape, ResidualEncoder, save_checkpoint
from .muon import MuonAdamW

__all__ = ["StageTeacher", "cut", "fit_stages", "hint_loss", "kept_channels"]

VECTOR_RATE = 1e-3  # of biases, batch norms and the first convolution, beside Muon's rate in the schedule


def _strongest(weight: Tensor, count: int) -> Tensor:
    """The numbers of the `count` largest weights, in order."""
    return torch.sort(torch.topk(weight, count).indices).values


def kept_channels(large: ResidualEncoder, widths: tuple[int, ...]) -> list[Tensor]:
    """Which channels of each stage's output a thinner encoder keeps: those that the layers after it weigh most.

    Returns
    -------
    list of Tensor, each shape (width,), channel numbers in order
    """
    kept = []
    stages = list(large.stages)
    for number, (stage, width) in enumerate(zip(stages, widths, strict=True)):
        channels = large.shape.widths[number]
        if number + 1 < len(stages):
            reading = stages[number + 1][0].conv1.weight.square().sum(dim=(0, 2, 3))
        else:
            linear = large.linear.weight.view(large.shape.embedding_dim, 2, channels, -1)
            reading = linear.square().sum(dim=(0, 1, 3))
        for block in list(stage)[1:]:
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
        small.stem.weight.copy_(large.stem.weight[kept[0]])
        assert small.stem.bias is not None and large.stem.bias is not None
        small.stem.bias.copy_(large.stem.bias[kept[0]])
        before = kept[0]
        for small_stage, large_stage, after in zip(small.stages, large.stages, kept, strict=True):
            blocks = list(large_stage)
            # The first block changes width and stride; of the others the last ones are nearest to the next stage.
            for block, source in zip(
                small_stage, [blocks[0], *blocks[len(blocks) - len(small_stage) + 1 :]], strict=True
            ):
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
    layers = [(block.conv1, source.conv1, inner, before), (block.conv2, source.conv2, after, inner)]
    if isinstance(source.shortcut, nn.Conv2d):
        layers.append((block.shortcut, source.shortcut, after, before))
    elif isinstance(block.shortcut, nn.Conv2d):
        nn.init.dirac_(block.shortcut.weight)
        nn.init.zeros_(block.shortcut.bias)
    for layer, of, out, into in layers:
        layer.weight.copy_(of.weight[out][:, into])
        layer.bias.copy_(of.bias[out])


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
        import onnxruntime
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
            if numpy_helper.to_array(values[f"{affine}zero_point"]) != 0:
                raise ValueError(
                    f"{self.path}: expected activations in uint8 from 0; export it with --activations uint8"
                )
            self._scales[name] = float(numpy_helper.to_array(values[f"{affine}scale"]))
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.num_threads, 1
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, features: NDArray[np.float32]) -> dict[str, Tensor]:
        """Features (batch, frames, bins) to ``embedding`` and ``stageN`` (uint8) with ``scaleN``, N from 0."""
        if self._session is None:
            self._open()
        embedding, *stages = self._session.run(["embedding", *self._scales], {"features": features})
        taught = {"embedding": torch.from_numpy(embedding)}
        for number, values, scale in zip(self.stages, stages, self._scales.values(), strict=True):
            taught |= {f"stage{number}": torch.from_numpy(values), f"scale{number}": torch.tensor(scale)}
        return taught


def _stage_outputs(model: ResidualEncoder, features: Tensor) -> list[Tensor]:
    x = model.frames(features, 0)
    outputs = []
    for stage in model.stages:
        x = stage(x)
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


@dataclasses.dataclass(frozen=True, slots=True)
class _Taught:
    """What the large encoder makes of a batch: the outputs of some stages, by number, and the embedding."""

    stages: dict[int, Tensor]
    embedding: Tensor


def _taught(batch: dict[str, Tensor], large: ResidualEncoder) -> _Taught:
    """As the batch brings it (`StageTeacher`), else computed here."""
    if "embedding" in batch:
        stages = {
            int(name.removeprefix("stage")): values.float() * batch[name.replace("stage", "scale")]
            for name, values in batch.items()
            if name.startswith("stage")
        }
        return _Taught(stages, batch["embedding"])
    with torch.no_grad():
        outputs = _stage_outputs(large, batch.get("clean", batch["features"]))
        return _Taught(dict(enumerate(outputs)), large.pool(outputs[-1]))


def _averaged(small: ResidualEncoder, average: dict[str, Tensor]) -> ResidualEncoder:
    """The averaged weights, their batch norms folded in."""
    model = copy.deepcopy(small)
    model.load_state_dict(average)
    return folded(model)


def fit_stages(
    small: ResidualEncoder,
    large: ResidualEncoder,
    spec: EncoderSpec,
    batches: Callable[[int], Iterable[dict[str, Tensor]]],
    schedule: Schedule,
    out: Path,
    hints_until: float = 0.45,
    device: str = "cpu",
    judge: Callable[[ResidualEncoder], dict[str, float]] | None = None,
    progress: Callable[[int, dict[str, float]], None] = lambda step, losses: None,
    provenance: dict[str, Any] | None = None,
) -> ResidualEncoder:
    """Teach the small encoder the large one's stages and embedding, with batch norms for the time of it.

    Parameters
    ----------
    small : ResidualEncoder
        Where to start; not changed.
    batches : callable
        Step -> this rank's batches from that step on: ``features`` (batch, frames, bins), mean-normalised, that the
        small encoder sees; ``clean``, if the large one shall see others; what `StageTeacher` made of them, or
        else the large encoder computes it here.
    out : Path
        Folder for ``last.pt`` (the run goes on from it), ``best.pt`` (averaged weights, which say in
        ``finished`` whether the run was) and ``log.csv``.
    hints_until : float
        Share of the steps over which the hints fade out; the embedding's weight grows from 1/4 to 1.

    Returns
    -------
    ResidualEncoder
        The exponential moving average of the weights.
    """
    large = large.eval().requires_grad_(False).to(device=device, memory_format=torch.channels_last)
    kept = kept_channels(large, small.shape.widths)
    out.mkdir(parents=True, exist_ok=True)
    last, start = out / "last.pt", 0
    saved = torch.load(last, map_location=device, weights_only=True) if last.is_file() else None
    first = None if saved else next(iter(batches(0)))["features"]
    small = copy.deepcopy(small).to(device=device, memory_format=torch.channels_last)
    small = insert_batch_norm(small, None if first is None else first.to(device)).train()
    statistics = [buffer for name, buffer in small.named_buffers() if "running_" in name]
    copy_from_first_rank([*small.parameters(), *statistics])
    optimizer = MuonAdamW(small, schedule.rate, VECTOR_RATE)
    average = {name: value.detach().clone() for name, value in small.state_dict().items()}
    if saved:
        small.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        average, start = saved["average"], saved["step"]
    hinted = hints_until * schedule.steps
    saved_at = time.monotonic()
    for step, batch in enumerate(batches(start), start):
        if step >= schedule.steps:
            break
        batch = {name: values.to(device) for name, values in batch.items()}
        fade = 1.0 - step / hinted if step < hinted else 0.0
        with autocast(device):
            taught = _taught(batch, large)
            learnt = _stage_outputs(small, batch["features"])
            embedding = small.pool(learnt[-1])
            hints = embedding.new_zeros(())
            if fade:
                hints = torch.stack(
                    [hint_loss(learnt[number], values[:, kept[number]]) for number, values in taught.stages.items()]
                ).sum()
            match = distillation_loss(embedding, taught.embedding)
        loss = fade * hints + (1.0 - 0.75 * fade) * match
        optimizer.zero_grad()
        loss.backward()
        average_over_ranks([p.grad for p in small.parameters() if p.grad is not None] + statistics)
        if torch.isfinite(nn.utils.clip_grad_norm_(small.parameters(), CLIP_NORM)):
            optimizer.step(schedule.factor(step))
        follow(average, small, step)
        if rank() != 0:
            continue
        losses = {"hints": float(hints.detach()), "match": float(match.detach())}
        progress(step + 1, losses)
        finished = step + 1 == schedule.steps
        if judge and schedule.judge_every and ((step + 1) % schedule.judge_every == 0 or finished):
            losses |= judge(_averaged(small, average))
        if len(losses) > 2 or (step + 1) % 20 == 0 or finished:
            log_figures(out / "log.csv", step + 1, losses)
        if finished or time.monotonic() - saved_at > schedule.checkpoint_every_s:
            state = {"model": small.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
            torch.save(state | {"step": step + 1}, last.with_suffix(".part"))
            os.replace(last.with_suffix(".part"), last)
            save_checkpoint(
                out / "best.pt", _averaged(small, average), spec, step=step + 1, finished=finished,
                provenance=provenance or {}, schedule=dataclasses.asdict(schedule),
            )  # fmt: skip
            saved_at = time.monotonic()
    return _averaged(small, average)
