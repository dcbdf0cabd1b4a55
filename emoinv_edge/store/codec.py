"""Profiles and their parts in bytes, before they are sealed.

A profile in one piece, as a portable file holds it (`encode_profile`)::

    offset  bytes  what
    0       4      length n of the header, unsigned little-endian
    4       n      header, JSON (below)
    4+n     ...    for each exemplar, in order: its embedding, `dim` float32 little-endian,
                   then its clip, `audio` bytes (nothing if it is null)

The header has exactly these keys: ``name``, ``model_fingerprint``, ``created``, ``expires`` (null or a
time), ``consent``, ``dim`` and ``exemplars``, a list of objects with exactly the keys ``created``,
``audio`` (null or a count of bytes) and ``quality`` (the fields of `SpeechQuality`, of which those of
`MEASURED_LATER` may be missing); where adaptation added some
of the exemplars, also ``num_adapted``: they are the last so many. Times are ISO 8601 in UTC. Nothing may follow the
last exemplar.

The same profile in rows of a store: a `Record` (JSON), an audit trail (JSON), and for each exemplar the
length of a JSON object, the object (``created``, ``audio`` as true or false, ``quality``) and the
embedding; its clip has a column of its own.

No function here raises anything but `StoreError` for bytes that are not such an encoding.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..errors import StoreError
from ..fields import read_count, read_fields, read_json, read_list, read_text
from ..model_file import present_fingerprint
from ..profiles import AuditTrail, Exemplar, Profile
from ..quality import MEASURED_LATER, SpeechQuality

__all__ = [
    "Record",
    "decode_exemplar",
    "decode_profile",
    "decode_record",
    "decode_trail",
    "encode_exemplar",
    "encode_json",
    "encode_profile",
    "encode_record",
    "encode_trail",
    "refusing",
]

MAX_DIM = 65536
MAX_ROLLBACKS = 16
HEADER_KEYS = ("name", "model_fingerprint", "created", "expires", "consent", "dim", "exemplars")
QUALITY_KEYS = tuple(
    field.name for field in dataclasses.fields(SpeechQuality) if field.name not in MEASURED_LATER
)  # what every version kept


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """What a store keeps of a profile beside its exemplars, which it names by the ids of their rows."""

    name: str
    model_fingerprint: str
    created: datetime.datetime
    expires: datetime.datetime | None
    consent: str
    num_enrolled: int  # the first of the exemplars; adaptation added those after them
    exemplars: tuple[int, ...]
    history: tuple[tuple[int, ...], ...] = ()  # the exemplars before each adaptation, the oldest first

    @classmethod
    def enrolled(cls, profile: Profile, ids: tuple[int, ...]) -> Record:
        """The record of a new profile, whose exemplars lie in these rows; what was adapted stays so."""
        num_enrolled = len(ids) - profile.num_adapted
        about = profile.name, profile.model_fingerprint, profile.created, profile.expires, profile.consent
        return cls(*about, num_enrolled, ids)

    def named(self) -> tuple[int, ...]:
        """Every exemplar that the profile has or could be rolled back to, each once."""
        return tuple(dict.fromkeys(id_ for ids in (self.exemplars, *self.history) for id_ in ids))

    def adapted(self, id_: int, limit: int) -> Record:
        """With one more adapted exemplar; beyond `limit` the oldest adapted ones go."""
        first = self.num_enrolled + max(0, len(self.exemplars) + 1 - limit)
        kept = (*self.exemplars[: self.num_enrolled], *self.exemplars[first:], id_)
        history = (*self.history, self.exemplars)[-MAX_ROLLBACKS:]
        return dataclasses.replace(self, exemplars=kept, history=history)

    def rolled_back(self) -> Record:
        """Before the last adaptation."""
        return dataclasses.replace(self, exemplars=self.history[-1], history=self.history[:-1])

    def extended(self, added: tuple[int, ...], profile: Profile) -> Record:
        """With more enrolled exemplars, before and after each adaptation; expiry and consent as in `profile`."""

        def with_added(ids: tuple[int, ...]) -> tuple[int, ...]:
            return (*ids[: self.num_enrolled], *added, *ids[self.num_enrolled :])

        return dataclasses.replace(
            self,
            expires=profile.expires,
            consent=profile.consent,
            num_enrolled=self.num_enrolled + len(added),
            exemplars=with_added(self.exemplars),
            history=tuple(map(with_added, self.history)),
        )

    def profile(self, exemplars: tuple[Exemplar, ...], version: str = "") -> Profile:
        """The profile with these exemplars."""
        return Profile(
            self.name,
            present_fingerprint(self.model_fingerprint),
            exemplars,
            self.created,
            self.expires,
            self.consent,
            num_adapted=len(exemplars) - self.num_enrolled,
            version=version,
        )


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn whatever unfit bytes raise in this block into a `StoreError`."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, struct.error) as error:
        # The bytes may hold names and embeddings: the message names the kind of fault, not what the bytes are.
        raise StoreError(f"not {what} of this format ({type(error).__name__}); it is damaged or foreign") from None


def encode_json(value: Any) -> bytes:
    """The value as compact JSON in ASCII."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


def encode_profile(profile: Profile) -> bytes:
    """The profile in one piece, as the module's docstring lays it out."""
    header = {
        "name": profile.name,
        "model_fingerprint": profile.model_fingerprint,
        "created": profile.created.isoformat(),
        "expires": _time_text(profile.expires),
        "consent": profile.consent,
        "dim": profile.embedding_dim,
        **({"num_adapted": profile.num_adapted} if profile.num_adapted else {}),
        "exemplars": [
            _about(exemplar, None if exemplar.audio is None else len(exemplar.audio)) for exemplar in profile.exemplars
        ],
    }
    parts = [_with_length(encode_json(header))]
    for exemplar in profile.exemplars:
        parts += [exemplar.embedding.astype("<f4").tobytes(), exemplar.audio or b""]
    return b"".join(parts)


def decode_profile(data: bytes) -> Profile:
    """The profile that `encode_profile` wrote."""
    with refusing("a profile"):
        header, end = _leading_json(data)
        header = read_fields(header, HEADER_KEYS, "header", optional=("num_adapted",))
        dim = read_count(header["dim"], "dim", least=2)
        if dim > MAX_DIM:
            raise ValueError("dim")
        exemplars = []
        for about in read_list(header["exemplars"], "exemplars"):
            read_fields(about, ("created", "audio", "quality"), "exemplar")
            vector = np.frombuffer(data, "<f4", dim, end).astype(np.float32)
            end += 4 * dim
            audio = None
            if about["audio"] is not None:
                length = read_count(about["audio"], "audio", least=1)
                if length > len(data) - end:
                    raise ValueError("audio")
                audio = data[end : end + length]
                end += length
            exemplars.append(Exemplar(vector, _quality(about["quality"]), _time(about["created"]), audio))
        if end != len(data):
            raise ValueError("length")
        return Profile(
            name=header["name"],
            model_fingerprint=present_fingerprint(header["model_fingerprint"]),
            exemplars=tuple(exemplars),
            created=_time(header["created"]),
            expires=None if header["expires"] is None else _time(header["expires"]),
            consent=header["consent"],
            num_adapted=header["num_adapted"] or 0,
        )


def encode_exemplar(exemplar: Exemplar) -> bytes:
    """An exemplar without its clip."""
    about = _about(exemplar, exemplar.audio is not None)
    return _with_length(encode_json(about)) + exemplar.embedding.astype("<f4").tobytes()


def decode_exemplar(data: bytes, clip: bytes | None, *, audio: bool) -> Exemplar:
    """The exemplar that `encode_exemplar` wrote, with its clip if `audio`; a clip that should be there must be."""
    with refusing("an exemplar"):
        about, end = _leading_json(data)
        read_fields(about, ("created", "audio", "quality"), "exemplar")
        if audio and about["audio"] is not (clip is not None):
            raise ValueError("clip")
        vector = np.frombuffer(data, "<f4", offset=end).astype(np.float32)
        return Exemplar(vector, _quality(about["quality"]), _time(about["created"]), clip)


def encode_record(record: Record) -> bytes:
    """The record, without the fingerprint, which has a column of its own."""
    values = dataclasses.asdict(record)
    del values["model_fingerprint"]
    return encode_json({**values, "created": record.created.isoformat(), "expires": _time_text(record.expires)})


def decode_record(data: bytes, model_fingerprint: str) -> Record:
    """The record that `encode_record` wrote."""
    keys = ("name", "created", "expires", "consent", "num_enrolled", "exemplars", "history")
    with refusing("a profile's row"):
        values = read_fields(read_json(data), keys, "record")
        return Record(
            name=read_text(values["name"], "name"),
            model_fingerprint=model_fingerprint,
            created=_time(values["created"]),
            expires=None if values["expires"] is None else _time(values["expires"]),
            consent=read_text(values["consent"], "consent"),
            num_enrolled=read_count(values["num_enrolled"], "num_enrolled", least=1),
            exemplars=_ids(values["exemplars"]),
            history=tuple(map(_ids, read_list(values["history"], "history"))),
        )


def encode_trail(trail: AuditTrail) -> bytes:
    """The audit trail."""
    return encode_json(
        {
            "events": [(at.isoformat(), event) for at, event in trail.events],
            "last_used": _time_text(trail.last_used),
            "verified": trail.verified,
        }
    )


def decode_trail(data: bytes) -> AuditTrail:
    """The audit trail that `encode_trail` wrote."""
    with refusing("an audit trail"):
        values = read_fields(read_json(data), ("events", "last_used", "verified"), "audit trail")
        return AuditTrail(
            events=tuple((_time(at), read_text(event, "event")) for at, event in values["events"]),
            last_used=None if values["last_used"] is None else _time(values["last_used"]),
            verified={day: dict(counts) for day, counts in values["verified"].items()},
        )


def _about(exemplar: Exemplar, audio: object) -> dict[str, Any]:
    return {
        "created": exemplar.created.isoformat(),
        "audio": audio,
        "quality": dataclasses.asdict(exemplar.quality),
    }


def _with_length(text: bytes) -> bytes:
    return struct.pack("<I", len(text)) + text


def _leading_json(data: bytes) -> tuple[dict[str, Any], int]:
    """The JSON object that stands at the start behind its length, and where it ends."""
    (length,) = struct.unpack_from("<I", data)
    end = 4 + length
    if end > len(data):
        raise ValueError("header")
    values: dict[str, Any] = read_json(data[4:end])
    return values, end


def _quality(values: Any) -> SpeechQuality:
    return SpeechQuality(**read_fields(values, QUALITY_KEYS, "quality", optional=MEASURED_LATER))


def _ids(values: Any) -> tuple[int, ...]:
    return tuple(read_count(id_, "id", least=1) for id_ in read_list(values, "ids"))


def _time_text(time: datetime.datetime | None) -> str | None:
    return None if time is None else time.isoformat()


def _time(text: Any) -> datetime.datetime:
    time = datetime.datetime.fromisoformat(read_text(text, "time"))
    if time.isoformat() != text or time.utcoffset() != datetime.timedelta(0):
        raise ValueError("time")
    return time
