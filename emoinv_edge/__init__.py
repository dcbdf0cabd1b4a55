"""On-device speaker verification, robust to emotion.

::

    from emoinv_edge import Encoder, Enroller, ProfileStore, Verifier

    encoder = Encoder.default()                       # the shipped int8 model
    enroller = Enroller(encoder)
    feedback = enroller.add(waveform, sample_rate)    # accepted?, why not, seconds so far, the next prompt
    store = ProfileStore()
    store.put(enroller.profile("ana"))
    decision = Verifier(encoder, store.get("ana")).verify(waveform, sample_rate)
    decision.verdict, decision.score                  # ACCEPT | REJECT | NO_DECISION, with a reason

A name is imported when it is first used, so that ``import emoinv_edge`` loads neither numpy nor
ONNX Runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .errors import (
    AudioError,
    CalibrationError,
    ChannelError,
    DailyLimitError,
    EmoinvError,
    EnrolmentError,
    MicrophoneError,
    ModelFormatError,
    ModelMismatchError,
    OutOfMemoryError,
    ProfileChangedError,
    ProfileExpiredError,
    SchemaError,
    SealError,
    StoreBusyError,
    StoreError,
    UnknownSpeakerError,
)

if TYPE_CHECKING:
    from .adaptation import Adapter
    from .attempts import Session
    from .audio import read_audio
    from .calibration import Calibration
    from .comparison import compare
    from .coverage import Coverage
    from .decision import Decision, Verdict
    from .encoder import Embedding, Encoder
    from .enrolment import Enroller, EnrolmentFeedback
    from .features import LogMelStream, log_mel
    from .heard import HeardBefore, Match
    from .microphone import Gap, Microphone
    from .profiles import Exemplar, Profile
    from .quality import SpeechQuality
    from .spec import EncoderSpec
    from .store import PLAINTEXT, KeyFile, KeyVariable, Passphrase, ProfileStore
    from .stream import VerificationStream
    from .vad import SpeechSegment, SpeechSegmenter
    from .verifier import Verifier

__version__ = "0.1.0"

__all__ = [
    "PLAINTEXT",
    "Adapter",
    "AudioError",
    "Calibration",
    "CalibrationError",
    "ChannelError",
    "Coverage",
    "DailyLimitError",
    "Decision",
    "Embedding",
    "EmoinvError",
    "Encoder",
    "EncoderSpec",
    "Enroller",
    "EnrolmentError",
    "EnrolmentFeedback",
    "Exemplar",
    "Gap",
    "HeardBefore",
    "KeyFile",
    "KeyVariable",
    "LogMelStream",
    "Match",
    "Microphone",
    "MicrophoneError",
    "ModelFormatError",
    "ModelMismatchError",
    "OutOfMemoryError",
    "Passphrase",
    "Profile",
    "ProfileChangedError",
    "ProfileExpiredError",
    "ProfileStore",
    "SchemaError",
    "SealError",
    "Session",
    "SpeechQuality",
    "SpeechSegment",
    "SpeechSegmenter",
    "StoreBusyError",
    "StoreError",
    "UnknownSpeakerError",
    "Verdict",
    "VerificationStream",
    "Verifier",
    "__version__",
    "compare",
    "log_mel",
    "read_audio",
]

# Public names by the module that defines them; loaded on first use (PEP 562).
_MODULES = {
    "adaptation": "Adapter",
    "attempts": "Session",
    "audio": "read_audio",
    "calibration": "Calibration",
    "comparison": "compare",
    "coverage": "Coverage",
    "decision": "Decision Verdict",
    "encoder": "Embedding Encoder",
    "enrolment": "Enroller EnrolmentFeedback",
    "features": "LogMelStream log_mel",
    "heard": "HeardBefore Match",
    "microphone": "Gap Microphone",
    "profiles": "Exemplar Profile",
    "quality": "SpeechQuality",
    "spec": "EncoderSpec",
    "store": "PLAINTEXT KeyFile KeyVariable Passphrase ProfileStore",
    "stream": "VerificationStream",
    "vad": "SpeechSegment SpeechSegmenter",
    "verifier": "Verifier",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    module = _HOME.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{module}", __name__), name)
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOME))
