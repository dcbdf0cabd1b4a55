"""Refine a model's calibration for one device: its room, its microphone, its likely impostors.

What a device adds is a `Refinement`: one shift of the LLR and, where its impostors score higher than
those behind the model's thresholds, raised thresholds. It is kept in the sealed store of the profiles
(`store.device`) and applied to the model's own calibration when that is read. Even a forged one could not open a door
wide: the shift is bounded, thresholds only rise.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .calibration import Calibration, FarTable
from .conditions import Conditions, Heard
from .errors import CalibrationError
from .fields import read_count, read_fields, read_list, read_number, read_text

__all__ = ["Refinement", "refine"]

FORMAT = 1
MAX_SHIFT = 2.0  # nats, either way
MIN_IMPOSTORS = 5
MIN_GENUINE = 5
# The model's calibration counts as much as this many of the device's impostor speakers.
PRIOR_SPEAKERS = 20.0
ROUNDING = 1e-9  # of sums of LLRs: a score at a quantile must not pass the threshold made of it
MATCHED_RATES = (0.5, 0.3, 0.2, 0.1)
REACH = ("narrowest_hz", "least_snr_db", "longest_decay_s")  # fields of a refinement, and of `Conditions`


@dataclasses.dataclass(frozen=True, slots=True)
class Refinement:
    """What a device adds to the calibration of one model.

    Parameters
    ----------
    model_fingerprint : str
        `Encoder.fingerprint`: which model's scores it refines.
    shift : float
        Added to every LLR, -2 to 2.
    raises : tuple of (float, float)
        False-accept rate and how much its thresholds rise, at least 0.
    num_impostor_speakers, num_genuine : int
        Of the device's speech behind it.
    created : datetime
        In UTC.
    file_sha256 : str
        `Encoder.file_sha256`: of the file whose calibration it starts from.
    narrowest_hz, least_snr_db, longest_decay_s : float, optional
        How far the recordings of 5 of the impostor speakers reach; what lies within is calibrated.
    """

    model_fingerprint: str
    shift: float
    raises: tuple[tuple[float, float], ...]
    num_impostor_speakers: int
    num_genuine: int
    created: datetime.datetime
    file_sha256: str
    narrowest_hz: float | None = None
    least_snr_db: float | None = None
    longest_decay_s: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.shift) and abs(self.shift) <= MAX_SHIFT):
            raise ValueError(f"expected a shift from {-MAX_SHIFT:g} to {MAX_SHIFT:g}, got {self.shift!r}")
        for rate, rise in self.raises:
            if not (0.0 < rate < 1.0 and math.isfinite(rise) and rise >= 0.0):
                raise ValueError(f"expected rates between 0 and 1 and rises of at least 0, got {(rate, rise)!r}")
        if self.num_impostor_speakers < MIN_IMPOSTORS or self.num_genuine < 0:
            raise ValueError(f"expected {MIN_IMPOSTORS} impostor speakers or more, got {self.num_impostor_speakers}")
        for name in REACH:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and (name == "least_snr_db" or value > 0.0)):
                raise ValueError(f"expected {name} as a finite number above 0, got {value!r}")

    def to_values(self) -> dict[str, Any]:
        """The refinement as a JSON object with its format number."""
        return {"format": FORMAT, **dataclasses.asdict(self), "created": self.created.isoformat()}

    @classmethod
    def from_values(cls, values: Any) -> Refinement:
        """Read a refinement from what `to_values` gave.

        Raises
        ------
        CalibrationError
            If it is damaged, of another version, or holds values out of range.
        """
        keys = [field.name for field in dataclasses.fields(cls)]
        try:
            required = [key for key in keys if key not in REACH]
            fields = read_fields(values, ("format", *required), "refinement", optional=REACH)
            if fields["format"] != FORMAT:
                raise ValueError(f"expected format {FORMAT}, got {fields['format']!r}")
            raises = [read_list(entry, "raises") for entry in read_list(fields["raises"], "raises")]
            return cls(
                model_fingerprint=read_text(fields["model_fingerprint"], "model_fingerprint"),
                shift=read_number(fields["shift"], "shift"),
                raises=tuple((read_number(rate, "rate"), read_number(rise, "rise")) for rate, rise in raises),
                num_impostor_speakers=read_count(fields["num_impostor_speakers"], "num_impostor_speakers"),
                num_genuine=read_count(fields["num_genuine"], "num_genuine"),
                created=datetime.datetime.fromisoformat(read_text(fields["created"], "created")),
                file_sha256=read_text(fields["file_sha256"], "file_sha256"),
                **{name: None if fields[name] is None else read_number(fields[name], name) for name in REACH},
            )
        except ValueError as error:
            raise CalibrationError(
                f"not a device's calibration of this version ({error}); calibrate again, or go back to the model's own "
                "with `emoinv calibrate --reset`"
            ) from None

    def apply(self, calibration: Calibration) -> Calibration:
        """The model's calibration with this refinement."""
        tables = []
        for table in calibration.far_tables:
            rises = [self._rise(rate) for rate in table.rates]
            raised = np.maximum.accumulate(np.asarray(table.thresholds) + rises)
            tables.append(FarTable(table.num_profiles, table.rates, tuple(map(float, raised))))
        return dataclasses.replace(
            calibration,
            bias=calibration.bias + self.shift,
            far_tables=tuple(tables),
            conditions=self._reaching(calibration.conditions),
            source=f"{calibration.source}; this device: {self.num_impostor_speakers} impostor speakers",
        )

    def _reaching(self, conditions: Conditions | None) -> Conditions | None:
        """The model's conditions, reaching as far as this device's recordings do."""
        if conditions is None:
            return None
        return conditions.widened(*(getattr(conditions if getattr(self, n) is None else self, n) for n in REACH))

    def _rise(self, rate: float) -> float:
        """The rise at a rate: that of the next higher rate that was measured; lower rates inherit it."""
        known = sorted(self.raises, reverse=True)
        found = 0.0
        for measured, rise in known:
            if measured >= rate * (1.0 - 1e-9):
                found = rise
        return found


def refine(
    calibration: Calibration,
    fingerprint: str,
    impostors: Mapping[str, Sequence[float]],
    genuine: Sequence[float] = (),
    *,
    file_sha256: str,
    heard: Mapping[str, Sequence[Heard]] | None = None,
) -> Refinement:
    """Fit a refinement to LLRs that a device measured with the model's own calibration.

    Parameters
    ----------
    calibration : Calibration
        The model's own.
    fingerprint : str
        `Encoder.fingerprint`.
    impostors : mapping from speaker to LLRs
        Of attempts by people who are not enrolled; every speaker weighs the same.
    genuine : sequence of float
        LLRs of attempts by the enrolled speakers, against their own profiles.
    file_sha256 : str
        `Encoder.file_sha256`.
    heard : mapping from speaker to Heard, optional
        Under which conditions the impostors' recordings were made.

    Raises
    ------
    CalibrationError
        If there are fewer than 5 impostor speakers, between 1 and 4 genuine attempts, or the
        impostors score higher than the genuine speakers.
    """
    groups = [np.asarray(values, np.float64) for values in impostors.values() if len(values)]
    own = np.asarray(genuine, np.float64)
    if len(groups) < MIN_IMPOSTORS:
        raise CalibrationError(
            f"expected usable speech of {MIN_IMPOSTORS} impostor speakers or more, got {len(groups)}; "
            "give one sub-folder a speaker, with people of the owner's gender and age above all"
        )
    scores = np.concatenate(groups)
    weights = np.concatenate([np.full(len(group), 1.0 / len(group) / len(groups)) for group in groups])
    if not (np.isfinite(scores).all() and np.isfinite(own).all()):
        raise CalibrationError("a score is not finite; run `emoinv doctor` to check the model")
    if 0 < len(own) < MIN_GENUINE:
        raise CalibrationError(f"expected {MIN_GENUINE} genuine recordings or more, or none, got {len(own)}")
    if len(own) and float(np.median(own)) <= float(np.average(scores, weights=weights)):
        raise CalibrationError("the genuine recordings score lower than the impostors'; are the folders swapped?")
    shift = (
        _fit_shift(own, scores, weights, len(groups))
        if len(own)
        else _matched(calibration, scores, weights, len(groups))
    )
    shift = float(np.clip(shift, -MAX_SHIFT, MAX_SHIFT))
    raises = []
    for rate in calibration.far_tables[0].rates:
        if rate * len(groups) >= 1.0:
            rise = _quantile(scores, weights, rate) + shift - calibration.threshold(rate, extrapolate=True).llr
            raises.append((float(rate), max(0.0, float(rise) + ROUNDING)))
    now = datetime.datetime.now(datetime.timezone.utc)
    reach = _reach(heard or {})
    return Refinement(fingerprint, shift, tuple(raises), len(groups), len(own), now, file_sha256, **reach)


def _reach(heard: Mapping[str, Sequence[Heard]]) -> dict[str, float]:
    """How far the recordings of `MIN_IMPOSTORS` speakers reach; nothing where fewer were measured."""
    out = {}
    for name, measured, sign in zip(REACH, ("bandwidth_hz", "snr_db", "decay_s"), (1.0, 1.0, -1.0), strict=True):
        values = [
            [sign * value for each in own if (value := getattr(each, measured)) is not None] for own in heard.values()
        ]
        farthest = sorted(min(own) for own in values if own)
        if len(farthest) >= MIN_IMPOSTORS:
            out[name] = sign * farthest[MIN_IMPOSTORS - 1]
    return out


def _quantile(scores: NDArray[np.float64], weights: NDArray[np.float64], rate: float) -> float:
    """The lowest threshold that at most the share `rate` of the scores reaches."""
    order = np.argsort(-scores)
    above = np.cumsum(weights[order])
    first = int(np.searchsorted(above, rate * (1.0 + 1e-9), side="right"))
    return float(np.nextafter(scores[order[min(first, len(order) - 1)]], math.inf))


def _matched(
    calibration: Calibration, scores: NDArray[np.float64], weights: NDArray[np.float64], speakers: int
) -> float:
    """The shift that brings the impostors to the model's own, as far as their number earns belief."""
    rates = [rate for rate in MATCHED_RATES if rate * speakers >= 1.0]
    off = [_quantile(scores, weights, rate) - calibration.threshold(rate, extrapolate=True).llr for rate in rates]
    return -float(np.mean(off)) * speakers / (speakers + PRIOR_SPEAKERS)


def _fit_shift(
    own: NDArray[np.float64], scores: NDArray[np.float64], weights: NDArray[np.float64], speakers: int
) -> float:
    """The shift with the minimum Cllr, held towards 0 by the model's calibration (Newton in one dimension)."""
    shift = 0.0
    for _ in range(100):
        own_doubt = 1.0 / (1.0 + np.exp(np.clip(own + shift, -50.0, 50.0)))
        belief = 1.0 / (1.0 + np.exp(np.clip(-scores - shift, -50.0, 50.0)))
        slope = speakers * (float(weights @ belief) - float(own_doubt.mean())) + 0.25 * PRIOR_SPEAKERS * shift
        bend = (
            speakers * (float(weights @ (belief * (1.0 - belief))) + float((own_doubt * (1.0 - own_doubt)).mean()))
            + 0.25 * PRIOR_SPEAKERS
        )
        step = slope / bend
        shift -= step
        if abs(step) < 1e-9:
            break
    return shift
