"""How a profile changes within one transaction: adapted, extended, rolled back; and what keeps one from being used."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence

from ..errors import DailyLimitError, ModelMismatchError, ProfileChangedError, ProfileExpiredError, StoreError
from ..profiles import Exemplar, Profile
from .rows import Rows, new_ids, noted

__all__ = ["adapt", "extend", "refuse_expired", "refuse_other_model", "roll_back"]


def adapt(rows: Rows, judged: Profile, exemplar: Exemplar, limit: int, per_day: int | None) -> Profile:
    """Add an exemplar to the profile that it was judged by, as in `ProfileStore.adapt`."""
    name = judged.name
    if rows.entry(name).state != judged.version:
        raise ProfileChangedError(
            f"profile {name!r} is no longer the one that was judged; judge the one that `get` gives now"
        )
    record, trail, exemplars = rows.state(name)
    _refuse_misfit(record.profile(exemplars), exemplar, judged.model_fingerprint)
    since = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    today = sum(event == "adapted" and at > since for at, event in trail.events)
    if per_day is not None and today >= per_day:
        raise DailyLimitError(
            f"profile {name!r} was adapted {per_day} times within 24 hours, and that is the limit; wait, or add "
            "recordings to the enrolment (emoinv enroll --add)"
        )
    if record.num_enrolled >= limit:
        raise StoreError(f"profile {name!r} has {record.num_enrolled} enrolled exemplars, the limit is {limit}")
    (id_,) = new_ids(1)
    adapted = record.adapted(id_, limit)
    rows.write(adapted, noted(trail, "adapted"), {id_: exemplar})
    by_id = {**dict(zip(record.exemplars, exemplars, strict=True)), id_: exemplar}
    return adapted.profile(tuple(by_id[kept] for kept in adapted.exemplars), rows.entry(name).state)


def extend(
    rows: Rows,
    judged: Profile,
    exemplars: Sequence[Exemplar],
    expires: datetime.datetime | None,
    consent: str | None,
) -> Profile:
    """Add exemplars to the enrolment itself, as in `ProfileStore.extend`."""
    name = judged.name
    record, trail, stored = rows.state(name)
    present = record.profile(stored)
    for exemplar in exemplars:
        _refuse_misfit(present, exemplar, judged.model_fingerprint)
    before = [exemplar.embedding.tobytes() for exemplar in judged.enrolled]
    if [exemplar.embedding.tobytes() for exemplar in present.enrolled[: len(before)]] != before:
        raise ProfileChangedError(
            f"profile {name!r} was enrolled anew meanwhile; add the recordings to the one that `get` gives now"
        )
    extended = dataclasses.replace(  # checked as a profile before anything is written
        present,
        exemplars=(*present.enrolled, *exemplars, *present.adapted),
        expires=present.expires if expires is None else expires,
        consent=present.consent if consent is None else consent,
    )
    added = dict(zip(new_ids(len(exemplars)), exemplars, strict=True))
    rows.write(record.extended(tuple(added), extended), noted(trail, "enrolled further"), added)
    return dataclasses.replace(extended, version=rows.entry(name).state)


def roll_back(rows: Rows, name: str) -> Profile:
    """Undo the last adaptation; StoreError if there is none."""
    record, trail = rows.record(name), rows.trail(name)
    if not record.history:
        raise StoreError(f"profile {name!r} has no adaptation to undo; enrol the speaker again to start anew")
    record = record.rolled_back()
    exemplars = rows.exemplars(record, record.exemplars)
    rows.write(record, noted(trail, "rolled back"), {})
    return record.profile(exemplars, rows.entry(name).state)


def refuse_expired(profile: Profile) -> None:
    """Raise ProfileExpiredError if the profile's expiry has passed."""
    if profile.expires is not None and profile.expired():
        raise ProfileExpiredError(
            f"profile {profile.name!r} expired on {profile.expires:%Y-%m-%d %H:%M} UTC; enrol the speaker again, "
            "and remove what is left with `emoinv profiles purge`"
        )


def refuse_other_model(profile: Profile, fingerprint: str, command: str) -> None:
    """Raise ModelMismatchError, with `command` as the cure where there is one, if another model made the profile."""
    if profile.model_fingerprint == fingerprint:
        return
    if any(exemplar.audio is not None for exemplar in profile.exemplars):
        cure = f"its speech was kept, so `{command}` enrols it again on this model"
    else:
        cure = "enrol the speaker again (with --keep-audio, a later change of model needs no new recordings)"
    raise ModelMismatchError(
        f"profile {profile.name!r} was made by model {profile.model_fingerprint[:12]}, this one is {fingerprint[:12]}, "
        f"and their embeddings cannot be compared; {cure}, or use the other model"
    )


def _refuse_misfit(profile: Profile, exemplar: Exemplar, fingerprint: str) -> None:
    """Refuse to add an exemplar to a profile that has expired or that another model made."""
    refuse_expired(profile)
    refuse_other_model(profile, fingerprint, "emoinv profiles upgrade")
    if exemplar.embedding.size != profile.embedding_dim:
        raise ModelMismatchError(
            f"profile {profile.name!r} has {profile.embedding_dim} values an embedding, not {exemplar.embedding.size}; "
            "use the model that made it, or enrol again"
        )
