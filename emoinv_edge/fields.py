"""The strict JSON reader: every key expected, every value of its type, every number finite.

Each function raises `ValueError` with what was expected and what came; the caller adds what the
JSON belongs to, and the cure.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from typing import Any

MAX_DEPTH = 64

__all__ = ["is_finite", "read_count", "read_fields", "read_json", "read_list", "read_number", "read_text"]


def read_json(text: str | bytes) -> Any:
    """The value of a JSON text; NaN, infinities, anything that is not UTF-8 and deep nesting are refused."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        _refuse_depth(value)
        return value
    except RecursionError:
        raise ValueError("not JSON (nested too deep)") from None
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is beyond what a number can hold")
    return value


def _refuse_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            each
            for values in level
            for each in (values.values() if isinstance(values, dict) else values if isinstance(values, list) else ())
            if isinstance(each, (dict, list))
        ]
        if not level:
            return
    raise ValueError(f"nested deeper than {MAX_DEPTH}")


def read_fields(values: Any, keys: Collection[str], what: str, optional: Collection[str] = ()) -> dict[str, Any]:
    """The values of a JSON object that must hold exactly `keys`; `optional` ones are None where missing."""
    if not isinstance(values, dict):
        raise ValueError(f"{what} should be a JSON object, got {type(values).__name__}")
    for key in sorted(set(keys) - values.keys()):
        raise ValueError(f"{what}: key {key!r} is missing")
    for key in sorted(values.keys() - set(keys) - set(optional)):
        raise ValueError(f"{what}: key {key!r} is unknown")
    return dict.fromkeys(optional) | values


def read_list(value: Any, what: str) -> list[Any]:
    """A JSON array."""
    if not isinstance(value, list):
        raise ValueError(f"{what} should be a list, got {type(value).__name__}")
    return value


def read_text(value: Any, what: str) -> str:
    """A JSON string."""
    if not isinstance(value, str):
        raise ValueError(f"{what} should be text, got {value!r:.80}")
    return value


def is_finite(value: object) -> bool:
    """Whether this is a number, and neither NaN nor infinite; a bool is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def read_number(value: Any, what: str) -> float:
    """A finite JSON number."""
    if not is_finite(value):
        raise ValueError(f"{what} should be a finite number, got {value!r:.80}")
    return float(value)


def read_count(value: Any, what: str, least: int = 0) -> int:
    """A JSON integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{what} should be a count of at least {least}, got {value!r:.80}")
    return value
