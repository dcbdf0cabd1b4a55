"""Is this somebody speaking at all? A ring tone, a clap or a chirp has an embedding too, and some would be accepted.

The test is a linear one: a direction in the space of embeddings along which speech lies apart from other sounds,
whoever speaks, beside the embedding's norm and what was measured of the pitch. Its numbers are fitted on
development speech (also noisy, and whispered by rule) against recorded sounds and sounds made by rule.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .calibration import Term
from .errors import ModelFormatError
from .fields import is_finite, read_fields, read_list, read_number, read_text
from .quality import SpeechQuality

__all__ = ["MEASURES", "WHISPERED", "VoiceTest", "is_unvoiced", "measures"]

MEASURES = ("log_norm", "voiced_fraction", "log_f0", "log_f0_std", "pitchless")
USUAL_LOG_F0 = math.log(160.0)  # stands for the pitch where nothing is voiced
# Less of the loud speech than this voiced: whispered, or hoarse.
WHISPERED = 0.15


def measures(quality: SpeechQuality) -> dict[str, float]:
    """What the test weighs beside the embedding, by name; all finite."""
    pitchless = quality.log_f0_mean is None
    return {
        "log_norm": quality.log_embedding_norm or 0.0,
        "voiced_fraction": quality.voiced_fraction,
        "log_f0": USUAL_LOG_F0 if quality.log_f0_mean is None else quality.log_f0_mean,
        "log_f0_std": quality.log_f0_std,
        "pitchless": float(pitchless),
    }


def is_unvoiced(quality: SpeechQuality) -> bool:
    """Whether speech is whispered or hoarse: hardly any of it is voiced."""
    return quality.voiced_fraction < WHISPERED


@dataclasses.dataclass(frozen=True, slots=True)
class VoiceTest:
    """Whether speech is a person's, by its embedding and its quality.

    Parameters
    ----------
    direction : bytes
        What each number of the embedding weighs, float32 in little-endian order.
    terms : tuple of Term
        What `MEASURES` weigh, each clipped to the range that was seen.
    bias : float

    Raises
    ------
    ModelFormatError
        If a number is not finite, or a term unknown or given twice.
    """

    direction: bytes = dataclasses.field(repr=False)
    terms: tuple[Term, ...]
    bias: float

    def __post_init__(self) -> None:
        fits = isinstance(self.direction, bytes) and len(self.direction) > 0 and len(self.direction) % 4 == 0
        _require(fits, "the direction should be float32 numbers as bytes")
        _require(bool(np.isfinite(self.array()).all()), "the direction should hold finite numbers")
        _require(is_finite(self.bias), f"the bias should be a finite number, got {self.bias!r}")
        names = [term.name for term in self.terms]
        _require(len(set(names)) == len(names), f"each term should appear once, got {names}")
        for term in self.terms:
            _require(term.name in MEASURES, f"term {term.name!r} is unknown, expected one of {MEASURES}")
            values = (term.weight, term.low, term.high)
            _require(all(map(is_finite, values)), f"term {term.name!r} should hold finite numbers, got {values}")
            _require(term.low <= term.high, f"term {term.name!r} should have low <= high, got {values}")

    @property
    def dim(self) -> int:
        """Size of the embeddings that it tests."""
        return len(self.direction) // 4

    def array(self) -> NDArray[np.float32]:
        """The direction, shape (dim,)."""
        return np.frombuffer(self.direction, "<f4").astype(np.float32)

    def score(self, embedding: NDArray[np.float32], quality: SpeechQuality) -> float:
        """0 and above: a person speaks.

        Parameters
        ----------
        embedding : ndarray, shape (dim,), float32 of unit norm
        quality : SpeechQuality
            With the norm of the embedding; without, the test goes by the rest.
        """
        total = self.bias + float(self.array() @ embedding)
        found = measures(quality)
        for term in self.terms:
            value = found[term.name]
            if term.name == "log_norm" and quality.log_embedding_norm is None:
                value = term.high if term.weight > 0.0 else term.low  # unknown: in favour of a voice
            total += term.weight * min(max(value, term.low), term.high)
        return total

    def passes(self, embedding: NDArray[np.float32], quality: SpeechQuality) -> bool:
        """Whether a person speaks; never where the score is NaN."""
        return self.score(embedding, quality) >= 0.0

    def to_fields(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "direction": base64.b64encode(self.direction).decode(),
            "terms": [dataclasses.asdict(term) for term in self.terms],
            "bias": self.bias,
        }

    @classmethod
    def of_fields(cls, values: Any) -> VoiceTest:
        """Read what `to_fields` wrote; ValueError or ModelFormatError where it is anything else."""
        fields = read_fields(values, ("direction", "terms", "bias"), "voice")
        try:
            direction = base64.b64decode(read_text(fields["direction"], "the direction"), validate=True)
        except binascii.Error as error:
            raise ValueError(f"the direction should be base64 ({error})") from None
        terms = [
            Term(**read_fields(entry, ("name", "weight", "low", "high"), "term"))
            for entry in read_list(fields["terms"], "terms")
        ]
        return cls(direction, tuple(terms), read_number(fields["bias"], "bias"))


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ModelFormatError(
            f"guards: {message}; the file is damaged or foreign, fit the guards again (python -m export guards)"
        )
