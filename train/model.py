"""The residual encoder: features -> embedding; one class for base, small and the public weights.

A convolution, four stages of basic blocks, the mean and standard deviation over time, and a linear
layer (He et al. 2016; as r-vector in Zeinali et al. 2019, arXiv:1910.12592). There is no batch norm:
the public weights come with theirs folded into the convolutions.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from emoinv_edge.features import log_mel, mean_normalise
from emoinv_edge.files import write_atomically
from emoinv_edge.spec import EncoderSpec

from .progress import Report, silent

__all__ = [
    "BASE",
    "AnyNet",
    "BasicBlock",
    "EncoderShape",
    "ResidualEncoder",
    "SpeakerNet",
    "autocast",
    "channels_last",
    "embed_waveforms",
    "has_bfloat16",
    "load_checkpoint",
    "load_public_weights",
    "load_start",
    "save_checkpoint",
    "statistics",
]

VARIANCE_FLOOR = 1e-7
FRAMES_PER_BATCH = 8000  # of `embed_waveforms`
LENGTH_STEP = 8  # clips of one batch differ by fewer frames than this; the longer ones are cut by so much

AnyModule = TypeVar("AnyModule", bound=nn.Module)


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


def save_checkpoint(path: Path, model: SpeakerNet, spec: EncoderSpec, **extra: Any) -> None:
    """Write weights, shape and spec atomically; `extra` holds plain values (corpora, history, parents)."""
    content = io.BytesIO()
    shape = dataclasses.asdict(model.shape)
    torch.save({"model": model.state_dict(), "shape": shape, "spec": spec.to_json(), **extra}, content)
    write_atomically(path, content.getvalue(), 0o666)


def load_checkpoint(path: Path) -> tuple[SpeakerNet, EncoderSpec, dict[str, Any]]:
    """Read what `save_checkpoint` wrote: the encoder, its spec, and everything else that was saved with it.

    The published CAM++ (campplus_cn_en_common.pt of 3D-Speaker) is read as well, with the spec of its own front end.
    """
    from .branches import built, read_shape
    from .tdnn import PUBLIC_SPEC, is_public, load_public_tdnn

    saved = torch.load(path, map_location="cpu", weights_only=True)
    if is_public(saved):
        return load_public_tdnn(path), PUBLIC_SPEC, {}
    missing = {"model", "shape", "spec"} - saved.keys()
    if missing:
        raise ValueError(f"{path}: not a checkpoint of this project, {sorted(missing)} missing")
    model = built(read_shape(saved.pop("shape")))
    model.load_state_dict(saved.pop("model"))
    return model, EncoderSpec.from_json(saved.pop("spec")), saved


def load_start(path: Path) -> tuple[ResidualEncoder, EncoderSpec, dict[str, Any]]:
    """The encoder that a run starts from, its spec and what it was made of: a checkpoint, or the public .onnx file.

    Raises
    ------
    ValueError
        If there is no such file, or it is neither.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give a checkpoint or the published ResNet34-LM .onnx")
    if path.suffix == ".onnx":
        return load_public_weights(path), EncoderSpec(name="base"), {}
    encoder, spec, saved = load_checkpoint(path)
    if not isinstance(encoder, ResidualEncoder):
        raise ValueError(f"{path}: expected a residual encoder to start from, got {type(encoder).__name__}")
    return encoder, spec, saved.get("provenance", {})


def channels_last(module: AnyModule, device: torch.device | str = "cpu") -> AnyModule:
    """Move a module, in place, to `device`, its kernels stored in the order in which convolutions compute fastest."""
    moved: AnyModule = module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def has_bfloat16(device: str = "cpu") -> bool:
    """Whether the processor multiplies bfloat16 faster: AMX or AVX512-BF16, any recent GPU."""
    supported = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return device != "cpu" or any(getattr(torch.cpu, name, lambda: False)() for name in supported)


def autocast(device: str = "cpu") -> torch.autocast:
    """bfloat16 where that is faster, float32 elsewhere."""
    return torch.autocast(device, torch.bfloat16, enabled=has_bfloat16(device))


def embed_waveforms(
    model: SpeakerNet,
    spec: EncoderSpec,
    waveform: Callable[[int], NDArray[np.float32]],
    samples: Sequence[int],
    progress: Report = silent,
) -> NDArray[np.float32]:
    """Embed clips, each as a whole.

    Parameters
    ----------
    waveform : callable
        Index -> samples, float32 in [-1, 1], at the spec's rate.
    samples : sequence of int
        Length of each clip; clips are grouped by it.

    Returns
    -------
    ndarray, shape (clips, embedding_dim), float32 of unit norm
    """
    frames = [max(spec.num_frames(n) // LENGTH_STEP * LENGTH_STEP, LENGTH_STEP) for n in samples]
    out = np.empty((len(samples), spec.embedding_dim), np.float32)
    order = sorted(range(len(samples)), key=lambda i: frames[i])
    model = channels_last(model.eval())
    start = done = 0
    while start < len(order):
        length = frames[order[start]]
        stop = start
        while stop < len(order) and frames[order[stop]] == length and (stop - start + 1) * length <= FRAMES_PER_BATCH:
            stop += 1
        stop = max(stop, start + 1)
        batch = order[start:stop]
        features = np.stack([mean_normalise(_exactly(log_mel(waveform(i), spec), length)) for i in batch])
        with torch.inference_mode(), autocast():
            embeddings = torch.nn.functional.normalize(model(torch.from_numpy(features)).float(), dim=1)
        out[batch] = embeddings.numpy()
        done += len(batch)
        progress(done, len(order))
        start = stop
    return out


def _exactly(features: NDArray[np.float32], frames: int) -> NDArray[np.float32]:
    """The first `frames` frames; a clip shorter than that is repeated."""
    if len(features) >= frames:
        return features[:frames]
    return np.take(features, np.arange(frames), axis=0, mode="wrap")
