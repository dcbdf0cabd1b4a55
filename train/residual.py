"""The residual encoder: features -> embedding; one class for base, small and the public weights.

A convolution, four stages of basic blocks, the mean and standard deviation over time, and a linear
layer (He et al. 2016; as r-vector in Zeinali et al. 2019, arXiv:1910.12592). There is no batch norm:
the public weights come with theirs folded into the convolutions.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "BASE",
    "VARIANCE_FLOOR",
    "AnyNet",
    "BasicBlock",
    "EncoderShape",
    "ResidualEncoder",
    "SpeakerNet",
    "load_public_weights",
    "statistics",
]

VARIANCE_FLOOR = 1e-7


@dataclasses.dataclass(frozen=True, slots=True)
class EncoderShape:
    """Shape of a `ResidualEncoder`.

    Parameters
    ----------
    blocks, widths : tuple of int
        Basic blocks and channels of each stage.
    strides : tuple of (int, int)
        Stride over (mel bins, frames) of each stage's first block.
    stem_stride : (int, int)
        Stride of the first convolution.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (32, 64, 128, 256)
    strides: tuple[tuple[int, int], ...] = ((1, 1), (2, 2), (2, 2), (2, 2))
    stem_stride: tuple[int, int] = (1, 1)
    num_mel_bins: int = 80
    embedding_dim: int = 256

    def __post_init__(self) -> None:
        if not len(self.blocks) == len(self.widths) == len(self.strides) or not self.blocks:
            raise ValueError(f"blocks, widths and strides should have one entry a stage, got {self}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EncoderShape:
        """Undo `dataclasses.asdict`, lists read back as tuples."""

        def frozen(value: Any) -> Any:
            return tuple(frozen(item) for item in value) if isinstance(value, list | tuple) else value

        return cls(**{name: frozen(value) for name, value in values.items()})

    def macs(self, num_frames: int) -> int:
        """Multiply-accumulates of the convolutions and the linear layer for `num_frames` frames."""

        def after(size: int, stride: int) -> int:
            return (size - 1) // stride + 1

        bins, frames = after(self.num_mel_bins, self.stem_stride[0]), after(num_frames, self.stem_stride[1])
        total, channels = 9 * self.widths[0] * bins * frames, self.widths[0]
        for blocks, width, stride in zip(self.blocks, self.widths, self.strides, strict=True):
            bins, frames = after(bins, stride[0]), after(frames, stride[1])
            total += 9 * channels * width * bins * frames + 9 * width * width * bins * frames * (2 * blocks - 1)
            if stride != (1, 1) or channels != width:
                total += channels * width * bins * frames
            channels = width
        return total + 2 * channels * bins * self.embedding_dim


BASE = EncoderShape()


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the sum with the (projected) input."""

    def __init__(self, channels_in: int, channels: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        projected = stride != (1, 1) or channels_in != channels
        self.shortcut = nn.Conv2d(channels_in, channels, 1, stride) if projected else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        # In place: nothing needs the values before the sum or the ReLU, and memory traffic is a third of the time.
        return torch.relu_(self.conv2(torch.relu_(self.conv1(x))).add_(self.shortcut(x)))


class SpeakerNet(nn.Module):
    """Features (batch, frames, mel bins), mean-normalised, to embeddings (batch, embedding_dim), not of unit norm."""

    shape: Any  # a dataclass


AnyNet = TypeVar("AnyNet", bound=SpeakerNet)


class ResidualEncoder(SpeakerNet):
    """The residual encoder of a shape, its weights not yet trained."""

    mean_vector: Tensor

    def __init__(self, shape: EncoderShape = BASE) -> None:
        super().__init__()
        self.shape = shape
        self.stem = nn.Conv2d(1, shape.widths[0], 3, shape.stem_stride, padding=1)
        stages, channels = [], shape.widths[0]
        bins = (shape.num_mel_bins - 1) // shape.stem_stride[0] + 1
        for blocks, width, stride in zip(shape.blocks, shape.widths, shape.strides, strict=True):
            stages.append(
                nn.Sequential(
                    BasicBlock(channels, width, stride), *(BasicBlock(width, width, (1, 1)) for _ in range(blocks - 1))
                )
            )
            channels = width
            bins = (bins - 1) // stride[0] + 1
        self.stages = nn.ModuleList(stages)
        self.linear = nn.Linear(2 * channels * bins, shape.embedding_dim)
        self.register_buffer("mean_vector", torch.zeros(shape.embedding_dim))

    def blocks(self) -> list[list[BasicBlock]]:
        """The blocks of each stage."""
        return [[block for block in stage.children() if isinstance(block, BasicBlock)] for stage in self.stages]

    def outputs(self, features: Tensor) -> list[Tensor]:
        """Activations after each stage, each (batch, channels, bins, frames)."""
        found = [self.frames(features, 0)]
        for stage in self.stages:
            found.append(stage(found[-1]))
        return found[1:]

    def frames(self, features: Tensor, stages: int | None = None) -> Tensor:
        """Activations after the first `stages` stages (all by default), (batch, channels, bins, frames)."""
        x = features.transpose(1, 2).unsqueeze(1)
        x = torch.relu_(self.stem(x.contiguous(memory_format=torch.channels_last)))
        for stage in self.stages[:stages]:
            x = stage(x)
        return x

    def pool(self, x: Tensor) -> Tensor:
        """Activations of the last stage to embeddings."""
        embeddings: Tensor = self.linear(statistics(x)) - self.mean_vector
        return embeddings

    def forward(self, features: Tensor) -> Tensor:
        return self.pool(self.frames(features))


def statistics(x: Tensor) -> Tensor:
    """Activations (batch, ..., frames) to their means and deviations over frames, (batch, both), float32 always."""
    x = x.float()
    mean = x.mean(dim=-1)
    count = x.shape[-1]
    variance = (x - mean.unsqueeze(-1)).square().sum(dim=-1) / max(count - 1, 1)
    return torch.cat((mean.flatten(1), torch.sqrt(variance + VARIANCE_FLOOR).flatten(1)), dim=1)


def load_public_weights(path: Path) -> ResidualEncoder:
    """The published WeSpeaker ResNet34-LM (VoxCeleb2, CC BY 4.0) from its ONNX file.

    Raises
    ------
    ValueError
        If the file's layers are not those of ResNet34-LM.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    convolutions = [
        (weights[node.input[1]], weights[node.input[2]])
        for node in graph.node
        if node.op_type == "Conv" and node.input[1] in weights
    ]
    model = ResidualEncoder(BASE)
    targets = [model.stem]
    for block in (block for stage in model.blocks() for block in stage):
        shortcut = [block.shortcut] if isinstance(block.shortcut, nn.Conv2d) else []
        targets += [block.conv1, *shortcut, block.conv2]
    # The graph lists a projecting block's shortcut before or after its second convolution: distinguish them by kernel.
    if len(targets) != len(convolutions):
        raise ValueError(f"{path}: expected {len(targets)} convolutions of ResNet34-LM, got {len(convolutions)}")
    for position, layer in enumerate(targets):
        here = convolutions[position]
        if here[0].shape != tuple(layer.weight.shape) and position + 1 < len(targets):
            convolutions[position : position + 2] = [convolutions[position + 1], here]
            here = convolutions[position]
        if here[0].shape != tuple(layer.weight.shape):
            expected = tuple(layer.weight.shape)
            raise ValueError(f"{path}: layer {position} has shape {here[0].shape}, expected {expected}")
        _copy(layer.weight, here[0])
        _copy(layer.bias, here[1])
    gemm = next(node for node in graph.node if node.op_type == "Gemm")
    _copy(model.linear.weight, weights[gemm.input[1]])
    _copy(model.linear.bias, weights[gemm.input[2]])
    subtraction = next(node for node in graph.node if node.output[0] == "last_hidden_state")
    _copy(model.mean_vector, weights[subtraction.input[1]])
    return model


def _copy(target: Tensor | None, values: np.ndarray) -> None:
    assert target is not None
    with torch.no_grad():
        target.copy_(torch.from_numpy(np.array(values)))
