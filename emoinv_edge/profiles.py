"""Exemplar, Profile and what is known of one, as values (in bytes: `store.codec`)."""

from __future__ import annotations

import dataclasses
import datetime
import re
import unicodedata
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .quality import SpeechQuality

__all__ = [
    "AuditTrail",
    "Exemplar",
    "Profile",
    "ProfileInfo",
    "checked_name",
    "new_name",
]

MAX_NAME = 128
MAX_CONSENT = 4096
MAX_EXEMPLARS = 1024
MAX_CLIP_BYTES = 64 << 20
CLIP_RATE = 16000
NORM_TOLERANCE = 1e-3


# Letters and marks that show nothing, or nothing of their own: two names that differ in them look alike. Unicode's
# Default_Ignorable_Code_Point outside the categories that `str.isprintable` refuses, Hangul's fillers and the empty
# pattern of Braille.
UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")


def new_name(name: str) -> str:
    """A name that nobody has yet, as `checked_name` gives it.

    Raises
    ------
    TypeError, ValueError
        Also if it holds characters that cannot be seen, so that it might look like another.
    """
    name = checked_name(name)
    unseen = UNSEEN.search(name)
    if unseen is not None:
        raise ValueError(
            f"expected a name whose every character can be seen, got {name[:40]!a} with "
            f"U+{ord(unseen.group()):04X}; leave that out"
        )
    return name


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
            f"expected a name of 1 to {MAX_NAME} printable characters without spaces at its ends, got {name[:40]!a}"
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
    num_adapted : int
        The last so many exemplars are not the enrolment's; adaptation added them, and together they never weigh more
        than half of what the enrolment weighs.
    version : str
        Which state of which row of a store this is, for `ProfileStore.adapt`; empty where it comes from no store. Two
        profiles that differ in nothing else are equal.

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
    num_adapted: int = 0
    version: str = dataclasses.field(default="", compare=False, repr=False)

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
        adapted = self.num_adapted
        if isinstance(adapted, bool) or not isinstance(adapted, int) or not 0 <= adapted < len(exemplars):
            raise ValueError(
                f"expected fewer adapted exemplars than the {len(exemplars)} there are, got {adapted!r}; "
                "a profile needs at least one of its enrolment"
            )
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
    def enrolled(self) -> tuple[Exemplar, ...]:
        """The exemplars of the enrolment."""
        return self.exemplars[: len(self.exemplars) - self.num_adapted]

    @property
    def adapted(self) -> tuple[Exemplar, ...]:
        """The exemplars that adaptation added."""
        return self.exemplars[len(self.exemplars) - self.num_adapted :]

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
    """What is shown of a stored profile; nothing of its speech.

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
    condition : str
        Under which conditions the exemplars were heard, as `emoinv_edge.conditions.describe` puts it.
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
    condition: str = ""


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
