"""Labelled clips with made-up embeddings, and the protocols' words carried out trial by trial."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.calibration import Calibration, FarTable, Term
from tests.builders import quality
from train.evaluation.embeddings import Heard, unit

EMOTIONS = ("neutral", "angry", "sad")
CALIBRATION = Calibration(
    -8.0,
    (Term("cosine", 12.0, -1.0, 1.0), Term("f0_above", -1.0, 0.0, 1.0)),
    (FarTable(1, (0.5, 0.1, 0.01), (-2.0, 0.0, 2.0)),),
    60,
    "synthetic",
)


@dataclasses.dataclass(frozen=True)
class Clip:
    speaker: str
    gender: str = ""
    emotion: str = "neutral"
    seconds: float = 2.0
    corpus: str = "toy"


def population(
    seed: int = 0, speakers: int = 6, clips: int = 5, dim: int = 8
) -> tuple[list[Clip], NDArray[np.float32]]:
    """Clips of both genders and three emotions, and embeddings that lean on speaker and emotion."""
    rng = np.random.default_rng(seed)
    rows, vectors = [], []
    drifts = {emotion: rng.normal(0, 0.7, dim) for emotion in EMOTIONS}
    for s in range(speakers):
        centre = rng.normal(0, 1, dim)
        for emotion in EMOTIONS:
            for _ in range(clips):
                rows.append(Clip(f"s{s}", ("male", "female")[s % 2], emotion, float(rng.uniform(0.5, 8))))
                vectors.append(centre + drifts[emotion] + rng.normal(0, 0.8, dim))
    order = rng.permutation(len(rows))
    return [rows[i] for i in order], np.array(vectors)[order].astype(np.float32)


def brute_force(
    clips: list[Clip], embeddings: NDArray[np.float32], protocol: str
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(scores, target) straight from the protocols' words."""
    vectors = [v / np.linalg.norm(v) for v in embeddings.astype(np.float64)]
    trials = []
    if protocol == "enrol":
        for speaker in dict.fromkeys(clip.speaker for clip in clips):
            mine = [i for i, c in enumerate(clips) if c.speaker == speaker and c.emotion == "neutral"][:4]
            profile = np.mean([vectors[i] for i in mine], axis=0)
            for j, clip in enumerate(clips):
                if clip.emotion != "neutral" and clip.gender == clips[mine[0]].gender:
                    trials.append((profile @ vectors[j] / np.linalg.norm(profile), clip.speaker == speaker))
    else:
        for i, j in itertools.combinations(range(len(clips)), 2):
            a, b = clips[i], clips[j]
            wanted = {
                "pairs": a.emotion != b.emotion,
                "same": a.emotion == b.emotion,
                "neutral": a.emotion == b.emotion == "neutral",
            }[protocol]
            if wanted and a.gender == b.gender:
                trials.append((vectors[i] @ vectors[j], a.speaker == b.speaker))
    values, target = zip(*trials, strict=True)
    return np.array(values), np.array(target)


def as_heard(embeddings: NDArray[np.floating]) -> list[Heard | None]:
    """Clips of equal quality with these embeddings."""
    return [Heard(quality(), vector) for vector in unit(embeddings)]
