"""Embeddings of many clips by a torch encoder: whole clips, grouped by length, bfloat16 where the CPU has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from emoinv_edge.features import log_mel, mean_normalise
from emoinv_edge.spec import EncoderSpec

from .model import ResidualEncoder

__all__ = ["autocast", "embed_waveforms"]

FRAMES_PER_BATCH = 8000
LENGTH_STEP = 8  # clips of one batch differ by fewer frames than this; the longer ones are cut by so much


def autocast(device: str = "cpu") -> torch.autocast:
    """bfloat16 where the processor multiplies it faster (AMX or AVX512-BF16, any recent GPU), float32 elsewhere."""
    supported = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    fast = device != "cpu" or any(getattr(torch.cpu, name, lambda: False)() for name in supported)
    return torch.autocast(device, torch.bfloat16, enabled=fast)


def embed_waveforms(
    model: ResidualEncoder,
    spec: EncoderSpec,
    waveform: Callable[[int], NDArray[np.float32]],
    samples: Sequence[int],
    progress: Callable[[int], None] = lambda done: None,
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
    model = model.eval().to(memory_format=torch.channels_last)
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
        progress(done)
        start = stop
    return out


def _exactly(features: NDArray[np.float32], frames: int) -> NDArray[np.float32]:
    """The first `frames` frames; a clip shorter than that is repeated."""
    if len(features) >= frames:
        return features[:frames]
    return np.take(features, np.arange(frames), axis=0, mode="wrap")
