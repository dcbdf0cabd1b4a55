"""Development speech on a sphere: what the corpora would be if the theory held."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.quality import SpeechQuality
from train.calibration.channels import CONDITIONS, choose_parts
from train.calibration.speech import DevelopmentSpeech

DIM = 24


@dataclasses.dataclass(frozen=True)
class Clip:
    corpus: str
    speaker: str
    gender: str
    emotion: str
    seconds: float = 3.0


def unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def speech(
    seed: int, speakers: int, emotions: int = 4, neutral: int = 6, corpora: int = 3, envelopes: bool = False
) -> DevelopmentSpeech:
    """Speakers on a sphere; an emotion raises the pitch, and the further it does, the further the embedding moves."""
    rng = np.random.default_rng(seed)
    clips, embeddings, qualities = [], [], []
    for corpus in range(corpora):
        for number in range(speakers):
            centre = rng.standard_normal(DIM)
            centre /= np.linalg.norm(centre)
            pitch = rng.normal(4.8, 0.08)
            shape = rng.normal(0, 1.5, 8) if envelopes else np.zeros(8)
            for clip in range(neutral + emotions * 4):
                emotion = 0 if clip < neutral else 1 + (clip - neutral) % emotions
                rise = 0.0 if emotion == 0 else rng.uniform(0.0, 0.8)
                drift = rng.standard_normal(DIM) * (0.06 + 0.5 * rise)
                embedding = centre + drift
                embeddings.append(embedding / np.linalg.norm(embedding))
                qualities.append(
                    SpeechQuality(
                        rng.uniform(1.0, 5.0), 30.0, 0.0, -20.0, pitch + rise + rng.normal(0, 0.03), 0.1, -5.0, 0.5,
                        tuple(shape + rng.normal(0, 1.0, 8)) if envelopes else None,
                    )
                )  # fmt: skip
                label = "neutral" if emotion == 0 else f"emotion{emotion}"
                clips.append(Clip(f"corpus{corpus}", f"{corpus}-{number}", "female", label))
    return DevelopmentSpeech(clips, np.array(embeddings, np.float32), qualities)


def in_noise(quiet: DevelopmentSpeech, seed: int = 3) -> DevelopmentSpeech:
    """The same clips, and behind them each once more in noise, which moves its embedding and lowers its norm."""
    rng = np.random.default_rng(seed)
    harm = rng.uniform(0.0, 1.0, len(quiet.clips))
    moved = unit(quiet.embeddings + 0.25 * harm[:, None] * rng.standard_normal(quiet.embeddings.shape))
    clear = [dataclasses.replace(each, log_embedding_norm=1.0) for each in quiet.qualities]
    noisy = [
        dataclasses.replace(each, snr_db=25.0 - 20.0 * x, log_embedding_norm=1.0 - x)
        for each, x in zip(quiet.qualities, harm, strict=True)
    ]
    own = range(len(quiet.clips))
    return DevelopmentSpeech(
        [*quiet.clips, *quiet.clips],
        np.concatenate((quiet.embeddings, moved)),
        [*clear, *noisy],
        [*own, *own],
    )


def along_an_axis(seed: int = 3) -> tuple[DevelopmentSpeech, NDArray[np.float64]]:
    """Speech in which every emotion moves everybody along one axis, and as far loses the voice elsewhere."""
    rng = np.random.default_rng(seed)
    plain = speech(seed, 12, emotions=2)
    axis = np.linalg.qr(rng.standard_normal((DIM, 1)))[0][:, 0]
    moved = plain.embeddings.astype(np.float64)
    others = np.linalg.qr(rng.standard_normal((DIM, 6)))[0].T
    for i, clip in enumerate(plain.clips):
        if clip.emotion != "neutral":
            far = rng.uniform(0.2, 1.2)
            moved[i] += far * axis + 1.5 * far * others[rng.integers(6)] * rng.choice([-1.0, 1.0])
    return DevelopmentSpeech(plain.clips, unit(moved), plain.qualities), axis


def through_all(plain: DevelopmentSpeech, alike: float = 0.6, seed: int = 5) -> DevelopmentSpeech:
    """The same clips, and some of each speaker through all conditions; a telephone makes all voices `alike`."""
    rng = np.random.default_rng(seed)
    common = np.linalg.qr(rng.standard_normal((DIM, 1)))[0][:, 0]
    wide = [dataclasses.replace(each, bandwidth_hz=8000.0, decay_s=0.2) for each in plain.qualities]
    clips, embeddings, qualities = [*plain.clips], [*plain.embeddings], [*wide]
    original, conditions, roles = [*range(len(clips))], ["clean"] * len(clips), [""] * len(clips)
    for corpus in sorted({clip.corpus for clip in plain.clips}):
        usable = [i for i, clip in enumerate(plain.clips) if clip.corpus == corpus]
        for part in choose_parts(plain.clips, usable):
            roles[part.index] = part.role
            for condition in CONDITIONS[1:]:
                narrow = condition == "telephone"
                moved = plain.embeddings[part.index] + (alike * common if narrow else 0.0)
                clips.append(plain.clips[part.index])
                embeddings.append(moved)
                qualities.append(dataclasses.replace(wide[part.index], bandwidth_hz=3750.0 if narrow else 8000.0))
                original.append(part.index)
                conditions.append(condition)
                roles.append(part.role)
    return DevelopmentSpeech(clips, unit(np.array(embeddings)), qualities, original, conditions, roles)
