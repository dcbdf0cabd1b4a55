"""A few strangers in the model file, on whom every new profile is tried, and what a profile's numbers can be at all.

Who accepts more strangers than the threshold allows (a "wolf" or a "lamb": a mean of many voices, or one like all)
would open for anybody, and no calibration on ordinary profiles covers it.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .calibration import Calibration
from .encoder import Encoder
from .errors import EnrolmentError, ModelFormatError
from .fields import read_count, read_fields, read_list, read_number, read_text
from .profiles import Exemplar, Profile
from .quality import SpeechQuality
from .scoring import ProfileBank

__all__ = ["COHORT_FORMAT", "Cohort", "cohort_of", "refuse_implausible"]

COHORT_FORMAT = 1
MAX_SPEAKERS = 512
# At each of these false-accept rates a profile may accept the share of the cohort that the rate allows, and no more.
RATES = (0.5, 0.3, 0.2, 0.1)
# And so far below the threshold of the first rate, this share: strangers of one corpus are less like a mean of
# another's voices than strangers of its own are.
BELOW_NATS, BELOW_SHARE = 1.75, 0.5
SECONDS = 3.0  # as long each stranger is heard
BANDWIDTH_HZ = 8000.0
NORM_SLACK = 0.3  # nats beyond the largest norm of the cohort's utterances
LEAST_SECONDS = 2.0
RANGES = {
    "net_speech_s": (0.3, 600.0),
    "snr_db": (-10.0, 60.0),
    "clipped_fraction": (0.0, 0.1),
    "level_dbfs": (-90.0, 3.0),
    "log_f0_mean": (math.log(50.0), math.log(650.0)),
    "log_f0_std": (0.0, 1.2),
    "tilt_db": (-80.0, 80.0),
    "log_embedding_norm": (-8.0, 8.0),
    "bandwidth_hz": (500.0, 8000.0),
    "decay_s": (0.0, 20.0),
}


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Cohort:
    """Strangers: their mean embeddings, pitch and norms.

    Parameters
    ----------
    vectors : ndarray, shape (speakers, embedding_dim), float32
        Of unit norm.
    log_f0, log_norm : tuple of float
        Of each: mean ln(F0 / Hz), and mean natural logarithm of the embedding's norm.
    largest_log_norm : float
        Of any of their utterances.
    source : str
        Where the speech comes from, with its licence.
    """

    vectors: NDArray[np.float32]
    log_f0: tuple[float, ...]
    log_norm: tuple[float, ...]
    largest_log_norm: float
    source: str

    @classmethod
    def from_values(cls, values: Any, dim: int) -> Cohort:
        """Read what `to_values` gave, for a model of this embedding size.

        Raises
        ------
        ModelFormatError
            If it is damaged, of another version or of another model.
        """
        try:
            keys = ("format", "source", "vectors", "log_f0", "log_norm", "largest_log_norm")
            fields = read_fields(values, keys, "cohort")
            if read_count(fields["format"], "format") != COHORT_FORMAT:
                raise ValueError(f"expected format {COHORT_FORMAT}, got {fields['format']!r}")
            f0, norms = ([read_number(each, key) for each in read_list(fields[key], key)] for key in keys[3:5])
            steps = np.frombuffer(base64.b64decode(read_text(fields["vectors"], "vectors"), validate=True), np.int8)
            if not 0 < len(f0) == len(norms) <= MAX_SPEAKERS or len(steps) != len(f0) * dim:
                raise ValueError(f"expected vectors of {dim} numbers for {len(f0)} speakers, got {len(steps)} numbers")
            vectors = steps.reshape(-1, dim).astype(np.float32)
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            if not lengths.min() > 0.0:
                raise ValueError("a vector is zero")
            largest, source = fields["largest_log_norm"], fields["source"]
            return cls(
                vectors / lengths, tuple(f0), tuple(norms), read_number(largest, "norm"), read_text(source, "source")
            )
        except (ValueError, binascii.Error) as error:
            raise ModelFormatError(f"cohort: {error}; the file is damaged: export the model again") from None

    def to_values(self) -> dict[str, Any]:
        """The cohort as a JSON object; vectors as int8."""
        scaled = self.vectors / np.abs(self.vectors).max(axis=1, keepdims=True) * 127.0
        return {
            "format": COHORT_FORMAT,
            "source": self.source,
            "vectors": base64.b64encode(np.rint(scaled).astype(np.int8).tobytes()).decode(),
            "log_f0": [round(each, 3) for each in self.log_f0],
            "log_norm": [round(each, 3) for each in self.log_norm],
            "largest_log_norm": round(self.largest_log_norm, 3),
        }

    def scores(self, profile: Profile, calibration: Calibration) -> NDArray[np.float64]:
        """The LLR of each stranger against the profile, shape (speakers,)."""
        bank = ProfileBank([profile], calibration.emotion_axis)
        scores = []
        for vector, log_f0, log_norm in zip(self.vectors, self.log_f0, self.log_norm, strict=True):
            heard = SpeechQuality(
                SECONDS, 25.0, 0.0, -23.0, log_f0, 0.15, -10.0, 0.6, None, log_norm, bandwidth_hz=BANDWIDTH_HZ
            )
            scores.append(float(bank.score(calibration, vector, heard)[0][0]))
        return np.asarray(scores)


def cohort_of(encoder: Encoder) -> Cohort | None:
    """The strangers in a model's file, or None where it holds none.

    Raises
    ------
    ModelFormatError
        If they are damaged.
    """
    values = encoder.metadata.get("emoinv.cohort")
    if values is None:
        return None
    try:
        return Cohort.from_values(values, encoder.spec.embedding_dim)
    except ModelFormatError as error:
        raise ModelFormatError(f"{encoder.path}: {error}") from None


def refuse_implausible(profile: Profile, calibration: Calibration | None = None, cohort: Cohort | None = None) -> None:
    """Refuse a profile whose numbers no speech gives, or that accepts more strangers than it may.

    Parameters
    ----------
    profile : Profile
    calibration, cohort : optional
        Of its model; without them only the numbers themselves are looked at.

    Raises
    ------
    EnrolmentError
        With what is wrong, and the cure.
    """
    for exemplar in profile.exemplars:
        _refuse_quality(profile.name, exemplar, None if cohort is None else cohort.largest_log_norm + NORM_SLACK)
    seconds = sum(exemplar.quality.net_speech_s for exemplar in profile.exemplars)
    if seconds < LEAST_SECONDS:
        raise EnrolmentError(
            f"profile {profile.name!r}: expected {LEAST_SECONDS:g} s of speech or more, got {seconds:.1f} s; enrol the "
            "speaker again, with more speech"
        )
    if calibration is None or cohort is None:
        return
    scores = cohort.scores(profile, calibration)
    thresholds = [calibration.threshold(rate, extrapolate=True).llr for rate in RATES]
    allowed = [*zip(thresholds, RATES, strict=True), (thresholds[0] - BELOW_NATS, BELOW_SHARE)]
    for threshold, rate in allowed:
        share = float(np.mean(scores >= threshold))
        if share > rate:
            raise EnrolmentError(
                f"profile {profile.name!r} scores {share:.0%} of {len(scores)} strangers at {threshold:.1f} or more, "
                f"where {rate:.0%} may be: it is like too many voices (a wolf or a lamb) and would open for others; "
                "enrol the speaker again, alone and close to the microphone"
            )


def _refuse_quality(name: str, exemplar: Exemplar, largest_log_norm: float | None) -> None:
    for field, (low, high) in RANGES.items():
        value = getattr(exemplar.quality, field)
        if field == "log_embedding_norm" and largest_log_norm is not None:
            high = largest_log_norm
        if value is not None and not low <= value <= high:
            raise EnrolmentError(
                f"profile {name!r}: {field} of an utterance should be {low:.3g} to {high:.3g}, got {value:.3g}, which "
                "no speech that the model was calibrated on has; enrol the speaker again"
            )
    envelope: Sequence[float] = exemplar.quality.envelope or ()
    if any(abs(each) > 60.0 for each in envelope):
        raise EnrolmentError(f"profile {name!r}: an envelope beyond 60 dB is none of speech; enrol the speaker again")
