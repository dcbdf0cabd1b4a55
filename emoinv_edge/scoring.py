"""From a profile, a test embedding and the quality of both to evidence, and from evidence to an LLR.

`ProfileBank` holds many profiles and compares them all with one test in a few array operations; what the
evidence weighs is the `Calibration`'s matter.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .calibration import TERMS, Calibration, EmotionAxis
from .conditions import Heard
from .errors import EnrolmentError
from .quality import ENVELOPE_SIZE, SpeechQuality

if TYPE_CHECKING:
    from .profiles import Exemplar, Profile

__all__ = ["ProfileBank"]

# The norm's evidence is of the logarithm of the embedding's norm: an owner whom the encoder represents less well than
# at the enrolment gets a lower cosine. 0, which favours neither, where one side's norm is unknown.
# The envelope's evidence is the logarithm of its distance, in a unit between what is usual for one voice in
# two emotions and for two voices, so that 0 favours neither, as where the envelope is unknown. It is drawn
# towards 0 where there is little speech: so many seconds make up for what the words do to an envelope.
ENVELOPE_UNIT_DB = 4.5
ENVELOPE_SETTLES_S = 2.0
ADAPTED_SHARE = 1.0 / 3.0
# What adaptation may add to a score, in nats, however many utterances it added: with more, sessions of the nearest
# impostor, and the owner's own variety, raise what he is accepted for. It takes nothing away.
ADAPTED_GAIN = 0.1


class ProfileBank:
    """Profiles stacked for scoring: many are compared with one test embedding in a few array operations.

    Parameters
    ----------
    profiles : iterable of Profile
        Of one model, one embedding size.
    emotion_axis : EmotionAxis, optional
        `Calibration.emotion_axis` of the calibration that will score.

    Raises
    ------
    EnrolmentError
        If there is no profile.
    ValueError
        If the axis is that of embeddings of another size.
    """

    _alone: ProfileBank | None  # the same profiles without what adaptation added

    def __init__(self, profiles: Iterable[Profile], emotion_axis: EmotionAxis | None = None) -> None:
        kept = tuple(profiles)
        if not kept:
            raise EnrolmentError("expected at least one profile, got none; enrol a speaker first")
        self.names = tuple(profile.name for profile in kept)
        self._set(
            np.concatenate([[exemplar.embedding for exemplar in profile.exemplars] for profile in kept]),
            [exemplar.quality for profile in kept for exemplar in profile.exemplars],
            [len(profile.exemplars) for profile in kept],
            emotion_axis,
            [profile.num_adapted for profile in kept],
        )
        if any(profile.num_adapted for profile in kept):
            self._alone = ProfileBank.from_arrays(
                self.names,
                np.concatenate([[exemplar.embedding for exemplar in profile.enrolled] for profile in kept]),
                [exemplar.quality for profile in kept for exemplar in profile.enrolled],
                [len(profile.enrolled) for profile in kept],
                emotion_axis,
            )

    @classmethod
    def from_arrays(
        cls,
        names: Sequence[str],
        embeddings: NDArray[np.float32],
        qualities: Sequence[SpeechQuality],
        counts: Sequence[int],
        emotion_axis: EmotionAxis | None = None,
    ) -> ProfileBank:
        """A bank from stacked exemplars, shape (sum of counts, embedding_dim), of unit norm; for training."""
        if len(names) != len(counts) or not len(names) or min(counts) < 1:
            raise ValueError(f"expected a name and a count above 0 for each profile, got {len(names)} and {counts}")
        if sum(counts) != len(embeddings) or len(qualities) != len(embeddings):
            raise ValueError(f"expected {sum(counts)} exemplars, got {len(embeddings)} and {len(qualities)} qualities")
        bank = cls.__new__(cls)
        bank.names = tuple(names)
        bank._set(embeddings, qualities, counts, emotion_axis)
        return bank

    @classmethod
    def of_exemplars(cls, exemplars: Sequence[Exemplar], emotion_axis: EmotionAxis | None = None) -> ProfileBank:
        """A bank of one speaker, of whom no profile was made yet."""
        return cls.from_arrays(
            ["speaker"],
            np.stack([exemplar.embedding for exemplar in exemplars]),
            [exemplar.quality for exemplar in exemplars],
            [len(exemplars)],
            emotion_axis,
        )

    def _set(
        self,
        embeddings: NDArray[np.float32],
        qualities: Sequence[SpeechQuality],
        counts: Sequence[int],
        emotion_axis: EmotionAxis | None,
        adapted: Sequence[int] | None = None,
    ) -> None:
        if emotion_axis is not None and emotion_axis.dim != embeddings.shape[1]:
            raise ValueError(
                f"expected an emotion axis of embeddings of {embeddings.shape[1]} numbers, got {emotion_axis.dim}; "
                "calibrate again"
            )
        self._alone = None
        self._shape = embeddings.shape[1:]
        self.emotion_axis = emotion_axis
        sizes = np.asarray(counts, np.int64)
        self._starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
        self._weights = _weights(sizes, adapted)
        seconds = np.array([quality.net_speech_s for quality in qualities])
        self._seconds = np.add.reduceat(seconds * self._weights, self._starts)
        self._f0 = self._mean([quality.log_f0_mean for quality in qualities])
        shapes = [quality.envelope or (math.nan,) * ENVELOPE_SIZE for quality in qualities]
        self._envelope = np.stack([self._mean(column) for column in zip(*shapes, strict=True)], axis=1)
        self._norm = self._mean([quality.log_embedding_norm for quality in qualities])
        self._bandwidth = self._mean([quality.bandwidth_hz for quality in qualities])
        self._snr = self._mean([quality.snr_db for quality in qualities])
        self._decay = self._mean([quality.decay_s for quality in qualities])
        self._centroids = self._means(np.ascontiguousarray(embeddings, np.float32))
        self._axis = None if emotion_axis is None else emotion_axis.array()
        self._on_axis = None if self._axis is None else self._centroids @ self._axis

    def __len__(self) -> int:
        return len(self.names)

    def _mean(self, values: Sequence[float | None]) -> NDArray[np.float64]:
        """Mean over each profile's known values, NaN where none is known."""
        array = np.array([math.nan if value is None else value for value in values])
        known = np.isfinite(array)
        weight = np.add.reduceat(np.where(known, self._weights, 0.0), self._starts)
        total = np.add.reduceat(np.where(known, array * self._weights, 0.0), self._starts)
        return np.where(weight > 0, total / np.maximum(weight, 1e-9), math.nan)

    def _means(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """The mean embedding of each profile, scaled to unit norm: its dot product with a test is the cosine."""
        if (self._weights != 1.0).any():
            embeddings = embeddings * self._weights[:, None].astype(np.float32)
        totals = np.add.reduceat(self._weights, self._starts)[:, None].astype(np.float32)
        means = np.add.reduceat(embeddings, self._starts, axis=0) / totals
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-6)
        return np.asarray(means, np.float32)

    def heard(self, index: int) -> Heard:
        """Under which conditions a profile was enrolled: `Heard.of` its exemplars."""
        values = (float(column[index]) for column in (self._bandwidth, self._snr, self._decay))
        return Heard(*(None if math.isnan(value) else value for value in values))

    def voice(self, index: int) -> NDArray[np.float32]:
        """The mean embedding of one profile, at unit norm, shape (embedding_dim,)."""
        return np.asarray(self._centroids[index], np.float32)

    def cosines(self, embedding: NDArray[np.float32]) -> NDArray[np.float64]:
        """The cosine with each profile's mean embedding, shape (profiles,)."""
        return np.clip((self._centroids @ embedding).astype(np.float64), -1.0, 1.0)

    def _envelope_evidence(self, quality: SpeechQuality) -> NDArray[np.float64]:
        if quality.envelope is None:
            return np.zeros(len(self.names))
        distance = np.linalg.norm(self._envelope - np.asarray(quality.envelope), axis=1) / ENVELOPE_UNIT_DB
        words = ENVELOPE_SETTLES_S * (1.0 / max(quality.net_speech_s, 0.1) + 1.0 / np.maximum(self._seconds, 0.1))
        return np.where(np.isnan(distance), 0.0, np.log(np.maximum(distance, 0.05))) / (1.0 + words)

    def evidence(
        self, embedding: NDArray[np.float32], quality: SpeechQuality, terms: Collection[str] = TERMS
    ) -> dict[str, NDArray[np.float64]]:
        """Everything that a calibration may weigh, one value for each profile.

        Parameters
        ----------
        embedding : ndarray, shape (embedding_dim,), float32 of unit norm
        quality : SpeechQuality
            Of the test speech.
        terms : collection of str
            What will be weighed. The envelope costs more than the cosine where there are many profiles, so it
            is left out unless it is named here.

        Returns
        -------
        dict from name in `TERMS` and `BANDS` to ndarray, shape (profiles,), float64

        Raises
        ------
        ValueError
            If the embedding is not finite, not of unit norm, or of another size.
        """
        if embedding.shape != self._shape:
            raise ValueError(f"expected an embedding of shape {self._shape}, got {embedding.shape}")
        norm = float(np.linalg.norm(embedding.astype(np.float64)))
        if not abs(norm - 1.0) < 1e-3:  # written so that NaN fails
            raise ValueError(f"expected an embedding of unit norm, got {norm!r}")
        none = np.zeros(len(self.names))
        f0, rise, shift = none, none, none
        if quality.log_f0_mean is not None:
            f0 = np.where(np.isnan(self._f0), 0.0, quality.log_f0_mean - self._f0)
        if quality.log_embedding_norm is not None:
            rise = np.where(np.isnan(self._norm), 0.0, quality.log_embedding_norm - self._norm)
        if self._axis is not None and self._on_axis is not None:
            shift = np.asarray(self._axis @ embedding - self._on_axis, np.float64)
        found = {
            "cosine": self.cosines(embedding),
            "f0_above": np.maximum(f0, 0.0),
            "f0_below": np.maximum(-f0, 0.0),
            "norm_above": np.maximum(rise, 0.0),
            "norm_below": np.maximum(-rise, 0.0),
            "emotion_shift": shift,
            "test_seconds": np.full(len(self.names), math.log(max(quality.net_speech_s, 0.1))),
            "enrol_seconds": np.log(np.maximum(self._seconds, 0.1)),
            "profile_hz": self._bandwidth,
            "test_hz": np.full(len(self.names), math.nan if quality.bandwidth_hz is None else quality.bandwidth_hz),
        }
        if "envelope" in terms:
            found["envelope"] = self._envelope_evidence(quality)
        return found

    def score(
        self, calibration: Calibration, embedding: NDArray[np.float32], quality: SpeechQuality
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Compare a test with each profile.

        Parameters
        ----------
        calibration : Calibration
            The one whose `emotion_axis` this bank was made with.
        embedding : ndarray, shape (embedding_dim,), float32 of unit norm
        quality : SpeechQuality
            Of the test speech.

        Returns
        -------
        llrs, cosines : ndarray, shape (profiles,), float64

        Raises
        ------
        ValueError
            If the embedding cannot be scored, or the bank was made for another calibration.
        """
        if self.emotion_axis != calibration.emotion_axis:
            raise ValueError("expected a bank made with this calibration's emotion axis, got another; make it anew")
        evidence = self.evidence(embedding, quality, calibration.term_names)
        llrs = calibration.llr(evidence)
        if self._alone is not None:
            enrolled, _ = self._alone.score(calibration, embedding, quality)
            llrs = np.clip(llrs, enrolled, enrolled + ADAPTED_GAIN)
        return llrs, evidence["cosine"]


def _weights(counts: NDArray[np.int64], adapted: Sequence[int] | None) -> NDArray[np.float64]:
    """What each exemplar weighs: 1, but the adapted ones of a profile together at most `ADAPTED_SHARE` of it."""
    weights = np.ones(int(counts.sum()))
    end = 0
    for count, num_adapted in zip(counts, adapted or (), strict=False):
        end += int(count)
        if num_adapted:
            enrolled = int(count) - num_adapted
            weights[end - num_adapted : end] = min(1.0, ADAPTED_SHARE / (1.0 - ADAPTED_SHARE) * enrolled / num_adapted)
    return weights
