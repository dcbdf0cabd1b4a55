"""The linear layer fitted anew to other targets, in one step: ridge regression on the pooled statistics.

A few hundred steps of gradient descent learn the training corpora's peculiarities before they learn what
the joint target of several teachers holds of voices in general. The linear layer alone, drawn back to the
initial one by a penalty, takes from that target only what the frozen statistics hold linearly, and gains a
little on every corpus that was left out instead of much on some (RESULTS.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from emoinv_edge.features import log_mel, mean_normalise
from emoinv_edge.spec import EncoderSpec

from .model import ResidualEncoder, autocast, channels_last, statistics
from .pairs import Source

__all__ = ["pooled_statistics", "refit_linear", "solve_ridge"]

FRAMES = (104, 200, 296)  # few: see `pairs.LENGTHS`
BATCH = 32


def pooled_statistics(
    encoder: ResidualEncoder,
    spec: EncoderSpec,
    waveform: Callable[[int], NDArray[np.float32]],
    samples: Iterable[int],
) -> NDArray[np.float32]:
    """What enters the linear layer for the beginning of each clip, 1 to 3 s; a shorter clip is repeated.

    Returns
    -------
    ndarray, shape (clips, linear.in_features), float32
    """
    frames = [max((few for few in FRAMES if few <= spec.num_frames(n)), default=FRAMES[0]) for n in samples]
    out = np.empty((len(frames), encoder.linear.in_features), np.float32)
    encoder = channels_last(encoder.eval())
    for length in FRAMES:
        of_length = [index for index, count in enumerate(frames) if count == length]
        for first in range(0, len(of_length), BATCH):
            batch = of_length[first : first + BATCH]
            longest = spec.frame_length + (length - 1) * spec.frame_shift
            features = [
                mean_normalise(np.resize(log_mel(waveform(index)[:longest], spec), (length, spec.num_mel_bins)))
                for index in batch
            ]
            with torch.inference_mode(), autocast():
                pooled = statistics(encoder.frames(torch.from_numpy(np.stack(features))))
            out[batch] = pooled.numpy()
    return out


def solve_ridge(
    inputs: NDArray[np.float32], wanted: NDArray[np.float32], penalty: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights and bias that bring `inputs` nearest to `wanted`, each input scaled to unit variance.

    Parameters
    ----------
    inputs : ndarray, shape (clips, features)
    wanted : ndarray, shape (clips, outputs)
    penalty : float
        Of the squared weights, relative to the variance of one input; above 0, so that more features
        than clips are no trouble.

    Returns
    -------
    weights, shape (outputs, features); bias, shape (outputs,)
    """
    if penalty <= 0.0:
        raise ValueError(f"expected a penalty above 0, got {penalty}")
    middle, spread = inputs.mean(axis=0), inputs.std(axis=0) + 1e-4
    scaled = (inputs - middle) / spread
    gram = (scaled.T @ scaled).astype(np.float64) / len(scaled)
    offset = wanted.mean(axis=0, dtype=np.float64)
    against = (scaled.T @ (wanted - offset)).astype(np.float64) / len(scaled)
    solved = np.linalg.solve(gram + penalty * np.eye(len(gram)), against) / spread[:, None]
    return solved.T, offset - solved.T @ middle


def refit_linear(
    encoder: ResidualEncoder, spec: EncoderSpec, sources: Iterable[Source], penalty: float
) -> ResidualEncoder:
    """A copy of `encoder` whose linear layer is moved towards the sources' targets.

    Parameters
    ----------
    sources : iterable of Source
        Their held-out speakers are left out, their shares play no part.
    penalty : float
        Holds the layer to its initial weights (`solve_ridge` of the change); infinity would leave it as it is.
    """
    found = [_of_source(encoder, spec, source) for source in sources]
    inputs, wanted = (np.concatenate(rows) for rows in zip(*found, strict=True))
    with torch.no_grad():
        now = (encoder.linear(torch.from_numpy(inputs)) - encoder.mean_vector).numpy()
    # The embedding keeps its length: the targets are of unit norm, and only the direction counts.
    wanted = wanted * np.linalg.norm(now, axis=1, keepdims=True)
    weights, bias = solve_ridge(inputs, wanted - now, penalty)
    moved = ResidualEncoder(encoder.shape)
    moved.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        moved.linear.weight.add_(torch.from_numpy(weights.astype(np.float32)))
        moved.linear.bias.add_(torch.from_numpy(bias.astype(np.float32)))
    return moved.eval()


def _of_source(
    encoder: ResidualEncoder, spec: EncoderSpec, source: Source
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Pooled statistics and targets of the clips that may be used, a row each."""
    clips, rows = source.clips, source.embeddings
    used = [
        index
        for index, clip in enumerate(clips.clips)
        if clip.speaker not in source.held_out and np.isfinite(rows[index]).all()
    ]
    samples = [clips.clips[index].samples for index in used]
    return pooled_statistics(encoder, spec, lambda i: clips.waveform(used[i]), samples), rows[used]
