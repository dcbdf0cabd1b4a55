"""The golden test in a model file: a few waveforms with the embeddings that the exporting machine computed from them.

A device that reproduces them computes the same voice, from its own front end to the embedding.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .encoder import Encoder
from .errors import ModelFormatError
from .fields import read_count, read_fields, read_list, read_number, read_text

__all__ = ["GOLDEN_FORMAT", "GoldenResult", "make_golden", "run_golden"]

GOLDEN_FORMAT = 2
# Rounding differs between processors (0.998 and more between x86 and ARM); less means damage. No file may ask for less.
GOLDEN_COSINE = 0.995
STEP = 1.0 / 128.0  # golden waveforms are stored as int8 of this step
MAX_ITEMS = 16
MAX_SECONDS = 10.0


@dataclasses.dataclass(frozen=True, slots=True)
class GoldenResult:
    """One golden input: the cosine of this machine's embedding with the stored one, and the least allowed."""

    cosine: float
    least: float

    @property
    def passed(self) -> bool:
        """Whether this machine computes the same voice."""
        return self.cosine >= self.least

    def __bool__(self) -> bool:
        """Whether it passed."""
        return self.passed


def make_golden(encoder: Encoder, waveforms: Sequence[NDArray[np.float32]], machine: str) -> dict[str, Any]:
    """The golden test of a model: what ``emoinv.golden`` holds.

    Parameters
    ----------
    encoder : Encoder
    waveforms : sequence of ndarray, shape (samples,), float32 in [-1, 1]
        At the model's rate. They are rounded to 1/128 before they are embedded.
    machine : str
        What computed the embeddings, e.g. a processor's name.
    """
    items = []
    for waveform in waveforms:
        steps = np.clip(np.rint(waveform / np.float32(STEP)), -128, 127).astype(np.int8)
        items.append(
            {
                "samples": len(steps),
                "input": base64.b64encode(zlib.compress(steps.tobytes(), 9)).decode(),
                "embedding": base64.b64encode(_embed(encoder, steps).astype("<f4").tobytes()).decode(),
            }
        )
    return {"format": GOLDEN_FORMAT, "cosine": GOLDEN_COSINE, "machine": machine, "items": items}


def run_golden(encoder: Encoder) -> list[GoldenResult]:
    """Run the golden test that `encoder`'s file holds; an empty list if it holds none.

    Raises
    ------
    ModelFormatError
        If the stored test is of an unknown format or damaged.
    """
    golden = encoder.metadata.get("emoinv.golden")
    if golden is None:
        return []
    try:
        if isinstance(golden, dict) and golden.get("format") != GOLDEN_FORMAT:
            raise ModelFormatError(
                f"{encoder.path}: expected a golden test of format {GOLDEN_FORMAT}, got {golden.get('format')!r:.40}; "
                "install the emoinv-edge version that wrote this model, or calibrate it again (python -m export)"
            )
        read_fields(golden, ("format", "cosine", "machine", "items"), "golden test")
        items = read_list(golden["items"], "items")
        if not 0 < len(items) <= MAX_ITEMS:
            raise ValueError(f"expected 1 to {MAX_ITEMS} items, got {len(items)}")
        least = max(read_number(golden["cosine"], "cosine"), GOLDEN_COSINE)
        return [GoldenResult(_compare(encoder, item), least) for item in items]
    except (KeyError, TypeError, ValueError, zlib.error, binascii.Error) as error:
        if isinstance(error, ModelFormatError):
            raise
        raise ModelFormatError(
            f"{encoder.path}: the golden test is damaged ({type(error).__name__}: {error}); export the model again"
        ) from error


def _compare(encoder: Encoder, item: Mapping[str, Any]) -> float:
    read_fields(item, ("samples", "input", "embedding"), "golden input")
    samples = read_count(item["samples"], "samples", least=1)
    if samples > MAX_SECONDS * encoder.spec.sample_rate:
        raise ValueError(f"expected at most {MAX_SECONDS:g} s of input, got {samples} samples")
    packed = base64.b64decode(read_text(item["input"], "input"), validate=True)
    raw = zlib.decompressobj().decompress(packed, samples + 1)  # no more, whatever it would grow to
    if len(raw) != samples:
        raise ValueError(f"expected {samples} samples, got {len(raw)}")
    expected = np.frombuffer(base64.b64decode(read_text(item["embedding"], "embedding"), validate=True), "<f4")
    if expected.shape != (encoder.spec.embedding_dim,) or not abs(float(np.linalg.norm(expected)) - 1.0) <= 1e-3:
        raise ValueError(f"expected a unit embedding of {encoder.spec.embedding_dim}, got shape {expected.shape}")
    return float(_embed(encoder, np.frombuffer(raw, np.int8)) @ expected)


def _embed(encoder: Encoder, steps: NDArray[np.int8]) -> NDArray[np.float32]:
    return encoder.embed(steps.astype(np.float32) * np.float32(STEP), encoder.spec.sample_rate).vector
