"""What a model file knows of sounds that are no voice, and of two voices: the guards at enrolment and at the door.

The numbers are fitted for each model (``python -m export guards``) and travel in its file; what is done
with them is `emoinv_edge.voice`'s and `emoinv_edge.speakers`' matter.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from .errors import ModelFormatError
from .fields import is_finite, read_fields, read_text
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
    source: str

    def __post_init__(self) -> None:
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
        return cls(voice, windows, door, clips, fields["least_cosine"], source)
