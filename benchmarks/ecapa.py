"""SpeechBrain's ECAPA-TDNN, forward pass alone, over its published state dict.

SpeechBrain itself does not import beside a torch of another build, so the network and its front end are
written out here; names in the state dict are SpeechBrain's.

References
----------
Desplanques et al., arXiv:2005.07143; Ravanelli et al., arXiv:2106.04624.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Ecapa"]

SAMPLE_RATE = 16000
FFT, HOP, MELS = 400, 160, 80
TOP_DB = 80.0
SCALE = 8  # parts of a Res2Net block
DILATIONS = (1, 2, 3, 4)


def mel_bank() -> Tensor:
    """SpeechBrain's triangular filters, shape (bins, mels); both sides of a filter have the width of its left one."""
    low, high = 0.0, 2595.0 * math.log10(1.0 + SAMPLE_RATE / 2 / 700.0)
    hz = 700.0 * (10.0 ** (torch.linspace(low, high, MELS + 2) / 2595.0) - 1.0)
    width = (hz[1:] - hz[:-1])[:-1]
    slope = (torch.linspace(0.0, SAMPLE_RATE // 2, FFT // 2 + 1)[:, None] - hz[1:-1]) / width
    return torch.clamp(torch.minimum(slope + 1.0, 1.0 - slope), min=0.0)


class Ecapa:
    """Waveform, float32 [-1, 1] at 16 kHz, to embedding of 192 numbers."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self._state = state
        self._window = torch.hamming_window(FFT)
        self._bank = mel_bank()

    def __call__(self, waveform: Tensor) -> Tensor:
        x = self.features(waveform)
        outputs = []
        x = self._tdnn(x, "blocks.0", 1)
        for block in (1, 2, 3):
            x = self._block(x, f"blocks.{block}", DILATIONS[block])
            outputs.append(x)
        x = self._tdnn(torch.cat(outputs, dim=1), "mfa", 1)
        x = self._norm(self._pool(x), "asp_bn.norm")
        return self._conv(x, "fc.conv", 1)[0, :, 0]

    def features(self, waveform: Tensor) -> Tensor:
        """Log-mel energies in dB, mean-normalised, shape (1, mels, frames)."""
        spectrum = torch.stft(
            waveform, FFT, HOP, window=self._window, center=True, pad_mode="constant", return_complex=True
        )
        energies = 10.0 * torch.log10(torch.clamp(spectrum.abs().square().T @ self._bank, min=1e-10))
        energies = torch.maximum(energies, energies.max() - TOP_DB)
        return (energies - energies.mean(dim=0)).T[None]

    def _conv(self, x: Tensor, name: str, dilation: int) -> Tensor:
        weight, bias = self._state[f"{name}.weight"], self._state[f"{name}.bias"]
        reach = dilation * (weight.shape[-1] - 1) // 2
        if reach:
            x = F.pad(x, (reach, reach), mode="reflect")
        return F.conv1d(x, weight, bias, dilation=dilation)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        mean, variance, weight, bias = (
            self._state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, variance, weight, bias)

    def _tdnn(self, x: Tensor, name: str, dilation: int) -> Tensor:
        return self._norm(torch.relu(self._conv(x, f"{name}.conv.conv", dilation)), f"{name}.norm.norm")

    def _block(self, x: Tensor, name: str, dilation: int) -> Tensor:
        """SE-Res2Net: 1x1, dilated convolutions over parts of the channels, 1x1, squeeze and excitation, residual."""
        parts = torch.chunk(self._tdnn(x, f"{name}.tdnn1", 1), SCALE, dim=1)
        outputs = [parts[0]]
        for i, part in enumerate(parts[1:]):
            source = part if i == 0 else part + outputs[-1]
            outputs.append(self._tdnn(source, f"{name}.res2net_block.blocks.{i}", dilation))
        y = self._tdnn(torch.cat(outputs, dim=1), f"{name}.tdnn2", 1)
        gate = torch.relu(self._conv(y.mean(dim=2, keepdim=True), f"{name}.se_block.conv1.conv", 1))
        return y * torch.sigmoid(self._conv(gate, f"{name}.se_block.conv2.conv", 1)) + x

    def _pool(self, x: Tensor) -> Tensor:
        """Attentive mean and standard deviation over time."""
        mean = x.mean(dim=2, keepdim=True)
        std = (x - mean).square().mean(dim=2, keepdim=True).clamp(min=1e-12).sqrt()
        context = torch.cat((x, mean.expand_as(x), std.expand_as(x)), dim=1)
        attention = self._conv(torch.tanh(self._tdnn(context, "asp.tdnn", 1)), "asp.conv.conv", 1).softmax(dim=2)
        mean = (attention * x).sum(dim=2, keepdim=True)
        std = (attention * (x - mean).square()).sum(dim=2, keepdim=True).clamp(min=1e-12).sqrt()
        return torch.cat((mean, std), dim=1)
