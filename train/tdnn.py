"""The densely connected TDNN with context-aware masking: features -> embedding (CAM++, Wang et al., arXiv:2303.00332).

Residual blocks over mel bins and frames, three dense blocks over frames, whose layers each read everything before them
and add a few channels, the mean and standard deviation over time, and a linear layer. A layer's channels are weighed
by a mask of what its segment of two seconds and the whole utterance hold on average.

A batch norm behind a convolution is folded into it. One in front stands between the concatenation and a ReLU, where
every layer has its own: it stays, as a scale and an offset. So there are no running statistics, and what learns in
bfloat16 is what is shipped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from emoinv_edge.spec import EncoderSpec

from .residual import BasicBlock, SpeakerNet, statistics

__all__ = [
    "CAMPPLUS",
    "PUBLIC_SPEC",
    "DenseBlock",
    "DenseLayer",
    "DenseTdnn",
    "Reads",
    "TdnnShape",
    "is_public",
    "load_public_tdnn",
]

NORM_EPSILON = 1e-5  # of the published batch norms
IMAGE_SCALE = 8.0


@dataclasses.dataclass(frozen=True, slots=True)
class TdnnShape:
    """Shape of a `DenseTdnn`.

    Parameters
    ----------
    layers, dilations : tuple of int
        Layers of each dense block, and the distance in frames between the three taps of each.
    growth : int
        Channels that a layer adds.
    inner : int
        Channels within a layer.
    first : int
        Channels that the first dense block starts from.
    image : int
        Channels of the residual blocks before it.
    segment : int
        Frames, after the stride of 2, of a segment of the masks.
    """

    layers: tuple[int, ...] = (12, 24, 16)
    dilations: tuple[int, ...] = (1, 2, 2)
    growth: int = 32
    inner: int = 128
    first: int = 128
    image: int = 32
    segment: int = 100
    num_mel_bins: int = 80
    embedding_dim: int = 192

    def __post_init__(self) -> None:
        if len(self.layers) != len(self.dilations) or not self.layers:
            raise ValueError(f"expected layers and dilations with one entry a block, got {self}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TdnnShape:
        """Undo `dataclasses.asdict`, lists read back as tuples."""
        frozen: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**frozen)


CAMPPLUS = TdnnShape()
# The front end that the published weights were trained with.
PUBLIC_SPEC = EncoderSpec(name="campplus", embedding_dim=192, window="povey", waveform_scale=1.0)


class Reads(nn.Module):
    """What a layer reads of the channels before it: each scaled and offset, then a ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        scaled = x * self.weight.to(x.dtype)[:, None, None]
        return torch.relu_(scaled.add_(self.bias.to(x.dtype)[:, None, None]))


class ContextMask(nn.Module):
    """A mask (batch, channels, frames) in 0 to 1 of the means of `x` over each segment and over all frames."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels_in, channels_in // 2, 1)
        self.excite = nn.Conv2d(channels_in // 2, channels, 1)

    def forward(self, x: Tensor, means: Tensor, within: Tensor) -> Tensor:
        mask = torch.sigmoid(self.excite(torch.relu_(self.squeeze(torch.matmul(x, means.to(x.dtype))))))
        return torch.matmul(mask, within.to(x.dtype).T)


class DenseLayer(nn.Module):
    """Reads all channels so far; gives `growth` more."""

    def __init__(self, channels: int, shape: TdnnShape, dilation: int) -> None:
        super().__init__()
        self.reads = Reads(channels)
        self.squeeze = nn.Conv2d(channels, shape.inner, 1)
        self.local = nn.Conv2d(
            shape.inner, shape.growth, (1, 3), padding=(0, dilation), dilation=(1, dilation), bias=False
        )
        self.mask = ContextMask(shape.inner, shape.growth)

    def forward(self, x: Tensor, means: Tensor, within: Tensor) -> Tensor:
        inner = torch.relu_(self.squeeze(self.reads(x)))
        masked: Tensor = self.local(inner) * self.mask(inner, means, within)
        return masked


class DenseBlock(nn.Module):
    """Dense layers, and the convolution that halves the channels behind them."""

    def __init__(self, channels: int, shape: TdnnShape, layers: int, dilation: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DenseLayer(channels + i * shape.growth, shape, dilation) for i in range(layers))
        self.channels = channels + layers * shape.growth
        self.reads = Reads(self.channels)
        self.transit = nn.Conv2d(self.channels, self.channels // 2, 1)

    def forward(self, x: Tensor, means: Tensor, within: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat((x, layer(x, means, within)), dim=1)
        halved: Tensor = self.transit(self.reads(x))
        return halved

    def locals(self) -> list[nn.Conv2d]:
        """The convolutions that make the channels of each layer."""
        return [layer.local for layer in cast("list[DenseLayer]", list(self.layers))]

    def readers(self) -> list[Reads]:
        """Who reads the channels: the layers in their order, and the convolution behind them."""
        return [*(layer.reads for layer in cast("list[DenseLayer]", list(self.layers))), self.reads]

    @torch.no_grad()
    def scale(self, producer: nn.Conv2d, start: int, factors: Tensor) -> None:
        """Multiply the channels from `start` on, which `producer` makes, by factors above 0 that all readers undo."""
        producer.weight.mul_(factors.reshape(-1, 1, 1, 1))
        if producer.bias is not None:
            producer.bias.mul_(factors)
        for reader in self.readers():
            if len(reader.weight) > start:
                reader.weight[start : start + len(factors)].div_(factors)


class DenseTdnn(SpeakerNet):
    """The densely connected TDNN of a shape, its weights not yet trained."""

    def __init__(self, shape: TdnnShape = CAMPPLUS) -> None:
        super().__init__()
        self.shape = shape
        width = shape.image
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.image = nn.Sequential(*(BasicBlock(width, width, stride) for stride in ((2, 1), (1, 1)) * 2))
        self.narrow = nn.Conv2d(width, width, 3, (2, 1), padding=1)
        bins = shape.num_mel_bins
        for _ in range(3):
            bins = (bins - 1) // 2 + 1
        self.frame = nn.Conv2d(width, shape.first, (bins, 5), (1, 2), padding=(0, 2))
        channels, blocks = shape.first, []
        for layers, dilation in zip(shape.layers, shape.dilations, strict=True):
            blocks.append(DenseBlock(channels, shape, layers, dilation))
            channels = blocks[-1].channels // 2
        self.blocks = nn.ModuleList(blocks)
        self.linear = nn.Linear(2 * channels, shape.embedding_dim)

    def segments(self, frames: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Two matrices (frames, segments): the first gives each segment's mean plus that of all frames; the second has
        a 1 where a frame lies in a segment."""
        segment_of = torch.arange(frames, device=device) // self.shape.segment
        within = (segment_of[:, None] == segment_of[None, :: self.shape.segment]).float()
        return within / within.sum(dim=0) + 1.0 / frames, within

    def forward(self, features: Tensor) -> Tensor:
        x = features.transpose(1, 2).unsqueeze(1)
        x = torch.relu_(self.stem(x.contiguous(memory_format=torch.channels_last)))
        x = torch.relu_(self.narrow(self.image(x)))
        x = torch.relu_(self.frame(x))
        means, within = self.segments(x.shape[-1], x.device)
        for block in self.blocks:
            x = block(x, means, within)
        embeddings: Tensor = self.linear(statistics(torch.relu(x)))
        return embeddings


def is_public(weights: Mapping[str, Any]) -> bool:
    """Whether what a .pt file holds are published weights, of CAM++ or like it, rather than a checkpoint."""
    return "head.conv1.weight" in weights


def load_public_tdnn(path: Path) -> DenseTdnn:
    """The published CAM++ (3D-Speaker, Chinese and English, Apache-2.0) from its .pt file, batch norms folded.

    Raises
    ------
    ValueError
        If the file's weights are not those of CAM++.
    """
    published = torch.load(path, map_location="cpu", weights_only=True)
    model = DenseTdnn(CAMPPLUS)
    weights = _Published(published)
    try:
        state = _translated(model, weights)
        model.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{path}: expected the published weights of CAM++ ({error})") from error
    if left := weights.left():
        raise ValueError(f"{path}: expected the published weights of CAM++ alone, got {sorted(left)[:3]} too")
    _even_out(model)
    return model.eval()


@torch.no_grad()
def _even_out(model: DenseTdnn) -> None:
    """The same function with weights of more equal size, so that one learning rate suits all of them.

    Some channels of the published weights are so small that the first steps of training would drown them, and those
    who read them enlarge them hundreds of times. Each channel of a dense block is scaled as its first reader scales
    it; the residual blocks' numbers, which are large, by a common factor, which ReLU keeps.
    """
    before = model.frame
    for block in cast("list[DenseBlock]", list(model.blocks)):
        start = 0
        for producer, first in zip((before, *block.locals()), block.readers(), strict=True):
            stop = start + producer.out_channels
            block.scale(producer, start, first.weight[start:stop].abs().clone())
            start = stop
        before = block.transit
    model.stem.weight.div_(IMAGE_SCALE)
    model.frame.weight.mul_(IMAGE_SCALE)
    for layer in (model.stem, *model.image.modules(), model.narrow):
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            layer.bias.div_(IMAGE_SCALE)


class _Published:
    """The published weights by their names, and which of them were used."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}
        self._used: set[str] = set()

    def left(self) -> set[str]:
        return self._weights.keys() - self._used

    def of(self, name: str) -> Tensor:
        self._used.add(name)
        return self._weights[name]

    def norm(self, name: str) -> tuple[Tensor, Tensor]:
        """Scale and offset that a batch norm is in evaluation."""
        scale = torch.rsqrt(self.of(f"{name}.running_var") + NORM_EPSILON)
        offset = -self.of(f"{name}.running_mean") * scale
        if f"{name}.weight" in self._weights:
            weight = self.of(f"{name}.weight")
            scale, offset = scale * weight, offset * weight + self.of(f"{name}.bias")
        return scale, offset

    def folded(self, convolution: str, norm: str) -> dict[str, Tensor]:
        """Weight and bias of a convolution and the batch norm behind it."""
        weight = self.of(f"{convolution}.weight")
        scale, offset = self.norm(norm)
        return {"weight": _image(weight) * scale.reshape(-1, 1, 1, 1), "bias": offset}

    def plain(self, name: str) -> dict[str, Tensor]:
        return {"weight": _image(self.of(f"{name}.weight")), "bias": self.of(f"{name}.bias")}

    def reads(self, name: str) -> dict[str, Tensor]:
        return dict(zip(("weight", "bias"), self.norm(name), strict=True))


def _image(weight: Tensor) -> Tensor:
    """Weights of a convolution over frames as those of one over bins and frames."""
    return weight if weight.ndim == 4 else weight.unsqueeze(2)


def _translated(model: DenseTdnn, published: _Published) -> dict[str, Tensor]:
    """The published weights by our names."""
    parts: dict[str, dict[str, Tensor]] = {"stem": published.folded("head.conv1", "head.bn1")}
    for number, block in enumerate(model.image):
        theirs = f"head.layer{number // 2 + 1}.{number % 2}"
        for layer in (1, 2):
            parts[f"image.{number}.conv{layer}"] = published.folded(f"{theirs}.conv{layer}", f"{theirs}.bn{layer}")
        if isinstance(block.shortcut, nn.Conv2d):
            parts[f"image.{number}.shortcut"] = published.folded(f"{theirs}.shortcut.0", f"{theirs}.shortcut.1")
    parts["narrow"] = published.folded("head.conv2", "head.bn2")
    frame = published.folded("xvector.tdnn.linear", "xvector.tdnn.nonlinear.batchnorm")
    parts["frame"] = {"weight": frame["weight"].reshape(model.frame.weight.shape), "bias": frame["bias"]}
    for b, layers in enumerate(model.shape.layers):
        for i in range(layers):
            theirs, ours = f"xvector.block{b + 1}.tdnnd{i + 1}", f"blocks.{b}.layers.{i}"
            parts[f"{ours}.reads"] = published.reads(f"{theirs}.nonlinear1.batchnorm")
            parts[f"{ours}.squeeze"] = published.folded(f"{theirs}.linear1", f"{theirs}.nonlinear2.batchnorm")
            parts[f"{ours}.local"] = {"weight": _image(published.of(f"{theirs}.cam_layer.linear_local.weight"))}
            parts[f"{ours}.mask.squeeze"] = published.plain(f"{theirs}.cam_layer.linear1")
            parts[f"{ours}.mask.excite"] = published.plain(f"{theirs}.cam_layer.linear2")
        transit = f"xvector.transit{b + 1}"
        parts[f"blocks.{b}.reads"] = published.reads(f"{transit}.nonlinear.batchnorm")
        if b + 1 < len(model.shape.layers):
            weight = _image(published.of(f"{transit}.linear.weight"))
            parts[f"blocks.{b}.transit"] = {"weight": weight, "bias": torch.zeros(len(weight))}
        else:  # the batch norm before the last ReLU stands behind it
            parts[f"blocks.{b}.transit"] = published.folded(f"{transit}.linear", "xvector.out_nonlinear.batchnorm")
    dense = published.folded("xvector.dense.linear", "xvector.dense.nonlinear.batchnorm")
    parts["linear"] = {"weight": dense["weight"].flatten(1), "bias": dense["bias"]}
    return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
