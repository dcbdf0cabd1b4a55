"""Thresholds on the LLR for false-accept rates: tables, what lies between their rows, and cautious ones beyond."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np

from .errors import ModelFormatError
from .fields import is_finite

__all__ = [
    "MAX_ATTEMPTS",
    "FarTable",
    "SessionRise",
    "Threshold",
    "bayes_threshold",
    "check_rises",
    "check_table",
    "extrapolated_from",
    "interpolated",
    "require",
]

MAX_ATTEMPTS = 3  # of one session


def require(holds: bool, message: str) -> None:
    """ModelFormatError for a calibration that does not hold what it must."""
    if not holds:
        raise ModelFormatError(f"calibration: {message}; it is damaged or foreign, calibrate again")


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
class SessionRise:
    """How far a session's threshold lies above that of one attempt, by the rate asked for over the whole session.

    Parameters
    ----------
    attempts : int
        Utterances of the session at most, 2 or 3.
    rates : tuple of float
        Falling, as in a `FarTable`.
    rises : tuple of float
        Nats, at least 0: what a session accepts, one of its utterances or some together reach the threshold alone.
    """

    attempts: int
    rates: tuple[float, ...]
    rises: tuple[float, ...]


def check_table(table: FarTable) -> None:
    """Refuse a table whose rates do not fall or whose thresholds do."""
    count, rates, thresholds = table.num_profiles, table.rates, table.thresholds
    require(
        isinstance(count, int) and not isinstance(count, bool) and count >= 1,
        f"num_profiles should be a count of at least 1, got {count!r}",
    )
    require(
        len(rates) == len(thresholds) >= 2,
        f"a far table needs as many thresholds as rates, two or more, got {len(thresholds)} and {len(rates)}",
    )
    require(all(map(is_finite, (*rates, *thresholds))), "a far table should hold finite numbers")
    require(
        all(0.0 < low < high <= 1.0 for high, low in itertools.pairwise(rates)),
        "the rates of a far table should fall from at most 1 to above 0",
    )
    require(
        all(low <= high for low, high in itertools.pairwise(thresholds)),
        "the thresholds of a far table should not fall while its rates do: lower rates need higher thresholds",
    )


def check_rises(rises: tuple[SessionRise, ...]) -> None:
    """Refuse rises that are not those of two attempts and more, in order."""
    attempts = [each.attempts for each in rises]
    require(
        all(isinstance(count, int) and 2 <= count <= MAX_ATTEMPTS for count in attempts)
        and attempts == sorted(set(attempts)),
        f"session_rises should rise in attempts, from 2 to {MAX_ATTEMPTS}, got {attempts}",
    )
    for each in rises:
        require(
            len(each.rates) == len(each.rises) >= 1, "session_rises should have as many rises as rates, one or more"
        )
        require(all(map(is_finite, (*each.rates, *each.rises))), "session_rises should hold finite numbers")
        require(
            all(0.0 < rate < 1.0 for rate in each.rates)
            and all(low < high for high, low in itertools.pairwise(each.rates)),
            "the rates of session_rises should fall, between 1 and 0",
        )
        require(min(each.rises) >= 0.0, "a session's threshold should not lie below that of one attempt")


def interpolated(table: FarTable, rate: float) -> float:
    """The threshold for `rate`: the next lower tabulated rate's share, linear in log rate."""
    logs = np.log(np.asarray(table.rates))[::-1]
    return float(np.interp(math.log(rate), logs, np.asarray(table.thresholds)[::-1]))


def extrapolated_from(table: FarTable, rate: float, supported: float) -> float:
    """A threshold beyond the table, on the safe side of two tails.

    One tail continues the table's own slope from its last supported rate, never steeper than one
    nat of LLR per nat of rate; the other is the bound that every calibrated LLR obeys,
    P(LLR >= t | impostor) <= exp(-t).
    """
    anchor = max(supported, table.rates[-1])
    last = interpolated(table, min(anchor, table.rates[0]))
    if rate >= anchor:
        return interpolated(table, rate)
    return max(last + math.log(anchor / rate), -math.log(rate))
