"""Channels: what the channels of a recording have to do with each other, measured while they are mixed.

Mixing is right for two microphones before one person. It destroys speech where one channel is
inverted, buries it where one channel is noise, and adds two people where each has a channel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["ChannelComparison"]

FRAME_S = 0.02
LONGEST_S = 600.0  # what comes later is not looked at
FEWEST_FRAMES = 50
MOST_CHANNELS = 16

STEADY_DB = 6.0  # a channel whose level varies by less is noise; speech varies by 20 to 40 dB
VARIED_DB = 15.0
MASKING_DB = 25.0  # noise further than this below the speech does no harm
# Channels hold different sound where their waveforms and their levels correlate by less: two microphones before one
# person share levels at least.
SHARED_WAVEFORM = 0.4
SHARED_LEVEL = 0.6
OPPOSED = -0.8


class ChannelComparison:
    """Compares the channels of a recording that comes in blocks."""

    def __init__(self) -> None:
        self._moments: list[NDArray[np.float32]] = []  # of each frame: the channels' covariances
        self._seconds = 0.0

    def add(self, block: NDArray[np.floating], sample_rate: int) -> None:
        """Take a block, shape (samples, channels); frames do not go across blocks."""
        length = round(FRAME_S * sample_rate)
        frames = len(block) // length
        channels = block.shape[1]
        if self._seconds > LONGEST_S or not 1 < channels <= MOST_CHANNELS or not frames:
            return
        if self._moments and self._moments[0].shape[1] != channels:  # another recording begins
            return
        self._seconds += frames * FRAME_S
        cut = np.ascontiguousarray(block[: frames * length].T, np.float32).reshape(channels, frames, length)
        cut -= cut.mean(axis=2, keepdims=True)
        moments = np.empty((frames, channels, channels), np.float32)
        for one in range(channels):
            for two in range(one + 1):
                moments[:, one, two] = moments[:, two, one] = np.einsum("fl,fl->f", cut[one], cut[two]) / length
        self._moments.append(moments)

    def opposed(self) -> tuple[int, int] | None:
        """The numbers, from 1, of two channels whose speech is inverted against each other, if mixing cancels it."""
        if not self._moments:
            return None
        moments = np.concatenate(self._moments).astype(np.float64)
        speech = _varying(moments)
        power = np.diagonal(speech).clip(1e-15)
        if power.max() <= 1e-12 or speech.sum() > 0.2 * power.sum():
            return None
        first = int(np.argmax(power))
        correlation = speech[first] / np.sqrt(power[first] * power)
        second = int(np.argmin(correlation))
        if correlation[second] > OPPOSED:
            return None
        return min(first, second) + 1, max(first, second) + 1

    def notes(self) -> list[str]:
        """What mixing these channels did harm to, for the user to read."""
        if not self._moments:
            return []
        moments = np.concatenate(self._moments).astype(np.float64)
        if len(moments) < FEWEST_FRAMES:
            return []
        levels = 10.0 * np.log10(np.diagonal(moments, axis1=1, axis2=2) + 1e-12)
        quiet, middle, loud = np.percentile(levels, (10, 50, 95), axis=0)
        varied = [int(k) for k in np.flatnonzero(loud - quiet > VARIED_DB)]
        if not varied:
            return []
        best = max(varied, key=lambda k: float(loud[k]))
        masking = (loud - quiet < STEADY_DB) & (middle > max(-90.0, loud[best] - MASKING_DB))
        notes = [
            f"channel {k + 1} is steady noise, which mixing added to channel {best + 1}; "
            f"take that one alone: channel={best + 1} (--channel {best + 1})"
            for k in np.flatnonzero(masking)
        ]
        others = [k for k in varied if k != best and loud[k] > loud[best] - MASKING_DB]
        speech = _varying(moments)
        power = np.diagonal(speech).clip(1e-15)
        for k in others:
            waveforms = abs(speech[best, k]) / np.sqrt(power[best] * power[k])
            if waveforms < SHARED_WAVEFORM and np.corrcoef(levels[:, best], levels[:, k])[0, 1] < SHARED_LEVEL:
                one, two = sorted((best + 1, k + 1))
                notes.append(
                    f"channels {one} and {two} hold different sound, as of two people in a call; "
                    f"take one of them: channel={one} (--channel {one}), or channel={two}"
                )
        return notes


def _varying(moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """The covariances of what comes and goes, as speech does: loud frames less quiet ones, so that noise and hum go.

    Where nothing comes and goes, the covariances of all there is.
    """
    power = np.diagonal(moments, axis1=1, axis2=2)
    order = np.argsort((power / power.mean(axis=0).clip(1e-15)).sum(axis=1))
    third = max(1, len(order) // 3)
    mean: NDArray[np.float64] = moments.mean(axis=0)
    varying: NDArray[np.float64] = moments[order[-third:]].mean(axis=0) - moments[order[:third]].mean(axis=0)
    return varying if np.trace(varying) > 0.1 * np.trace(mean) else mean
