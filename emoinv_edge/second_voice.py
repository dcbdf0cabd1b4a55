"""Does a second person speak in this recording? The message about it, and where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .utterance import Refusal, Utterance

if TYPE_CHECKING:
    from .guards import Guards

__all__ = ["second_voice", "window_times"]


def window_times(guards: Guards | None, heard: Utterance, sample_rate: int) -> list[float] | None:
    """Where each window of an utterance's embedding begins in the recording, in seconds; None without windows.

    Parameters
    ----------
    guards : Guards or None
        Of the model.
    heard : Utterance
    sample_rate : int
        The encoder's.
    """
    embedding = heard.embedding
    if guards is None or guards.windows is None or embedding is None or embedding.windows is None:
        return None
    count, hop = len(embedding.windows), guards.windows.hop_s * sample_rate
    length = sum(end - start for start, end in heard.segments)
    whole = (length - guards.windows.window_s * sample_rate) / max(1, count - 1)
    if whole > 1.5 * hop:  # long speech, embedded in parts: no window lies astride two of them
        hop = whole
    return [heard.position(round(index * hop)) / sample_rate for index in range(count)]


def second_voice(
    guards: Guards | None,
    windows: NDArray[np.float32] | None,
    times: Sequence[float] | None = None,
    voice: NDArray[np.float32] | None = None,
) -> Refusal | None:
    """Why speech is not one person's; None if it may be, or is too short to decide, or the model gives no windows.

    Parameters
    ----------
    guards : Guards or None
        Of the model.
    windows : ndarray, shape (windows, embedding_dim), float32 of unit norm, or None
        `Embedding.windows`.
    times : sequence of float, optional
        Where each window begins in the audio, in seconds; without them, in the speech alone.
    voice : ndarray, shape (embedding_dim,), float32 of unit norm, optional
        The mean embedding of the profile that the speech would be accepted as: both parts must fit it.
    """
    if guards is None or windows is None:
        return None
    test = guards.windows if voice is None else guards.door
    if test is None:
        return None
    change = test.find(windows, voice)
    if change is None or change.score < 0.0:
        return None
    starts = [index * test.hop_s for index in range(len(windows))] if times is None else times
    ends = starts[change.last] + test.window_s
    opens, closes = change.first < test.gap, change.last + test.gap >= len(windows)  # no rest before, or after
    if opens:  # either may be the second: what is known is where the voice changes
        where = f"from about {ends:.1f} s on"
    else:
        where = f"from about {starts[change.first]:.1f} {'s on' if closes else f'to {ends:.1f} s'}"
    return Refusal("second_voice", f"a second voice: somebody else seems to speak {where}; let one person speak alone")
