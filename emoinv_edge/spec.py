"""EncoderSpec: the features that a model file needs, as the file describes them.

The spec travels inside the model file as one JSON value, so that the front end cannot disagree
with the weights. Nothing about a model lives in code.
"""

from __future__ import annotations

import dataclasses
import json
import math

from .errors import ModelFormatError
from .fields import read_fields, read_json

__all__ = ["SPEC_FORMAT", "EncoderSpec"]

SPEC_FORMAT = 1
WINDOWS = ("hamming", "povey")


@dataclasses.dataclass(frozen=True, slots=True)
class EncoderSpec:
    """The front end and the output of one encoder.

    Parameters
    ----------
    name : str
        The model's name, e.g. ``"base"``.
    sample_rate : int
        Samples per second of the waveform (16000).
    frame_length_ms, frame_shift_ms : float
        Length and distance of the analysis frames.
    num_mel_bins : int
        Triangular mel filters between `low_hz` and `high_hz`, Kaldi's scale.
    low_hz, high_hz : float
        Edges of the mel bank, in Hz.
    preemphasis : float
        Coefficient of the first-order pre-emphasis, 0 to 1.
    window : {"hamming", "povey"}
        Analysis window.
    waveform_scale : float
        Factor from [-1, 1] to the scale that the encoder was trained on (32768 for int16).
    mean_normalisation : bool
        Whether the mean over the frames of an utterance is subtracted from its features.
    embedding_dim : int
        Length of the embedding.
    """

    name: str
    sample_rate: int = 16000
    frame_length_ms: float = 25.0
    frame_shift_ms: float = 10.0
    num_mel_bins: int = 80
    low_hz: float = 20.0
    high_hz: float = 8000.0
    preemphasis: float = 0.97
    window: str = "hamming"
    waveform_scale: float = 32768.0
    mean_normalisation: bool = True
    embedding_dim: int = 256

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            expected = {"str": str, "int": int, "bool": bool, "float": float}[str(field.type)]
            if expected is float and type(value) is int:
                object.__setattr__(self, field.name, float(value))
            elif type(value) is not expected:
                raise ModelFormatError(
                    f"spec: {field.name} should be {expected.__name__}, got {value!r}; "
                    "the model file is damaged or foreign, export it again"
                )
            elif isinstance(value, float) and not math.isfinite(value):
                raise ModelFormatError(f"spec: {field.name} should be finite, got {value!r}")
        self._require("name", 0 < len(self.name) <= 64, "1 to 64 characters")
        self._require("sample_rate", 8000 <= self.sample_rate <= 48000, "8000 to 48000")
        self._require("frame_length_ms", 5.0 <= self.frame_length_ms <= 100.0, "5 to 100")
        self._require("frame_shift_ms", 1.0 <= self.frame_shift_ms <= self.frame_length_ms, "1 to frame_length_ms")
        self._require("num_mel_bins", 8 <= self.num_mel_bins <= 256, "8 to 256")
        self._require("low_hz", 0.0 <= self.low_hz < self.high_hz, "0 up to below high_hz")
        self._require("high_hz", self.high_hz <= self.sample_rate / 2, "at most half the sample rate")
        self._require("preemphasis", 0.0 <= self.preemphasis <= 1.0, "0 to 1")
        self._require("window", self.window in WINDOWS, f"one of {WINDOWS}")
        self._require("waveform_scale", 0.0 < self.waveform_scale <= 2.0**31, "above 0")
        self._require("embedding_dim", 2 <= self.embedding_dim <= 4096, "2 to 4096")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ModelFormatError(f"spec: {name} should be {expected}, got {getattr(self, name)!r}")

    @property
    def frame_length(self) -> int:
        """Samples in one analysis frame, a fraction dropped as Kaldi drops it."""
        return int(self.sample_rate * self.frame_length_ms / 1000.0)

    @property
    def frame_shift(self) -> int:
        """Samples from one frame's start to the next."""
        return int(self.sample_rate * self.frame_shift_ms / 1000.0)

    @property
    def fft_length(self) -> int:
        """The next power of two at or above the frame length, as Kaldi rounds it."""
        return 1 << (self.frame_length - 1).bit_length()

    def num_frames(self, num_samples: int) -> int:
        """Whole frames in `num_samples` samples (Kaldi's ``snip_edges``)."""
        if num_samples < self.frame_length:
            return 0
        return 1 + (num_samples - self.frame_length) // self.frame_shift

    def to_json(self) -> str:
        """The spec as one JSON object with its format number, keys sorted."""
        return json.dumps({"format": SPEC_FORMAT, **dataclasses.asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> EncoderSpec:
        """Read a spec from the JSON of `to_json`.

        Raises
        ------
        ModelFormatError
            If a key is missing or unknown, the format number is not known, or a value is out of range.
        """
        keys = [field.name for field in dataclasses.fields(cls)]
        try:
            values = read_json(text)
            if isinstance(values, dict) and values.get("format") != SPEC_FORMAT:
                raise ModelFormatError(
                    f"spec: expected format {SPEC_FORMAT}, got {values.get('format')!r}; "
                    "install the emoinv-edge version that wrote this model, or export it again"
                )
            values = read_fields(values, (*keys, "format"), "spec")
        except ModelFormatError:
            raise
        except ValueError as error:
            raise ModelFormatError(
                f"spec: {str(error).removeprefix('spec: ')}; the model file is damaged, foreign or of another version: "
                "export it again"
            ) from None
        del values["format"]
        return cls(**values)
