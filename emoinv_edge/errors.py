"""Every condition this library reports, in one tree.

::

    EmoinvError
     ├── AudioError            a waveform or an audio file that cannot be used     (also a ValueError)
     │    └── ChannelError         its channels cancel each other when mixed down
     ├── ModelFormatError      a model file that is damaged, foreign or too new    (also a ValueError)
     ├── ModelMismatchError    a profile made by one model, used with another
     ├── EnrolmentError        a profile asked for before there is speech enough
     ├── CalibrationError      a false-accept rate that the calibration cannot support
     ├── UnknownSpeakerError   no profile of that name
     ├── StoreError            the profile store cannot be read or written
     │    ├── SealError            wrong key, or bytes that were altered
     │    ├── SchemaError          a store made by a newer or unknown version
     │    ├── DailyLimitError      an adaptation too many within 24 hours
     │    ├── StoreBusyError       another process kept the store locked
     │    ├── ProfileChangedError  a profile that is no longer the one that was judged
     │    └── ProfileExpiredError  a profile past its expiry
     ├── MicrophoneError       no PortAudio, no device, or the device went away
     └── OutOfMemoryError      there is not memory enough for a model or a recording

Wrong use of a function (a wrong type, a negative count) raises the usual ``TypeError`` or
``ValueError``. Every message states what was expected, what came, and the cure.
"""

from __future__ import annotations

__all__ = [
    "AudioError",
    "CalibrationError",
    "ChannelError",
    "DailyLimitError",
    "EmoinvError",
    "EnrolmentError",
    "MicrophoneError",
    "ModelFormatError",
    "ModelMismatchError",
    "OutOfMemoryError",
    "ProfileChangedError",
    "ProfileExpiredError",
    "SchemaError",
    "SealError",
    "StoreBusyError",
    "StoreError",
    "UnknownSpeakerError",
]


class EmoinvError(Exception):
    """The base of every condition that this library reports."""


class AudioError(EmoinvError, ValueError):
    """A waveform or an audio file that cannot be used: empty, not finite, silent, wrong shape or type."""


class ChannelError(AudioError):
    """Channels that are inverted against each other, so that mixing them down leaves no speech; take one alone."""


class ModelFormatError(EmoinvError, ValueError):
    """A model file that is truncated, foreign, of an unknown format or at odds with its own metadata."""


class ModelMismatchError(EmoinvError):
    """A profile made by one model was given to another; their embeddings cannot be compared."""


class EnrolmentError(EmoinvError):
    """A profile was asked for before enough speech had been accepted."""


class CalibrationError(EmoinvError):
    """A false-accept rate was asked for that the calibration data cannot support."""


class UnknownSpeakerError(EmoinvError):
    """The store holds no profile of that name."""


class StoreError(EmoinvError):
    """The profile store cannot be read or written."""


class StoreBusyError(StoreError):
    """Another process kept the store locked for longer than the time limit; nothing was changed, try again."""


class SealError(StoreError):
    """Sealed bytes do not open: the key is wrong or the bytes were altered."""


class SchemaError(StoreError):
    """The store was written by a newer or unknown version of this library."""


class DailyLimitError(StoreError):
    """The profile was adapted as often within 24 hours as may be."""


class ProfileChangedError(StoreError):
    """The profile in the store is no longer the one that was judged; judge the present one."""


class ProfileExpiredError(StoreError):
    """The profile's expiry has passed; enrol the speaker again."""


class MicrophoneError(EmoinvError):
    """No PortAudio, no such device, or the device went away."""


class OutOfMemoryError(EmoinvError):
    """There is not memory enough for a model or a recording; the speech is not to blame."""
