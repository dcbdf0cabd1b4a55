"""Encoders in use: their checkpoints, how they are computed fast, and the embeddings of clips."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from emoinv_edge.features import log_mel, mean_normalise
from emoinv_edge.files import write_atomically
from emoinv_edge.spec import EncoderSpec

from .branches import built, read_shape
from .progress import Report, silent
from .residual import (
    BASE,
    VARIANCE_FLOOR,
    AnyNet,
    BasicBlock,
    EncoderShape,
    ResidualEncoder,
    SpeakerNet,
    load_public_weights,
    statistics,
)
from .tdnn import PUBLIC_SPEC, is_public, load_public_tdnn

__all__ = [
    "BASE",
    "VARIANCE_FLOOR",
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

FRAMES_PER_BATCH = 8000  # of `embed_waveforms`
LENGTH_STEP = 8  # clips of one batch differ by fewer frames than this; the longer ones are cut by so much

AnyModule = TypeVar("AnyModule", bound=nn.Module)


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
