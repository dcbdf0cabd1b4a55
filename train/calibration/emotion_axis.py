"""The axis along which emotion moves every voice's embedding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from emoinv_edge.calibration import EmotionAxis

from ..evaluation.clips import is_neutral
from .speech import DevelopmentSpeech

__all__ = ["fit_axis"]


def fit_axis(speech: DevelopmentSpeech, corpora: Sequence[str]) -> EmotionAxis:
    """The mean direction, over the speakers of some corpora, from neutral to emotional speech of the same speaker.

    Every speaker weighs the same, and every emotion of one speaker does; clips in noise take no part.

    Parameters
    ----------
    speech : DevelopmentSpeech
    corpora : sequence of str
        Whose speakers are heard neutral and in another emotion.

    Raises
    ------
    ValueError
        If no speaker of these corpora is.
    """
    copies = speech.copies()
    emotions: dict[tuple[str, str], dict[str, list[int]]] = {}
    for i, clip in enumerate(speech.clips):
        if clip.corpus in corpora and i not in copies:
            label = "neutral" if is_neutral(clip) else clip.emotion
            emotions.setdefault((clip.corpus, clip.speaker), {}).setdefault(label, []).append(i)
    moves = []
    for own in emotions.values():
        means = {label: speech.embeddings[found].mean(axis=0, dtype=np.float64) for label, found in own.items()}
        neutral = means.pop("neutral", None)
        if neutral is not None and means:
            profile = neutral / np.linalg.norm(neutral)
            moves.append(np.mean(list(means.values()), axis=0) - profile)
    if not moves:
        raise ValueError(
            f"expected speakers of {', '.join(corpora) or 'some corpora'} who are heard neutral and in another "
            "emotion, got none; name corpora of acted speech"
        )
    axis = np.mean(moves, axis=0)
    return EmotionAxis((axis / np.linalg.norm(axis)).astype("<f4").tobytes())
