"""Exemplar, Profile and what may be told of one, as values; and a profile's one encoding in bytes.

`ProfileStore` (store.py) keeps profiles, `portable.py` carries one from device to device; both write
a profile with `encode_profile`::

    offset  bytes  what
    0       4      length n of the header, unsigned little-endian
    4       n      header, JSON in UTF-8 (below)
    4+n     ...    for each exemplar, in order: its embedding, `dim` float32 little-endian,
                   then its clip, `audio` bytes (nothing if it is null)

The header has exactly these keys: ``name``, ``model_fingerprint``, ``created``, ``expires`` (null or a
time), ``consent``, ``dim`` and ``exemplars``, a list of objects with exactly the keys ``created``,
``audio`` (null or a count of bytes) and ``quality`` (the fields of `SpeechQuality`; ``envelope`` and
``log_embedding_norm`` may be missing, and are then unknown: profiles were written before they were measured).
Times are ISO 8601 in UTC.
Nothing may follow the last exemplar.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import struct
import unicodedata
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import EnrolmentError, StoreError

if TYPE_CHECKING:
    from .encoder import Encoder
    from .quality import SpeechQuality

__all__ = [
    "AuditTrail",
    "Exemplar",
    "Profile",
    "ProfileInfo",
    "checked_name",
    "decode_profile",
    "decode_quality",
    "encode_profile",
    "reenrolled",
]

MAX_NAME = 128
MAX_CONSENT = 4096
MAX_EXEMPLARS = 1024
MAX_CLIP_BYTES = 64 << 20
CLIP_RATE = 16000
NORM_TOLERANCE = 1e-3


def checked_name(name: str) -> str:
    """The name in Unicode's composed form (NFC).

    Raises
    ------
    TypeError, ValueError
        If it is no str, or not 1 to 128 printable characters without spaces at its ends.
    """
    if not isinstance(name, str):
        raise TypeError(f"expected the name as str, got {type(name).__name__}")
    name = unicodedata.normalize("NFC", name)
    if not (0 < len(name) <= MAX_NAME and name.isprintable() and name == name.strip()):
        raise ValueError(
            f"expected a name of 1 to {MAX_NAME} printable characters without spaces at its ends, got {name[:40]!r}"
        )
    return name


def _checked_time(what: str, time: datetime.datetime) -> datetime.datetime:
    if not isinstance(time, datetime.datetime):
        raise TypeError(f"{what}: expected a datetime, got {type(time).__name__}")
    if time.utcoffset() is None:
        raise ValueError(f"{what}: expected a time with its zone, e.g. datetime.now(timezone.utc), got {time}")
    return time.astimezone(datetime.timezone.utc)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Exemplar:
    """One accepted utterance of an enrolled speaker.

    Parameters
    ----------
    embedding : ndarray, shape (embedding_dim,), float32
        Of unit norm, or an `Embedding`; copied, and read-only from then on.
    quality : SpeechQuality
        Measured on the utterance.
    created : datetime
        When, with a zone; kept in UTC.
    audio : bytes, optional
        The utterance itself, only where the user asked to keep it, so that the speaker can be enrolled
        again on another model: its speech as 16-bit little-endian samples, one channel, 16000 Hz.

    Raises
    ------
    TypeError, ValueError
        If the embedding is not of that type, not finite or not of unit norm.
    """

    embedding: NDArray[np.float32] = dataclasses.field(repr=False)
    quality: SpeechQuality = dataclasses.field(repr=False)
    created: datetime.datetime
    audio: bytes | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        embedding = np.array(self.embedding)
        if embedding.dtype != np.float32:
            raise TypeError(
                f"expected the embedding as an array of float32, got {embedding.dtype}; use what Encoder.embed returns"
            )
        if embedding.ndim != 1 or embedding.size < 2:
            raise ValueError(f"expected an embedding of shape (embedding_dim,), got {embedding.shape}")
        if not np.isfinite(embedding).all():
            raise ValueError("expected a finite embedding, got NaN or infinity; the encoder's input was not speech")
        norm = float(np.linalg.norm(embedding.astype(np.float64)))
        if abs(norm - 1.0) > NORM_TOLERANCE:
            raise ValueError(f"expected an embedding of unit norm, got norm {norm:.4g}; divide it by its norm")
        embedding.setflags(write=False)
        object.__setattr__(self, "embedding", embedding)
        object.__setattr__(self, "created", _checked_time("created", self.created))
        if self.audio is not None and not (isinstance(self.audio, bytes) and 0 < len(self.audio) <= MAX_CLIP_BYTES):
            raise ValueError(f"expected a clip of 1 to {MAX_CLIP_BYTES} bytes, or None")

    def _key(self) -> tuple[object, ...]:
        return self.embedding.tobytes(), self.quality, self.created, self.audio

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Exemplar) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())


@dataclasses.dataclass(frozen=True, slots=True)
class Profile:
    """An enrolled speaker.

    Parameters
    ----------
    name : str
        1 to 128 printable characters; kept in Unicode's composed form.
    model_fingerprint : str
        `Encoder.fingerprint` of the model that made the embeddings; no other model can use them.
    exemplars : tuple of Exemplar
        At least one, all of one length.
    created : datetime
        When the speaker was enrolled, with a zone; kept in UTC.
    expires : datetime, optional
        From when on the profile is refused; by default never.
    consent : str
        A note on what the speaker agreed to, and how.

    Raises
    ------
    TypeError, ValueError
        If any of these does not hold.
    """

    name: str
    model_fingerprint: str
    exemplars: tuple[Exemplar, ...]
    created: datetime.datetime
    expires: datetime.datetime | None = None
    consent: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", checked_name(self.name))
        fingerprint = self.model_fingerprint
        if not (isinstance(fingerprint, str) and 0 < len(fingerprint) <= 128 and fingerprint.isascii()):
            raise ValueError(f"expected the fingerprint that Encoder.fingerprint gives, got {fingerprint!r:.60}")
        exemplars = tuple(self.exemplars)
        object.__setattr__(self, "exemplars", exemplars)
        if not 0 < len(exemplars) <= MAX_EXEMPLARS:
            raise ValueError(f"expected 1 to {MAX_EXEMPLARS} exemplars, got {len(exemplars)}; enrol speech first")
        if not all(isinstance(exemplar, Exemplar) for exemplar in exemplars):
            raise TypeError("expected every exemplar as an Exemplar")
        if len({exemplar.embedding.size for exemplar in exemplars}) != 1:
            raise ValueError("expected embeddings of one length; they come from different models, enrol again")
        object.__setattr__(self, "created", _checked_time("created", self.created))
        if self.expires is not None:
            object.__setattr__(self, "expires", _checked_time("expires", self.expires))
        if not isinstance(self.consent, str):
            raise TypeError(f"expected the consent note as str, got {type(self.consent).__name__}")
        if len(self.consent) > MAX_CONSENT:
            raise ValueError(f"expected a consent note of at most {MAX_CONSENT} characters, got {len(self.consent)}")

    @property
    def embedding_dim(self) -> int:
        """Length of the embeddings."""
        return int(self.exemplars[0].embedding.size)

    def expired(self, now: datetime.datetime | None = None) -> bool:
        """Whether the expiry has passed, `now` or at the time given."""
        if self.expires is None:
            return False
        return (now or datetime.datetime.now(datetime.timezone.utc)) >= self.expires


@dataclasses.dataclass(frozen=True, slots=True)
class ProfileInfo:
    """What may be told of a stored profile without giving any of its speech away.

    Parameters
    ----------
    name : str
    problem : str
        Why the profile cannot be used (damaged or expired), or empty.
    model_fingerprint, num_exemplars, num_clips, created, expires, consent, last_used
        As stored; empty, 0 or None where the profile does not open.
    expired : bool
    adaptations : int
        How many times `ProfileStore.rollback` can be called.
    num_enrolled : int
        The first so many exemplars are the enrolment's; adaptation added the others.
    """

    name: str
    problem: str = ""
    model_fingerprint: str = ""
    num_exemplars: int = 0
    num_clips: int = 0
    created: datetime.datetime | None = None
    expires: datetime.datetime | None = None
    expired: bool = False
    consent: str = ""
    last_used: datetime.datetime | None = None
    adaptations: int = 0
    num_enrolled: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class AuditTrail:
    """What was done with a profile.

    Parameters
    ----------
    events : tuple of (datetime, str)
        Enrolled, adapted, exported and so on, the oldest first; the last 1000.
    last_used : datetime or None
        The last verification against it.
    verified : mapping of date to mapping of outcome to count
        Verifications by day in UTC, of the last 400 days on which there were any.
    """

    events: tuple[tuple[datetime.datetime, str], ...]
    last_used: datetime.datetime | None
    verified: Mapping[str, Mapping[str, int]]


def reenrolled(profile: Profile, encoder: Encoder) -> Profile:
    """The profile with embeddings by `encoder`, from the clips that its exemplars keep.

    Raises
    ------
    EnrolmentError
        If no exemplar has one.
    """
    from .quality import measure_quality

    exemplars = []
    for exemplar in profile.exemplars:
        if exemplar.audio is not None:
            waveform = np.frombuffer(exemplar.audio, "<i2").astype(np.float32) / np.float32(32768.0)
            quality = exemplar.quality
            if quality.envelope is None:  # enrolled before it was measured
                quality = dataclasses.replace(quality, envelope=measure_quality(waveform, CLIP_RATE).envelope)
            embedding = encoder.embed(waveform, CLIP_RATE)
            quality = quality.with_embedding_norm(embedding.norm)
            exemplars.append(dataclasses.replace(exemplar, embedding=embedding.vector, quality=quality))
    if not exemplars:
        raise EnrolmentError(
            f"profile {profile.name!r} has no speech to enrol again from (it was enrolled without --keep-audio); "
            "record the speaker again"
        )
    return dataclasses.replace(profile, model_fingerprint=encoder.fingerprint, exemplars=tuple(exemplars))


def encode_profile(profile: Profile) -> bytes:
    """The profile in bytes, as the module's docstring lays them out. They are not sealed."""
    header = {
        "name": profile.name,
        "model_fingerprint": profile.model_fingerprint,
        "created": profile.created.isoformat(),
        "expires": None if profile.expires is None else profile.expires.isoformat(),
        "consent": profile.consent,
        "dim": profile.embedding_dim,
        "exemplars": [
            {
                "created": exemplar.created.isoformat(),
                "audio": None if exemplar.audio is None else len(exemplar.audio),
                "quality": dataclasses.asdict(exemplar.quality),
            }
            for exemplar in profile.exemplars
        ],
    }
    text = json.dumps(header, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")
    parts = [struct.pack("<I", len(text)), text]
    for exemplar in profile.exemplars:
        parts += [exemplar.embedding.astype("<f4").tobytes(), exemplar.audio or b""]
    return b"".join(parts)


def decode_profile(data: bytes) -> Profile:
    """The profile that `encode_profile` wrote.

    Raises
    ------
    StoreError
        If the bytes are not exactly such an encoding. No other exception leaves, whatever the bytes are.
    """
    try:
        return _decode(data)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError, struct.error) as error:
        # The bytes may hold names and embeddings: say what kind of fault, not what the bytes are.
        raise StoreError(f"not a profile of this format ({type(error).__name__}); it is damaged or foreign") from None


def _decode(data: bytes) -> Profile:
    (length,) = struct.unpack_from("<I", data)
    end = 4 + length
    if end > len(data):
        raise ValueError("header")
    header = _object(
        json.loads(data[4:end].decode("utf-8"), parse_constant=_no_constant),
        "name model_fingerprint created expires consent dim exemplars",
    )
    dim = header["dim"]
    if type(dim) is not int or not 2 <= dim <= 65536 or not isinstance(header["exemplars"], list):
        raise ValueError("dim")
    exemplars = []
    for item in header["exemplars"]:
        _object(item, "created audio quality")
        vector = np.frombuffer(data, "<f4", dim, end).astype(np.float32)
        end += 4 * dim
        audio = None
        if item["audio"] is not None:
            if type(item["audio"]) is not int or not 0 < item["audio"] <= len(data) - end:
                raise ValueError("audio")
            audio = data[end : end + item["audio"]]
            end += item["audio"]
        exemplars.append(Exemplar(vector, decode_quality(item["quality"]), _time(item["created"]), audio))
    if end != len(data):
        raise ValueError("length")
    return Profile(
        name=header["name"],
        model_fingerprint=header["model_fingerprint"],
        exemplars=tuple(exemplars),
        created=_time(header["created"]),
        expires=None if header["expires"] is None else _time(header["expires"]),
        consent=header["consent"],
    )


def decode_quality(values: Any) -> SpeechQuality:
    """A `SpeechQuality` from the JSON object of its fields; ValueError if anything is amiss.

    An object of before the envelope or the embedding's norm was measured, which has no such key, is read as one
    where it is unknown: that evidence then speaks for neither side.
    """
    from .quality import SpeechQuality

    fields = [field.name for field in dataclasses.fields(SpeechQuality)]
    if isinstance(values, dict):
        values = {"envelope": None, "log_embedding_norm": None, **values}
    _object(values, " ".join(fields))
    envelope = values["envelope"]
    if envelope is not None and not (isinstance(envelope, (list, tuple)) and all(map(_number, envelope))):
        raise ValueError("envelope")
    for name, value in values.items():
        unknown = value is None and name in ("log_f0_mean", "log_embedding_norm")
        if not (_number(value) or name == "envelope" or unknown):
            raise ValueError("quality")
    return SpeechQuality(**values)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _object(value: Any, keys: str) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != set(keys.split()):
        raise ValueError("keys")
    return value


def _no_constant(text: str) -> None:
    raise ValueError("NaN or infinity")


def _time(text: Any) -> datetime.datetime:
    if not isinstance(text, str):
        raise ValueError("time")
    time = datetime.datetime.fromisoformat(text)
    if time.isoformat() != text or time.utcoffset() != datetime.timedelta(0):
        raise ValueError("time")
    return time
