"""What a model file knows of sounds that are no voice, and of two voices: the guards at enrolment and at the door.

The numbers are fitted for each model (``python -m export guards``) and travel in its file; what is done
with them is `emoinv_edge.voice`'s and `emoinv_edge.speakers`' matter.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ModelFormatError
from .fields import is_finite, read_fields, read_text
from .quality import SpeechQuality
from .speakers import ClipsTest, WindowsTest, read_clips_test, read_windows_test
from .voice import VoiceTest

__all__ = ["GUARDS_FORMAT", "Guards"]

GUARDS_FORMAT = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Guards:
    """The guards of one model.

    Parameters
    ----------
    voice : VoiceTest
        Whether speech is a person's.
    windows : WindowsTest or None
        Whether a recording is of one person; None where the model's graph gives no windows.
    door : WindowsTest or None
        The same of a recording that would be accepted, by how well each part of it fits the profile, too.
    clips : ClipsTest
        Whether the clips of an enrolment are of one person.
    least_cosine : float
        Below this cosine, -1 to 1, nothing is accepted, whatever else speaks for it.
    cosine_weight, least_sum : float
        Nor is anything of which the voice's score and `cosine_weight` times the cosine sum to less than
        `least_sum`: what is hardly a voice must be all the nearer to the profile.
    source : str
        What they were fitted on.

    Raises
    ------
    ModelFormatError
        If a number is missing, not finite or out of range.
    """

    voice: VoiceTest
    windows: WindowsTest | None
    door: WindowsTest | None
    clips: ClipsTest
    least_cosine: float
    cosine_weight: float
    least_sum: float
    source: str

    def accepts(self, cosine: float, embedding: NDArray[np.float32], quality: SpeechQuality) -> bool:
        """Whether speech of this cosine with a profile may be accepted at all; never where a number is NaN."""
        total = self.voice.score(embedding, quality) + self.cosine_weight * cosine
        return cosine >= self.least_cosine and total >= self.least_sum

    def __post_init__(self) -> None:
        numbers = (self.cosine_weight, self.least_sum)
        if not (all(map(is_finite, numbers)) and self.cosine_weight >= 0.0):
            raise ModelFormatError(
                f"guards: cosine_weight and least_sum should be finite, the former 0 or more, got {numbers}; the file "
                "is damaged or foreign, fit the guards again (python -m export guards)"
            )
        if not (is_finite(self.least_cosine) and -1.0 <= self.least_cosine <= 1.0):
            raise ModelFormatError(
                f"guards: least_cosine should be -1 to 1, got {self.least_cosine!r}; the file is damaged or foreign, "
                "fit the guards again (python -m export guards)"
            )

    def to_json(self) -> str:
        """The guards as one JSON object with its format number."""
        values = {
            "format": GUARDS_FORMAT,
            "voice": self.voice.to_fields(),
            "windows": None if self.windows is None else dataclasses.asdict(self.windows),
            "door": None if self.door is None else dataclasses.asdict(self.door),
            "clips": dataclasses.asdict(self.clips),
            "least_cosine": self.least_cosine,
            "cosine_weight": self.cosine_weight,
            "least_sum": self.least_sum,
            "source": self.source,
        }
        return json.dumps(values, sort_keys=True, allow_nan=False)

    @classmethod
    def of_metadata(cls, values: Any, dim: int) -> Guards | None:
        """The guards of the parsed JSON of `to_json`; None where there are none.

        Parameters
        ----------
        values : parsed JSON, or None
        dim : int
            Size of the model's embeddings.

        Raises
        ------
        ModelFormatError
            If a key is missing or unknown, the format number is not known, or a value is out of range.
        """
        if values is None:
            return None
        if isinstance(values, dict) and values.get("format") != GUARDS_FORMAT:
            raise ModelFormatError(
                f"guards: expected format {GUARDS_FORMAT}, got {values.get('format')!r}; fit the guards again "
                "(python -m export guards), or install the emoinv-edge version that wrote them"
            )
        try:
            fields = read_fields(values, (*(field.name for field in dataclasses.fields(cls)), "format"), "guards")
            voice = VoiceTest.of_fields(fields["voice"])
            windows, door = (
                None if fields[name] is None else read_windows_test(fields[name]) for name in ("windows", "door")
            )
            clips = read_clips_test(fields["clips"])
            source = read_text(fields["source"], "source")
        except ValueError as error:
            raise ModelFormatError(
                f"guards: {str(error).removeprefix('guards: ')}; the file is damaged or foreign, fit the guards again "
                "(python -m export guards)"
            ) from None
        if voice.dim != dim:
            raise ModelFormatError(
                f"guards: expected a direction of {dim} numbers, got {voice.dim}; they belong to another model, "
                "fit them again (python -m export guards)"
            )
        numbers = (fields["least_cosine"], fields["cosine_weight"], fields["least_sum"])
        return cls(voice, windows, door, clips, *numbers, source)
