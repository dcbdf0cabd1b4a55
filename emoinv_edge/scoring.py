"""From embeddings and circumstances to a log-likelihood ratio, and from a false-accept rate to a threshold.

A cosine alone means nothing to a user and falls when the owner is angry. Here it is one term of a
logistic model beside others that say how far the manner and the quality of the test speech lie from
the profile's (above all the difference of mean log F0). What moods do to the embedding itself, whoever
speaks, is known to it too (`Moods`). Weights, calibrated ranges and the thresholds per false-accept rate
are a `Calibration`, which travels in the model file; nothing of it lives in code, and there is no default.

LLRs are natural logarithms: 0 favours neither side, 2.3 is ten to one for the owner.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import itertools
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import CalibrationError, EnrolmentError, ModelFormatError
from .quality import ENVELOPE_SIZE, SpeechQuality

if TYPE_CHECKING:
    from .profiles import Exemplar, Profile

__all__ = [
    "CALIBRATION_FORMAT",
    "POOLINGS",
    "TERMS",
    "Calibration",
    "FarTable",
    "Moods",
    "ProfileBank",
    "Term",
    "Threshold",
    "bayes_threshold",
    "cosine",
    "without_shares",
]

CALIBRATION_FORMAT = 2  # 1 has no moods, and is still read, and written where there are none

# Each rises with every single cosine; attention weights (softmax over similarity) do not, so the
# smooth maximum stands in their place: more impostor-like must never mean more accepted.
POOLINGS = ("centroid", "mean", "max", "quality", "smooth_max")
LINEAR_POOLINGS = ("centroid", "mean", "quality")
SHARPNESS = 10.0  # of the smooth maximum: 0 would be the mean, infinity the maximum

# The evidence that a calibration may weigh. "above" and "below" are the two sides of one signed
# difference, test minus profile, "shift" is the difference itself: the owner's voice rises with emotion
# more easily than it falls.
TERMS = (
    "cosine",
    "f0_shift",
    "f0_above",
    "f0_below",
    "f0_unknown",
    "f0_spread_above",
    "f0_spread_below",
    "tilt_above",
    "tilt_below",
    "envelope",
    "norm_above",
    "norm_below",
    "mood_shift",
    "test_seconds",
    "enrol_seconds",
    "snr",
    "exemplars",
)
# The norm's is of the logarithm of the embedding's norm: an owner whom the encoder knows less well than at the
# enrolment gets a lower cosine. 0, which speaks for neither, where one side's norm is unknown.
# The envelope's evidence is the logarithm of its distance, in a unit between what is usual for one voice in
# two moods and for two voices, so that 0 speaks for neither, as where the envelope is unknown. It is drawn
# towards 0 where there is little speech: so many seconds make up for what the words do to an envelope.
ENVELOPE_UNIT_DB = 4.5
ENVELOPE_SETTLES_S = 2.0
RULE_OF_THREE = 3.0  # no event among n independent ones: the rate is below 3/n with 95 % confidence


def cosine(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    """The cosine between two embeddings, -1 to 1.

    Parameters
    ----------
    left, right : ndarray, shape (embedding_dim,)

    Raises
    ------
    ValueError
        If the shapes differ, or either is zero or not finite: such a pair has no cosine.
    """
    if left.ndim != 1 or left.shape != right.shape:
        raise ValueError(f"expected two embeddings of one shape, got {left.shape} and {right.shape}")
    norms = float(np.linalg.norm(left.astype(np.float64)) * np.linalg.norm(right.astype(np.float64)))
    if not math.isfinite(norms) or norms <= 0.0:
        raise ValueError("expected finite embeddings other than zero; these came from a failed embedding")
    return float(np.clip(left.astype(np.float64) @ right.astype(np.float64) / norms, -1.0, 1.0))


def bayes_threshold(prior: float, cost_miss: float = 1.0, cost_false_accept: float = 1.0) -> float:
    """The LLR above which accepting costs less than rejecting.

    Parameters
    ----------
    prior : float
        Probability, between 0 and 1, that an attempt is the owner's.
    cost_miss, cost_false_accept : float
        Cost of rejecting the owner and of accepting an impostor, above 0.
    """
    if not 0.0 < prior < 1.0:
        raise ValueError(f"expected a prior between 0 and 1, both excluded, got {prior!r}")
    for name, cost in (("cost_miss", cost_miss), ("cost_false_accept", cost_false_accept)):
        if not (math.isfinite(cost) and cost > 0.0):
            raise ValueError(f"expected {name} above 0, got {cost!r}")
    return math.log(cost_false_accept * (1.0 - prior)) - math.log(cost_miss * prior)


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
class FarTable:
    """Thresholds on the LLR for falling false-accept rates, measured against `num_profiles` profiles at once.

    ``thresholds[i]`` is the lowest LLR at which an impostor, tried against `num_profiles` profiles,
    is accepted as any of them at a rate of at most ``rates[i]``.
    """

    num_profiles: int
    rates: tuple[float, ...]
    thresholds: tuple[float, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Threshold:
    """A threshold on the LLR, and whether the calibration data reach so far."""

    llr: float
    target_far: float | None
    extrapolated: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Moods:
    """What moods do to an embedding, whoever speaks.

    Of each direction v in which they move embeddings, a share s of what profile and test have in common there is
    left out of the cosine, ``c . e - sum of s (v . c)(v . e)``: with a share of 1 the direction is taken out (nuisance
    attribute projection, Solomonoff et al., ICASSP 2005, without scaling the rest to 1 again); the learnt shares
    lie between, as in a discriminatively trained metric (Burget et al., ICASSP 2011). The axis is the one
    along which a test in another mood lies away from its owner's profile: how far, ``axis . (e - c)``, is the evidence
    ``mood_shift``.

    Parameters
    ----------
    directions : bytes
        Orthonormal, as float32 in little-endian order, one after the other.
    shares : tuple of float
        0 to 1, one for each direction.
    axis : bytes
        One vector of unit norm, float32.

    Raises
    ------
    ModelFormatError
        If the numbers are not finite, the directions not orthonormal, a share beyond 0 to 1, or the sizes do not fit.
    """

    directions: bytes = dataclasses.field(repr=False)
    shares: tuple[float, ...]
    axis: bytes = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        for name, values in (("directions", self.directions), ("axis", self.axis)):
            fits = isinstance(values, bytes) and len(values) > 0 and len(values) % 4 == 0
            _require(fits, f"the moods' {name} should be float32 numbers as bytes")
            _require(bool(np.isfinite(np.frombuffer(values, "<f4")).all()), f"the moods' {name} should be finite")
        _require(
            bool(self.shares) and all(_finite(share) and 0.0 <= share <= 1.0 for share in self.shares),
            f"the moods' shares should lie between 0 and 1, got {self.shares!r}",
        )
        _require(
            len(self.directions) == len(self.axis) * len(self.shares),
            f"the moods should have one direction for each of {len(self.shares)} shares, as long as the axis",
        )
        rows = np.frombuffer(self.directions, "<f4").reshape(len(self.shares), -1)
        _require(
            float(np.abs(rows @ rows.T - np.eye(len(rows))).max()) < 1e-3,
            "the moods' directions should be orthonormal: others would add to the cosine instead of taking out",
        )
        length = float(np.linalg.norm(np.frombuffer(self.axis, "<f4")))
        _require(abs(length - 1.0) < 1e-3, f"the moods' axis should be of unit norm, got {length:.3g}")

    @property
    def dim(self) -> int:
        """Size of the embeddings that it knows."""
        return len(self.axis) // 4

    def arrays(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Directions (directions, dim), shares (directions,) and axis (dim,)."""
        rows = np.frombuffer(self.directions, "<f4").reshape(len(self.shares), -1).astype(np.float32)
        return rows, np.asarray(self.shares, np.float32), np.frombuffer(self.axis, "<f4").astype(np.float32)


@dataclasses.dataclass(frozen=True, slots=True)
class Calibration:
    """How the scores of one model become LLRs, and which LLR keeps which false-accept rate.

    Parameters
    ----------
    pooling : {"centroid", "mean", "max", "quality", "smooth_max"}
        How the cosines to several exemplars become one.
    bias : float
    terms : tuple of Term
        ``cosine`` among them, with a weight above 0.
    far_tables : tuple of FarTable
        By rising number of profiles, the first of them 1.
    num_impostor_speakers : int
        Independent speakers behind the rates; with n of them no rate below 3/n is supported.
    source : str
        What speech it was fitted on.
    moods : Moods or None
        What moods do to the model's embeddings, where it is known.
    """

    pooling: str
    bias: float
    terms: tuple[Term, ...]
    far_tables: tuple[FarTable, ...]
    num_impostor_speakers: int
    source: str
    moods: Moods | None = None

    def __post_init__(self) -> None:
        _require(self.pooling in POOLINGS, f"pooling should be one of {POOLINGS}, got {self.pooling!r}")
        _require(_finite(self.bias), f"bias should be a finite number, got {self.bias!r}")
        _require(bool(self.terms), "there should be at least the term 'cosine', got none")
        names = [term.name for term in self.terms]
        _require(len(set(names)) == len(names), f"each term should appear once, got {names}")
        _require("cosine" in names, f"the term 'cosine' is missing from {names}")
        for term in self.terms:
            _require(term.name in TERMS, f"term {term.name!r} is unknown; this version knows {TERMS}")
            values = (term.weight, term.low, term.high)
            _require(all(map(_finite, values)), f"term {term.name!r} should hold finite numbers, got {values}")
            _require(term.low <= term.high, f"term {term.name!r} should have low <= high, got {values}")
            _require(
                term.name != "cosine" or term.weight > 0.0,
                f"the weight of 'cosine' should be above 0, got {term.weight!r}",
            )
        _require(
            self.moods is None or isinstance(self.moods, Moods),
            f"moods should be Moods or None, got {type(self.moods).__name__}",
        )
        _require(
            self.moods is not None or "mood_shift" not in names, "the term 'mood_shift' needs moods, and there are none"
        )
        count = self.num_impostor_speakers
        _require(
            isinstance(count, int) and not isinstance(count, bool) and count >= 1,
            f"num_impostor_speakers should be a count of at least 1, got {count!r}",
        )
        _require(isinstance(self.source, str), f"source should be text, got {self.source!r}")
        sizes = [table.num_profiles for table in self.far_tables]
        _require(
            sizes[:1] == [1] and sizes == sorted(set(sizes)),
            f"far_tables should rise in num_profiles from 1, got {sizes}",
        )
        for table in self.far_tables:
            _check_table(table)

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
            From `ProfileBank.evidence`; every term of this calibration must be there.

        Raises
        ------
        ValueError
            If any value is not finite: no score comes out of a NaN.
        """
        total = np.full(len(evidence["cosine"]), self.bias)
        for term in self.terms:
            values = np.asarray(evidence[term.name], np.float64)
            if not np.isfinite(values).all():
                raise ValueError(f"the evidence {term.name!r} is not finite; the embedding or the quality is broken")
            total += term.weight * np.clip(values, term.low, term.high)
        return total

    def score(
        self, bank: ProfileBank, embedding: NDArray[np.float32], quality: SpeechQuality
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What a test says of each profile.

        Parameters
        ----------
        bank : ProfileBank
            Made with this calibration's `moods`.
        embedding : ndarray, shape (embedding_dim,), float32 of unit norm
        quality : SpeechQuality
            Of the test speech.

        Returns
        -------
        llrs, cosines : ndarray, shape (profiles,), float64
            The cosines are those without what moods share.

        Raises
        ------
        ValueError
            If the embedding cannot be scored, or the bank was made for another calibration.
        """
        if bank.moods != self.moods:
            raise ValueError("expected a bank made with this calibration's moods, got another; make it anew")
        evidence = bank.evidence(embedding, quality, self.pooling, self.term_names)
        return self.llr(evidence), evidence["cosine"]

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
            return Threshold(_interpolate(tables[0], target_far), target_far, extrapolated=False)
        if not extrapolate:
            raise CalibrationError(self._refusal(target_far, num_profiles, bool(tables)))
        table = tables[0] if tables else self.far_tables[-1]
        # Union bound: against m times as many profiles the rate is at most m times as high.
        rate = target_far * min(1.0, table.num_profiles / num_profiles)
        return Threshold(_extrapolate(table, rate, self.supported_far), target_far, extrapolated=True)

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
        moods = None
        if self.moods is not None:
            moods = {
                "directions": base64.b64encode(self.moods.directions).decode(),
                "shares": list(self.moods.shares),
                "axis": base64.b64encode(self.moods.axis).decode(),
            }
        # A file without moods is one of before, so that versions of before can read it.
        return json.dumps(
            ({"format": 1} if moods is None else {"format": CALIBRATION_FORMAT, "moods": moods})
            | {
                "pooling": self.pooling,
                "bias": self.bias,
                "terms": [dataclasses.asdict(term) for term in self.terms],
                "far_tables": [dataclasses.asdict(table) for table in self.far_tables],
                "num_impostor_speakers": self.num_impostor_speakers,
                "source": self.source,
            },
            sort_keys=True,
            allow_nan=False,
        )

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """Read a calibration from the JSON of `to_json`.

        Raises
        ------
        ModelFormatError
            If a key is missing or unknown, the format number is not known, or a value is out of range.
        """
        try:
            values: Any = json.loads(text)
        except ValueError as error:
            raise ModelFormatError(f"calibration: not JSON ({error}); it is damaged or foreign") from None
        if isinstance(values, dict) and values.get("format") not in (1, CALIBRATION_FORMAT):
            raise ModelFormatError(
                f"calibration: expected format 1 or {CALIBRATION_FORMAT}, got {values.get('format')!r}; "
                "install the emoinv-edge version that wrote it, or calibrate again"
            )
        if isinstance(values, dict):
            values.setdefault("moods", None)
        fields = _fields(values, {field.name for field in dataclasses.fields(cls)} | {"format"}, "calibration")
        del fields["format"]
        terms = [Term(**_fields(term, {"name", "weight", "low", "high"}, "term")) for term in _list(fields, "terms")]
        tables = []
        for entry in _list(fields, "far_tables"):
            table = _fields(entry, {"num_profiles", "rates", "thresholds"}, "far table")
            tables.append(
                FarTable(table["num_profiles"], tuple(_list(table, "rates")), tuple(_list(table, "thresholds")))
            )
        moods = None if fields["moods"] is None else _moods(fields["moods"])
        return cls(**{**fields, "terms": tuple(terms), "far_tables": tuple(tables), "moods": moods})


def _moods(values: Any) -> Moods:
    fields = _fields(values, {"directions", "shares", "axis"}, "moods")
    parts: dict[str, bytes] = {}
    for name in ("directions", "axis"):
        try:
            parts[name] = base64.b64decode(fields[name], validate=True)
        except (TypeError, ValueError, binascii.Error):
            _require(False, f"the moods' {name} should be base64")
    return Moods(parts["directions"], tuple(_list(fields, "shares")), parts["axis"])


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ModelFormatError(f"calibration: {message}; it is damaged or foreign, calibrate again")


def _fields(values: Any, expected: set[str], what: str) -> dict[str, Any]:
    _require(isinstance(values, dict), f"{what} should be a JSON object, got {type(values).__name__}")
    for key in sorted(expected - values.keys()):
        _require(False, f"{what}: key {key!r} is missing")
    for key in sorted(values.keys() - expected):
        _require(False, f"{what}: key {key!r} is unknown")
    return dict(values)


def _list(values: dict[str, Any], key: str) -> list[Any]:
    _require(isinstance(values[key], list), f"{key} should be a list, got {type(values[key]).__name__}")
    return list(values[key])


def _check_table(table: FarTable) -> None:
    count, rates, thresholds = table.num_profiles, table.rates, table.thresholds
    _require(
        isinstance(count, int) and not isinstance(count, bool) and count >= 1,
        f"num_profiles should be a count of at least 1, got {count!r}",
    )
    _require(
        len(rates) == len(thresholds) >= 2,
        f"a far table needs as many thresholds as rates, two or more, got {len(thresholds)} and {len(rates)}",
    )
    _require(all(map(_finite, (*rates, *thresholds))), "a far table should hold finite numbers")
    _require(
        all(0.0 < low < high <= 1.0 for high, low in itertools.pairwise(rates)),
        "the rates of a far table should fall from at most 1 to above 0",
    )
    _require(
        all(low <= high for low, high in itertools.pairwise(thresholds)),
        "the thresholds of a far table should not fall while its rates do: lower rates need higher thresholds",
    )


def _interpolate(table: FarTable, rate: float) -> float:
    """The threshold for `rate`: the next lower tabulated rate's share, linear in log rate."""
    logs = np.log(np.asarray(table.rates))[::-1]
    return float(np.interp(math.log(rate), logs, np.asarray(table.thresholds)[::-1]))


def _extrapolate(table: FarTable, rate: float, supported: float) -> float:
    """A threshold beyond the table, on the safe side of two tails.

    One tail continues the table's own slope from its last supported rate, never steeper than one
    nat of LLR per nat of rate; the other is the bound that every calibrated LLR obeys,
    P(LLR >= t | impostor) <= exp(-t).
    """
    anchor = max(supported, table.rates[-1])
    last = _interpolate(table, min(anchor, table.rates[0]))
    if rate >= anchor:
        return _interpolate(table, rate)
    return max(last + math.log(anchor / rate), -math.log(rate))


def without_shares(
    embeddings: NDArray[np.float32], directions: NDArray[np.float32], shares: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Test embeddings less the moods' shares: their dot products with a profile's are the cosines without them.

    Parameters
    ----------
    embeddings : ndarray, shape (..., dim), float32
    directions, shares : ndarray
        From `Moods.arrays`.
    """
    return np.asarray(embeddings - (embeddings @ directions.T * shares) @ directions, np.float32)


class ProfileBank:
    """Profiles stacked for scoring: many are compared with one test embedding in a few array operations.

    Parameters
    ----------
    profiles : iterable of Profile
        Of one model, one embedding size.
    moods : Moods, optional
        `Calibration.moods` of the calibration that will score.

    Raises
    ------
    EnrolmentError
        If there is no profile.
    ValueError
        If the moods are those of embeddings of another size.
    """

    def __init__(self, profiles: Iterable[Profile], moods: Moods | None = None) -> None:
        kept = tuple(profiles)
        if not kept:
            raise EnrolmentError("expected at least one profile, got none; enrol a speaker first")
        self.names = tuple(profile.name for profile in kept)
        self._set(
            np.concatenate([[exemplar.embedding for exemplar in profile.exemplars] for profile in kept]),
            [exemplar.quality for profile in kept for exemplar in profile.exemplars],
            [len(profile.exemplars) for profile in kept],
            moods,
        )

    @classmethod
    def from_arrays(
        cls,
        names: Sequence[str],
        embeddings: NDArray[np.float32],
        qualities: Sequence[SpeechQuality],
        counts: Sequence[int],
        moods: Moods | None = None,
    ) -> ProfileBank:
        """A bank from stacked exemplars, shape (sum of counts, embedding_dim), of unit norm; for training."""
        if len(names) != len(counts) or not len(names) or min(counts) < 1:
            raise ValueError(f"expected a name and a count above 0 for each profile, got {len(names)} and {counts}")
        if sum(counts) != len(embeddings) or len(qualities) != len(embeddings):
            raise ValueError(f"expected {sum(counts)} exemplars, got {len(embeddings)} and {len(qualities)} qualities")
        bank = cls.__new__(cls)
        bank.names = tuple(names)
        bank._set(embeddings, qualities, counts, moods)
        return bank

    @classmethod
    def of_exemplars(cls, exemplars: Sequence[Exemplar], moods: Moods | None = None) -> ProfileBank:
        """A bank of one speaker, of whom no profile was made yet."""
        return cls.from_arrays(
            ["speaker"],
            np.stack([exemplar.embedding for exemplar in exemplars]),
            [exemplar.quality for exemplar in exemplars],
            [len(exemplars)],
            moods,
        )

    def _set(
        self,
        embeddings: NDArray[np.float32],
        qualities: Sequence[SpeechQuality],
        counts: Sequence[int],
        moods: Moods | None,
    ) -> None:
        if moods is not None and moods.dim != embeddings.shape[1]:
            raise ValueError(
                f"expected moods of embeddings of {embeddings.shape[1]} numbers, got {moods.dim}; calibrate again"
            )
        self._shape = embeddings.shape[1:]
        self.moods = moods
        self._embeddings: NDArray[np.float32] | None = np.ascontiguousarray(embeddings, np.float32)
        self._counts = np.asarray(counts, np.int64)
        self._starts = np.concatenate(([0], np.cumsum(self._counts)[:-1]))
        seconds = np.array([quality.net_speech_s for quality in qualities])
        self._weights = np.sqrt(np.maximum(seconds, 0.1)).astype(np.float32)
        self._seconds = np.add.reduceat(seconds, self._starts)
        self._snr = self._mean([quality.snr_db for quality in qualities])
        self._f0 = self._mean([quality.log_f0_mean for quality in qualities])
        voiced = [quality if quality.log_f0_mean is not None else None for quality in qualities]
        self._spread = self._mean([None if quality is None else quality.log_f0_std for quality in voiced])
        self._tilt = self._mean([None if quality is None else quality.tilt_db for quality in voiced])
        shapes = [quality.envelope or (math.nan,) * ENVELOPE_SIZE for quality in qualities]
        self._envelope = np.stack([self._mean(column) for column in zip(*shapes, strict=True)], axis=1)
        self._norm = self._mean([quality.log_embedding_norm for quality in qualities])
        self._vectors: dict[str, NDArray[np.float32]] = {}
        self._mood: NDArray[np.float32] | None = None
        if moods is not None:
            self._directions, self._shares, self._axis = moods.arrays()
            self._mood = self._pooled("centroid") @ self._axis

    def __len__(self) -> int:
        return len(self.names)

    def _mean(self, values: Sequence[float | None]) -> NDArray[np.float64]:
        """Mean over each profile's known values, NaN where none is known."""
        array = np.array([math.nan if value is None else value for value in values])
        known = np.isfinite(array)
        count = np.add.reduceat(known.astype(np.float64), self._starts)
        total = np.add.reduceat(np.where(known, array, 0.0), self._starts)
        return np.where(count > 0, total / np.maximum(count, 1.0), math.nan)

    def _pooled(self, pooling: str) -> NDArray[np.float32]:
        """One vector for each profile whose dot product with a test embedding is the pooled cosine."""
        found = self._vectors.get(pooling)
        if found is None:
            if self._embeddings is None:
                raise ValueError(f"this bank was made compact for {list(self._vectors)}, not for {pooling!r}")
            weights = self._weights if pooling == "quality" else np.ones(len(self._embeddings), np.float32)
            total = np.add.reduceat(weights, self._starts)[:, None]
            means = np.add.reduceat(self._embeddings * weights[:, None], self._starts, axis=0) / total
            if pooling == "centroid":
                means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-6)
            found = np.asarray(means, np.float32)
            self._vectors[pooling] = found
        return found

    def compact(self, pooling: str) -> None:
        """Keep only what this pooling needs: one vector a profile instead of one an exemplar, where that is enough."""
        if pooling in LINEAR_POOLINGS:
            self._pooled(pooling)
            self._embeddings = None

    def cosines(self, embedding: NDArray[np.float32], pooling: str) -> NDArray[np.float64]:
        """One pooled cosine for each profile, shape (profiles,), without what moods share."""
        if self.moods is not None:
            embedding = without_shares(embedding, self._directions, self._shares)
        if pooling in LINEAR_POOLINGS:
            return np.clip((self._pooled(pooling) @ embedding).astype(np.float64), -1.0, 1.0)
        if pooling not in POOLINGS:
            raise ValueError(f"expected a pooling of {POOLINGS}, got {pooling!r}")
        if self._embeddings is None:
            raise ValueError(f"this bank was made compact for {list(self._vectors)}, not for {pooling!r}")
        each = np.clip((self._embeddings @ embedding).astype(np.float64), -1.0, 1.0)
        if pooling == "max":
            return np.asarray(np.maximum.reduceat(each, self._starts))
        total = np.add.reduceat(np.exp(SHARPNESS * each), self._starts)
        return np.clip(np.log(total / self._counts) / SHARPNESS, -1.0, 1.0)

    def _envelope_evidence(self, quality: SpeechQuality) -> NDArray[np.float64]:
        if quality.envelope is None:
            return np.zeros(len(self.names))
        distance = np.linalg.norm(self._envelope - np.asarray(quality.envelope), axis=1) / ENVELOPE_UNIT_DB
        words = ENVELOPE_SETTLES_S * (1.0 / max(quality.net_speech_s, 0.1) + 1.0 / np.maximum(self._seconds, 0.1))
        return np.where(np.isnan(distance), 0.0, np.log(np.maximum(distance, 0.05))) / (1.0 + words)

    def evidence(
        self, embedding: NDArray[np.float32], quality: SpeechQuality, pooling: str, terms: Collection[str] = TERMS
    ) -> dict[str, NDArray[np.float64]]:
        """Everything that a calibration may weigh, one value for each profile.

        Parameters
        ----------
        embedding : ndarray, shape (embedding_dim,), float32 of unit norm
        quality : SpeechQuality
            Of the test speech.
        pooling : str
            The calibration's.
        terms : collection of str
            What will be weighed. The envelope costs more than the cosine where there are many profiles, so it
            is left out unless it is named here.

        Returns
        -------
        dict from name in `TERMS` to ndarray, shape (profiles,), float64

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
        count = len(self.names)
        unknown = np.isnan(self._f0) | (quality.log_f0_mean is None)
        f0 = np.where(unknown, 0.0, (quality.log_f0_mean or 0.0) - self._f0)
        spread = np.where(unknown, 0.0, quality.log_f0_std - self._spread)
        tilt = np.where(unknown, 0.0, quality.tilt_db - self._tilt)
        log_norm = quality.log_embedding_norm
        rise = np.zeros(count) if log_norm is None else np.where(np.isnan(self._norm), 0.0, log_norm - self._norm)
        found = {
            "cosine": self.cosines(embedding, pooling),
            "f0_shift": f0,
            "f0_above": np.maximum(f0, 0.0),
            "f0_below": np.maximum(-f0, 0.0),
            "f0_unknown": unknown.astype(np.float64),
            "f0_spread_above": np.maximum(spread, 0.0),
            "f0_spread_below": np.maximum(-spread, 0.0),
            "tilt_above": np.maximum(tilt, 0.0),
            "tilt_below": np.maximum(-tilt, 0.0),
            "norm_above": np.maximum(rise, 0.0),
            "norm_below": np.maximum(-rise, 0.0),
            "mood_shift": (
                np.zeros(count) if self._mood is None else np.asarray(self._axis @ embedding - self._mood, np.float64)
            ),
            "test_seconds": np.full(count, math.log(max(quality.net_speech_s, 0.1))),
            "enrol_seconds": np.log(np.maximum(self._seconds, 0.1)),
            "snr": np.minimum(quality.snr_db, self._snr),
            "exemplars": np.log(self._counts.astype(np.float64)),
        }
        if "envelope" in terms:
            found["envelope"] = self._envelope_evidence(quality)
        return found
