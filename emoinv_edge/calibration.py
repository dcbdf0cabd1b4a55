"""What turns a model's scores into log-likelihood ratios, and a false-accept rate into a threshold.

A cosine alone means nothing to a user and falls when the owner is angry. Here it is one term of a
logistic model beside others that describe how far the emotion and the quality of the test speech lie from
the profile's (above all the difference of mean log F0). Weights, calibrated ranges and the thresholds per
false-accept rate are a `Calibration`, which travels in the model file; nothing of it lives in code, and there
is no default.

LLRs are natural logarithms: 0 favours neither side, 2.3 is ten to one for the owner.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import itertools
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .conditions import Conditions
from .errors import CalibrationError, ModelFormatError
from .fields import is_finite, read_fields, read_json, read_list, read_number, read_text
from .plausible import CIRCUMSTANCES, MAX_CIRCUMSTANCES, check_plausible
from .thresholds import (
    MAX_ATTEMPTS,
    FarTable,
    SessionRise,
    Threshold,
    bayes_threshold,
    check_rises,
    check_table,
    extrapolated_from,
    interpolated,
    require,
)

__all__ = [
    "BANDS",
    "CALIBRATION_FORMAT",
    "MAX_ATTEMPTS",
    "TERMS",
    "Calibration",
    "EmotionAxis",
    "FarTable",
    "SessionRise",
    "Term",
    "Threshold",
    "bayes_threshold",
]

CALIBRATION_FORMAT = 3
OPTIONAL = {"conditions", "session_rises", "coverage"}  # keys of the JSON that an older file of this format lacks

# The evidence that a calibration may weigh. "above" and "below" are the two sides of one signed
# difference, test minus profile: the owner's voice rises with emotion more easily than it falls.
TERMS = (
    "cosine",
    "f0_above",
    "f0_below",
    "envelope",
    "norm_above",
    "norm_below",
    "emotion_shift",
    "test_seconds",
    "enrol_seconds",
)
# The bands of both sides, in Hz and NaN where unknown: no terms, but what `Conditions` shifts an LLR by.
BANDS = ("profile_hz", "test_hz")
COVERAGE_FAR = 0.01
RULE_OF_THREE = 3.0  # no event among n independent ones: the rate is below 3/n with 95 % confidence


@dataclasses.dataclass(frozen=True, slots=True)
class Term:
    """One weighed piece of evidence: ``weight * clip(value, low, high)``.

    `low` and `high` are the range that the calibration speech covered; beyond it the value
    saturates, so that a strange recording cannot buy an LLR that was never observed.
    """

    name: str
    weight: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, slots=True)
class EmotionAxis:
    """What emotions do to an embedding, whoever speaks.

    The axis is the mean direction from a speaker's neutral profile to the same speaker's emotional speech; how far a
    test lies from a profile along it, ``axis @ (test - profile)``, is the evidence ``emotion_shift``.

    Parameters
    ----------
    axis : bytes
        A vector of unit norm, float32 in little-endian order.

    Raises
    ------
    ModelFormatError
        If it is anything else.
    """

    axis: bytes = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        fits = isinstance(self.axis, bytes) and len(self.axis) > 0 and len(self.axis) % 4 == 0
        require(fits, "the emotion axis should be float32 numbers as bytes")
        length = float(np.linalg.norm(self.array()))
        require(abs(length - 1.0) < 1e-3, f"the emotion axis should be of unit norm, got {length:.3g}")

    @property
    def dim(self) -> int:
        """Size of the embeddings that it is an axis of."""
        return len(self.axis) // 4

    def array(self) -> NDArray[np.float32]:
        """The axis, shape (dim,)."""
        return np.frombuffer(self.axis, "<f4").astype(np.float32)


@dataclasses.dataclass(frozen=True, slots=True)
class Calibration:
    """How the scores of one model become LLRs, and which LLR keeps which false-accept rate.

    Parameters
    ----------
    bias : float
    terms : tuple of Term
        ``cosine`` among them, with a weight above 0.
    far_tables : tuple of FarTable
        By rising number of profiles, the first of them 1.
    num_impostor_speakers : int
        Independent speakers behind the rates; with n of them no rate below 3/n is supported.
    source : str
        What speech it was fitted on.
    emotion_axis : EmotionAxis or None
        What emotions do to the model's embeddings, where it is known.
    conditions : Conditions or None
        What telephones do to its scores, and how far the speech behind it reached, where it is known.
    session_rises : tuple of SessionRise
        By rising number of attempts; empty where no sessions were measured.
    coverage : tuple of (float, float)
        Share that a profile covers (`emoinv_edge.coverage`), from which on, rising from 0, and the FRR of such profiles
        at `COVERAGE_FAR` in emotions that they have not heard, falling; empty where it was not measured.
    """

    bias: float
    terms: tuple[Term, ...]
    far_tables: tuple[FarTable, ...]
    num_impostor_speakers: int
    source: str
    emotion_axis: EmotionAxis | None = None
    conditions: Conditions | None = None
    session_rises: tuple[SessionRise, ...] = ()
    coverage: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        require(is_finite(self.bias), f"bias should be a finite number, got {self.bias!r}")
        require(bool(self.terms), "there should be at least the term 'cosine', got none")
        names = [term.name for term in self.terms]
        require(len(set(names)) == len(names), f"each term should appear once, got {names}")
        require("cosine" in names, f"the term 'cosine' is missing from {names}")
        for term in self.terms:
            require(term.name in TERMS, f"term {term.name!r} is unknown, expected one of {TERMS}")
            values = (term.weight, term.low, term.high)
            require(all(map(is_finite, values)), f"term {term.name!r} should hold finite numbers, got {values}")
            require(term.low <= term.high, f"term {term.name!r} should have low <= high, got {values}")
            require(
                term.name != "cosine" or term.weight > 0.0,
                f"the weight of 'cosine' should be above 0, got {term.weight!r}",
            )
        require(
            self.emotion_axis is None or isinstance(self.emotion_axis, EmotionAxis),
            f"emotion_axis should be an EmotionAxis or None, got {type(self.emotion_axis).__name__}",
        )
        require(
            self.emotion_axis is not None or "emotion_shift" not in names,
            "the term 'emotion_shift' needs an emotion axis, and there is none",
        )
        require(
            self.conditions is None or isinstance(self.conditions, Conditions),
            f"conditions should be Conditions or None, got {type(self.conditions).__name__}",
        )
        count = self.num_impostor_speakers
        require(
            isinstance(count, int) and not isinstance(count, bool) and count >= 1,
            f"num_impostor_speakers should be a count of at least 1, got {count!r}",
        )
        require(isinstance(self.source, str), f"source should be text, got {self.source!r}")
        sizes = [table.num_profiles for table in self.far_tables]
        require(
            sizes[:1] == [1] and sizes == sorted(set(sizes)),
            f"far_tables should rise in num_profiles from 1, got {sizes}",
        )
        for table in self.far_tables:
            check_table(table)
        check_rises(self.session_rises)
        _check_coverage(self.coverage)

    @property
    def supported_far(self) -> float:
        """The lowest false-accept rate that the impostor speakers support (rule of three)."""
        return RULE_OF_THREE / self.num_impostor_speakers

    @property
    def term_names(self) -> tuple[str, ...]:
        """Names of the terms that this calibration weighs."""
        return tuple(term.name for term in self.terms)

    def llr(self, evidence: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """Log-likelihood ratios (natural) of trials.

        Parameters
        ----------
        evidence : mapping from term name to ndarray, shape (trials,)
            From `ProfileBank.evidence`; every term of this calibration must be there, and `BANDS` where it has
            conditions.

        Raises
        ------
        ValueError
            If any value is not finite: no score comes out of a NaN.
        """
        total = np.full(len(evidence["cosine"]), self.bias)
        circumstances = np.zeros(len(total))
        for term in self.terms:
            values = np.asarray(evidence[term.name], np.float64)
            if not np.isfinite(values).all():
                raise ValueError(f"the evidence {term.name!r} is not finite; the embedding or the quality is broken")
            weighed = term.weight * np.clip(values, term.low, term.high)
            if term.name in CIRCUMSTANCES:
                circumstances += weighed
            else:
                total += weighed
        total += np.minimum(circumstances, MAX_CIRCUMSTANCES)
        if self.conditions is not None:
            total += self.conditions.shift(*(np.asarray(evidence[name], np.float64) for name in BANDS))
        return total

    def threshold(self, target_far: float, num_profiles: int = 1, extrapolate: bool = False) -> Threshold:
        """The LLR above which an impostor is accepted at most at the rate `target_far`.

        Parameters
        ----------
        target_far : float
            False-accept rate per attempt, between 0 and 1; against several profiles it counts the
            attempt once, as whoever it is accepted.
        num_profiles : int
            Profiles that an attempt is compared with.
        extrapolate : bool
            Give a threshold, marked as extrapolated, where the calibration data do not reach.

        Raises
        ------
        CalibrationError
            If the data do not reach and `extrapolate` is False.
        """
        if not 0.0 < target_far < 1.0:
            raise ValueError(f"expected target_far between 0 and 1, 0.01 for 1 in 100, got {target_far!r}")
        if num_profiles < 1:
            raise ValueError(f"expected at least one profile, got {num_profiles}")
        tables = [table for table in self.far_tables if table.num_profiles >= num_profiles]
        reach = target_far >= self.supported_far * (1.0 - 1e-9)
        if tables and reach and target_far >= tables[0].rates[-1]:
            return Threshold(interpolated(tables[0], target_far), target_far, extrapolated=False)
        if not extrapolate:
            raise CalibrationError(self._refusal(target_far, num_profiles, bool(tables)))
        table = tables[0] if tables else self.far_tables[-1]
        # Union bound: against m times as many profiles the rate is at most m times as high.
        rate = target_far * min(1.0, table.num_profiles / num_profiles)
        return Threshold(extrapolated_from(table, rate, self.supported_far), target_far, extrapolated=True)

    def session_threshold(self, one: Threshold, attempts: int, extrapolate: bool = False) -> Threshold:
        """The threshold of a session (`emoinv_edge.attempts`) at the rate of the threshold of one attempt.

        Parameters
        ----------
        one : Threshold
            With a false-accept rate, which holds over the whole session.
        attempts : int
            2 or 3.
        extrapolate : bool
            Give a threshold, marked as extrapolated, where no sessions were measured: that of the union bound.

        Raises
        ------
        ValueError
            If there is no such number of attempts, or `one` comes from a prior.
        CalibrationError
            If no sessions were measured and `extrapolate` is False.
        """
        if isinstance(attempts, bool) or not isinstance(attempts, int) or not 2 <= attempts <= MAX_ATTEMPTS:
            raise ValueError(f"expected 2 to {MAX_ATTEMPTS} attempts, got {attempts!r}")
        if one.target_far is None:
            raise ValueError("a session keeps a false-accept rate; make the verifier with target_far, without a prior")
        for found in self.session_rises:
            if found.attempts == attempts:
                logs = np.log(np.asarray(found.rates))[::-1]
                rise = float(np.interp(math.log(one.target_far), logs, np.asarray(found.rises)[::-1]))
                return Threshold(one.llr + rise, one.target_far, one.extrapolated)
        if not extrapolate:
            raise CalibrationError(
                f"this calibration was not measured on sessions of {attempts} attempts; calibrate the model again "
                "(python -m export calibrate), or pass extrapolate=True (--extrapolate)"
            )
        # Every utterance and every choice of several is a chance, and no chance rises by more than a nat per nat.
        return Threshold(one.llr + math.log(2**attempts - 1), one.target_far, extrapolated=True)

    def expected_frr(self, share: float) -> float | None:
        """The FRR, in emotions that were not enrolled, of profiles that cover this share; None if not measured."""
        found = [frr for above, frr in self.coverage if above <= share]
        return found[-1] if found else None

    def _refusal(self, target_far: float, num_profiles: int, enough_profiles: bool) -> str:
        if enough_profiles:
            return (
                f"a false-accept rate of {target_far:g} cannot be supported: {self.num_impostor_speakers} impostor "
                f"speakers were measured, which supports {self.supported_far:.2g}, "
                f"1/{math.floor(1.0 / self.supported_far)}, at best (rule of three); ask for that, "
                f"calibrate with more impostors (emoinv calibrate), or pass extrapolate=True (--extrapolate)"
            )
        return (
            f"thresholds were measured for up to {self.far_tables[-1].num_profiles} profiles at once, "
            f"{num_profiles} are compared; compare fewer, or pass extrapolate=True (--extrapolate)"
        )

    def to_json(self) -> str:
        """The calibration as one JSON object with its format number."""
        axis = self.emotion_axis
        values = {
            **dataclasses.asdict(self),
            "format": CALIBRATION_FORMAT,
            "emotion_axis": None if axis is None else base64.b64encode(axis.axis).decode(),
        }
        return json.dumps(values, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """Read a calibration from the JSON of `to_json`.

        Raises
        ------
        ModelFormatError
            If a key is missing or unknown, the format number is not known, or a value is out of range.
        """
        try:
            found = _read(read_json(text))
            held = found.conditions
            shifts = (0.0,) if held is None else (held.both_narrow, held.profile_narrow, held.test_narrow)
            check_plausible(found.bias, found.terms, found.far_tables, max(shifts))
            return found
        except ModelFormatError:
            raise
        except ValueError as error:
            raise ModelFormatError(f"calibration: {error}; it is damaged or foreign, calibrate again") from None


def _read(values: Any) -> Calibration:
    if isinstance(values, dict) and values.get("format") != CALIBRATION_FORMAT:
        raise ModelFormatError(
            f"calibration: expected format {CALIBRATION_FORMAT}, got {values.get('format')!r}; "
            "calibrate the model again (python -m export calibrate), or install the emoinv-edge version that wrote it"
        )
    keys = {field.name for field in dataclasses.fields(Calibration)} - OPTIONAL | {"format"}
    fields = read_fields(values, keys, "calibration", OPTIONAL)
    terms = [
        Term(**read_fields(entry, ("name", "weight", "low", "high"), "term"))
        for entry in read_list(fields["terms"], "terms")
    ]
    tables = []
    for entry in read_list(fields["far_tables"], "far_tables"):
        table = read_fields(entry, ("num_profiles", "rates", "thresholds"), "far table")
        rates, thresholds = (tuple(read_list(table[key], key)) for key in ("rates", "thresholds"))
        tables.append(FarTable(table["num_profiles"], rates, thresholds))
    rises = []
    for entry in read_list(fields["session_rises"] or [], "session_rises"):
        rise = read_fields(entry, ("attempts", "rates", "rises"), "session rise")
        rates, values_ = (tuple(read_list(rise[key], key)) for key in ("rates", "rises"))
        rises.append(SessionRise(rise["attempts"], rates, values_))
    axis = None if fields["emotion_axis"] is None else EmotionAxis(_decoded(fields["emotion_axis"]))
    conditions = None
    if fields["conditions"] is not None:
        names = [field.name for field in dataclasses.fields(Conditions)]
        conditions = Conditions(**read_fields(fields["conditions"], names, "conditions"))
    count, source = fields["num_impostor_speakers"], fields["source"]
    return Calibration(
        fields["bias"],
        tuple(terms),
        tuple(tables),
        count,
        source,
        axis,
        conditions,
        tuple(rises),
        _read_coverage(fields["coverage"]),
    )


def _decoded(text: Any) -> bytes:
    try:
        return base64.b64decode(read_text(text, "the emotion axis"), validate=True)
    except binascii.Error as error:
        raise ValueError(f"the emotion axis should be base64 ({error})") from None


def _read_coverage(values: Any) -> tuple[tuple[float, float], ...]:
    pairs = [read_list(pair, "coverage") for pair in read_list(values or [], "coverage")]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError("coverage should be pairs of numbers")
    return tuple((read_number(share, "coverage"), read_number(frr, "coverage")) for share, frr in pairs)


def _check_coverage(coverage: tuple[tuple[float, float], ...]) -> None:
    require(
        all(is_finite(each) and 0.0 <= each <= 1.0 for pair in coverage for each in pair),
        "coverage should hold shares and rates from 0 to 1",
    )
    require(not coverage or coverage[0][0] == 0.0, "coverage should begin at a share of 0")
    require(
        all(low[0] < high[0] and low[1] >= high[1] for low, high in itertools.pairwise(coverage)),
        "coverage should rise in shares and not in rates",
    )
