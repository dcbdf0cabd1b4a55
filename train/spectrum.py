"""Features of many waveforms at once, in torch: `emoinv_edge.features` in two halves, with the power spectrum between.

Training changes speech in the power spectrum (`train.emotion_morph`), and on a GPU it makes its features there. The
window, the mel bank and every parameter are those of the front end, and a test holds the two together.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from emoinv_edge.features import mel_bank, window
from emoinv_edge.spec import EncoderSpec

__all__ = ["log_mel_of", "mean_normalise", "power_spectrum", "read_along"]


@functools.lru_cache(maxsize=8)
def _constants(spec: EncoderSpec, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(window(spec)).to(device), torch.from_numpy(mel_bank(spec)).to(device)


def power_spectrum(waveforms: Tensor, spec: EncoderSpec) -> Tensor:
    """Power of every frame, (batch, samples) in [-1, 1] to (batch, frames, fft_length // 2 + 1)."""
    frames = waveforms.unfold(1, spec.frame_length, spec.frame_shift)
    frames = frames - frames.mean(dim=2, keepdim=True)
    before = torch.cat((frames[:, :, :1], frames[:, :, :-1]), dim=2)
    windowed = (frames - spec.preemphasis * before) * _constants(spec, waveforms.device)[0]
    spectrum: Tensor = torch.fft.rfft(windowed, spec.fft_length, norm="forward")
    return spectrum.abs().square()


def log_mel_of(power: Tensor, spec: EncoderSpec) -> Tensor:
    """Log-mel features (batch, frames, num_mel_bins) of a power spectrum: `log_mel` from there on."""
    energies = power @ _constants(spec, power.device)[1]
    return torch.log(energies.clamp_min(torch.finfo(torch.float32).eps))


def mean_normalise(features: Tensor) -> Tensor:
    """Subtract each crop's mean over its frames."""
    return features - features.mean(dim=1, keepdim=True)


def read_along(values: Tensor, positions: Tensor, dim: int) -> Tensor:
    """Values (batch, frames, bins) at fractional positions along frames (1) or bins (2), linearly.

    Parameters
    ----------
    positions : Tensor, three-dimensional
        From 0 to the last; of size 1 along the other dimension where it is the same for all of it.
    """
    last = values.shape[dim] - 1
    below = positions.floor().clamp(0, max(last - 1, 0))
    shape = list(values.shape)
    shape[dim] = positions.shape[dim]
    index = below.long().expand(shape)
    low, high = values.gather(dim, index), values.gather(dim, (index + 1).clamp(max=last))
    return low + (high - low) * (positions - below)
