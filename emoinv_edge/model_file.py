"""What makes a model file trustworthy on a device: its digest and its golden test.

The digest is the last metadata entry of the file, at a fixed place from its end: the SHA-256 of every
byte before it. A file that was damaged on its way is told before anything in it runs. It guards
against accidents, not against somebody who can write the file: for that, compare its SHA-256 with
the one published beside the model.

The golden test is a few inputs with the embeddings that the exporting machine computed from them. A
device that reproduces them computes the same voice.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import os
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import ModelFormatError

if TYPE_CHECKING:
    from .encoder import Encoder

__all__ = [
    "DIGEST_KEY",
    "GOLDEN_FORMAT",
    "GoldenResult",
    "check_digest",
    "make_golden",
    "run_golden",
    "seal",
    "sealed_body",
]

DIGEST_KEY = "emoinv.digest"
GOLDEN_FORMAT = 1
# Between processors rounding differs: 0.998 and more was measured between x86 and ARM, less means damage.
GOLDEN_COSINE = 0.995
FEATURE_STEP = 1.0 / 4.0  # golden log-mels are stored as int8 of this step

# ModelProto.metadata_props (field 14) holding {key (1): DIGEST_KEY, value (2): 64 hex digits in quotes}.
_KEY = DIGEST_KEY.encode()
_VALUE_LENGTH = 66
_HEAD = bytes([0x72, 4 + len(_KEY) + _VALUE_LENGTH, 0x0A, len(_KEY)]) + _KEY + bytes([0x12, _VALUE_LENGTH, 0x22])
_TAIL_LENGTH = len(_HEAD) + _VALUE_LENGTH - 1


def seal(content: bytes) -> bytes:
    """Append the digest to a serialised model that has none."""
    return content + _HEAD + hashlib.sha256(content).hexdigest().encode() + b'"'


def sealed_body(content: bytes) -> bytes | None:
    """The bytes that the digest of `content` covers, or None if it does not end with one."""
    if content[-_TAIL_LENGTH : len(content) - _VALUE_LENGTH + 1] != _HEAD:
        return None
    return content[:-_TAIL_LENGTH]


def check_digest(content: bytes, path: str | os.PathLike[str]) -> tuple[str, bool]:
    """Hash a model file once: the whole of it, and its own digest where it ends with one.

    Returns
    -------
    sha256 : str
        Of the whole file, in hexadecimal.
    sealed : bool
        Whether the file ends with a digest, which is then right.

    Raises
    ------
    ModelFormatError
        If the bytes before the digest are not those that were exported.
    """
    body = sealed_body(content)
    if body is None:
        return hashlib.sha256(content).hexdigest(), False
    hashed = hashlib.sha256(body)
    found, expected = hashed.hexdigest(), content[-65:-1]
    if content[-1:] != b'"' or found.encode() != expected:
        raise ModelFormatError(
            f"{os.fspath(path)}: the first {len(body)} bytes have SHA-256 {found}, "
            f"expected {expected.decode('ascii', 'replace')}; the file was damaged: copy it again"
        )
    hashed.update(content[len(body) :])
    return hashed.hexdigest(), True


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
        return encoder.embed_features(steps.astype(np.float32) * np.float32(FEATURE_STEP))
    return encoder.embed(steps.astype(np.int16), encoder.spec.sample_rate)
