"""The golden test in a model file: a few inputs with the embeddings that the exporting machine computed from them.

A device that reproduces them computes the same voice.
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

__all__ = ["GOLDEN_FORMAT", "GoldenResult", "make_golden", "run_golden"]

GOLDEN_FORMAT = 1
# Rounding differs between processors (0.998 and more between x86 and ARM); less means damage.
GOLDEN_COSINE = 0.995
FEATURE_STEP = 1.0 / 4.0  # golden log-mels are stored as int8 of this step


@dataclasses.dataclass(frozen=True, slots=True)
class GoldenResult:
    """One golden input: the cosine of this machine's embedding with the stored one, and the least allowed."""

    cosine: float
    least: float

    @property
    def passed(self) -> bool:
        """Whether this machine computes the same voice."""
        return self.cosine >= self.least


def make_golden(encoder: Encoder, inputs: Sequence[NDArray[np.float32]], machine: str) -> dict[str, Any]:
    """The golden test of a model: what ``emoinv.golden`` holds.

    Parameters
    ----------
    inputs : sequence of ndarray
        Log-mels (frames, bins), or for a model of the waveform flavour mono waveforms in [-1, 1] at the
        model's rate. They are rounded (to 1/4, or to int16) before they are embedded.
    machine : str
        What computed the embeddings, e.g. a processor's name.
    """
    kind = "features" if inputs[0].ndim == 2 else "waveform"
    items = []
    for values in inputs:
        if kind == "features":
            steps: NDArray[Any] = np.clip(np.rint(values / FEATURE_STEP), -128, 127).astype(np.int8)
        else:
            steps = np.clip(np.rint(values * 32767.0), -32768, 32767).astype("<i2")
        embedding = _embed(encoder, kind, steps)
        items.append(
            {
                "shape": list(steps.shape),
                "input": base64.b64encode(zlib.compress(steps.tobytes(), 9)).decode(),
                "embedding": base64.b64encode(embedding.astype("<f4").tobytes()).decode(),
            }
        )
    return {"format": GOLDEN_FORMAT, "kind": kind, "cosine": GOLDEN_COSINE, "machine": machine, "items": items}


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
        if golden["format"] != GOLDEN_FORMAT:
            raise ModelFormatError(
                f"{encoder.path}: expected a golden test of format {GOLDEN_FORMAT}, got {golden['format']!r}; "
                "install the emoinv-edge version that wrote this model"
            )
        least = float(golden["cosine"])
        return [GoldenResult(_compare(encoder, str(golden["kind"]), item), least) for item in golden["items"]]
    except (KeyError, TypeError, ValueError, zlib.error, binascii.Error) as error:
        if isinstance(error, ModelFormatError):
            raise
        raise ModelFormatError(
            f"{encoder.path}: the golden test is damaged ({type(error).__name__}: {error}); export the model again"
        ) from error


def _compare(encoder: Encoder, kind: str, item: Mapping[str, Any]) -> float:
    raw = zlib.decompress(base64.b64decode(item["input"], validate=True))
    steps = np.frombuffer(raw, np.int8 if kind == "features" else "<i2").reshape(item["shape"])
    expected = np.frombuffer(base64.b64decode(item["embedding"], validate=True), "<f4")
    if expected.shape != (encoder.spec.embedding_dim,) or abs(float(np.linalg.norm(expected)) - 1.0) > 1e-3:
        raise ValueError(f"expected a unit embedding of {encoder.spec.embedding_dim}, got shape {expected.shape}")
    return float(_embed(encoder, kind, steps) @ expected)


def _embed(encoder: Encoder, kind: str, steps: NDArray[Any]) -> NDArray[np.float32]:
    if kind == "features":
        return encoder.embed_features(steps.astype(np.float32) * np.float32(FEATURE_STEP)).vector
    return encoder.embed(steps.astype(np.int16), encoder.spec.sample_rate).vector
