"""Which calibrations could come from speech at all; a file with another one is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .thresholds import require

__all__ = ["CIRCUMSTANCES", "MAX_CIRCUMSTANCES", "check_plausible"]

# What pitch, norm and seconds may add together, in nats: more was never seen of an owner, and a profile made by hand
# must not buy an accept with them.
CIRCUMSTANCES = frozenset({"f0_above", "f0_below", "norm_above", "norm_below", "test_seconds", "enrol_seconds"})
MAX_CIRCUMSTANCES = 1.5

MAX_BIAS, MAX_WEIGHT = 200.0, 500.0
# What the evidence can be at all: no calibration covers more.
RANGES = {
    "cosine": (-1.0, 1.0),
    "f0_above": (0.0, 2.5),
    "f0_below": (0.0, 2.5),
    "envelope": (-4.0, 4.0),
    "norm_above": (0.0, 4.0),
    "norm_below": (0.0, 4.0),
    "emotion_shift": (-2.0, 2.0),
    "test_seconds": (-2.5, 9.0),
    "enrol_seconds": (-2.5, 9.0),
}


class _Term(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def weight(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


class _Table(Protocol):
    @property
    def thresholds(self) -> tuple[float, ...]: ...


def check_plausible(bias: float, terms: Sequence[_Term], far_tables: Sequence[_Table], most_shift: float = 0.0) -> None:
    """Refuse numbers that no speech gives, and thresholds that a voice like no other would pass.

    A voice at a right angle to the profile is no evidence for it: it must stay below the threshold of every rate,
    and below that of the strictest rate even where everything else is as favourable as it can be.

    Parameters
    ----------
    bias, terms, far_tables
        Of a `Calibration`.
    most_shift : float
        What it adds to a score at most for the conditions of a recording.

    Raises
    ------
    ModelFormatError
        If they are not plausible.
    """
    require(abs(bias) <= MAX_BIAS, f"bias should be at most {MAX_BIAS:g}, got {bias:g}")
    stranger = best = bias + max(0.0, most_shift)
    circumstances = 0.0
    for term in terms:
        low, high = RANGES[term.name]
        require(
            abs(term.weight) <= MAX_WEIGHT and low <= term.low <= term.high <= high,
            f"term {term.name!r} should weigh at most {MAX_WEIGHT:g} and lie within {low:g} and {high:g}, "
            f"got {term.weight:g} within {term.low:g} and {term.high:g}",
        )
        at_zero = term.weight * min(max(0.0, term.low), term.high)
        stranger += at_zero
        if term.name in CIRCUMSTANCES:
            circumstances += max(term.weight * term.low, term.weight * term.high)
        else:
            best += at_zero if term.name == "cosine" else max(term.weight * term.low, term.weight * term.high)
    best += min(circumstances, MAX_CIRCUMSTANCES)
    for table in far_tables:
        require(
            stranger < table.thresholds[0] and best < table.thresholds[-1],
            f"thresholds should be above the scores of a voice unlike the profile's, {stranger:.2f} and at best "
            f"{best:.2f}, got {table.thresholds[0]:.2f} to {table.thresholds[-1]:.2f}",
        )
