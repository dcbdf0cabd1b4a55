"""Kind 1: permission is checked where it is used; what has expired or went is not accepted by what was built before."""

from __future__ import annotations

import dataclasses
import datetime
import logging
import os
import threading
import time

import pytest

from emoinv_edge import permission
from emoinv_edge.adaptation import Adapter
from emoinv_edge.decision import Verdict
from emoinv_edge.encoder import Encoder
from emoinv_edge.errors import EmoinvError, ProfileExpiredError, UnknownSpeakerError
from emoinv_edge.profiles import Profile
from emoinv_edge.store import ProfileStore
from emoinv_edge.verifier import Verifier
from tests.builders import ANA_HZ, BOB_HZ, RATE, enrolled, synthesise

UTC = datetime.timezone.utc
HERS = synthesise(3.0, 9, ANA_HZ)
HIS = synthesise(3.0, 9, BOB_HZ)


class AnyTime(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, datetime.datetime)


class Clock(datetime.datetime, metaclass=AnyTime):
    """The clock, moved."""

    ahead = datetime.timedelta(0)

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
        return datetime.datetime.now(tz) + cls.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> type[Clock]:
    from emoinv_edge import profiles
    from emoinv_edge.store import file

    Clock.ahead = datetime.timedelta(0)
    for module in (permission, profiles, file):
        stand_in = type("datetime", (), {**vars(datetime), "datetime": Clock})
        monkeypatch.setattr(module, "datetime", stand_in)
    return Clock


def expiring(profile: Profile, **after: float) -> Profile:
    return dataclasses.replace(profile, expires=datetime.datetime.now(UTC) + datetime.timedelta(**after))


def test_an_expiry_holds_in_a_verifier_that_was_built_before_it(
    encoder: Encoder, store: ProfileStore, clock: type[Clock]
) -> None:
    profile = expiring(enrolled(encoder, "ana", ANA_HZ), hours=1)
    store.put(profile)
    built = [
        Verifier(encoder, profile),
        Verifier(encoder, [profile]),
        Verifier(encoder, store),
        store.verifier("ana", encoder),
        Adapter(encoder, store, "ana").verifier,
    ]
    for verifier in built:
        decision = verifier.verify(HERS, RATE)
        assert decision.accepted and decision.expires == profile.expires
    clock.ahead = datetime.timedelta(hours=2)
    for verifier in built:
        decision = verifier.verify(HERS, RATE)
        assert decision.verdict is Verdict.NO_DECISION and "expired" in decision.reason
        assert verifier.speakers == () and "expired" in verifier.left_out["ana"]
    clock.ahead = datetime.timedelta(0)  # setting the clock back gives nothing back
    assert not any(verifier.verify(HERS, RATE) for verifier in built)


def test_an_expiry_holds_in_the_middle_of_a_stream(encoder: Encoder, clock: type[Clock]) -> None:
    stream = Verifier(encoder, expiring(enrolled(encoder, "ana", ANA_HZ), hours=1)).stream(RATE)
    early = stream.process(HERS)
    assert any(early)
    clock.ahead = datetime.timedelta(hours=2)
    assert not any(stream.process(HERS)) and not any(stream.flush())


def test_nothing_is_built_of_what_expired_long_ago(encoder: Encoder) -> None:
    old = expiring(enrolled(encoder, "ana", ANA_HZ), days=-400)
    for profiles in (old, [old]):
        with pytest.raises(ProfileExpiredError):
            Verifier(encoder, profiles)
    among = Verifier(encoder, [old, enrolled(encoder, "bob", BOB_HZ)])
    assert among.speakers == ("bob",) and not among.verify(HERS, RATE)


def test_who_is_removed_is_accepted_by_no_object_from_then_on(encoder: Encoder, store: ProfileStore) -> None:
    store.put(enrolled(encoder, "bob", BOB_HZ))
    other = ProfileStore(store.path, bytes(range(32)))  # as another process has it
    alone, all_of_them = store.verifier("ana", encoder), Verifier(encoder, store)
    stream = store.verifier(["ana", "bob"], encoder).stream(RATE)
    assert alone.verify(HERS, RATE) and all_of_them.verify(HERS, RATE) and any(stream.process(HERS))
    other.remove("ana")
    gone = alone.verify(HERS, RATE)
    assert gone.verdict is Verdict.NO_DECISION and "removed" in gone.reason
    assert not all_of_them.verify(HERS, RATE) and not any(stream.process(HERS)) and not any(stream.flush())
    assert all_of_them.verify(HIS, RATE)  # costs nobody else
    store.path.unlink()
    assert not all_of_them.verify(HIS, RATE)


def test_who_is_enrolled_anew_under_the_name_is_judged_and_the_former_owner_is_not(
    encoder: Encoder, store: ProfileStore
) -> None:
    verifier = store.verifier("ana", encoder)
    assert verifier.verify(HERS, RATE) and not verifier.verify(HIS, RATE)
    ProfileStore(store.path, bytes(range(32))).put(enrolled(encoder, "ana", BOB_HZ))
    assert verifier.verify(HIS, RATE) and not verifier.verify(HERS, RATE)
    store.remove("ana")
    store.put(enrolled(encoder, "ana", ANA_HZ))  # a new row of the same name
    assert not verifier.verify(HIS, RATE)


def test_a_store_that_cannot_be_read_for_long_decides_nothing(
    encoder: Encoder, store: ProfileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = store.verifier("ana", encoder)
    assert verifier.verify(HERS, RATE)
    store.path.write_bytes(b"not a store any more" * 300)
    monkeypatch.setattr(permission, "GRACE_S", 0.0)
    assert verifier.verify(HERS, RATE).verdict is Verdict.NO_DECISION


def test_a_clock_before_the_latest_write_is_reported(
    store: ProfileStore, clock: type[Clock], caplog: pytest.LogCaptureFixture
) -> None:
    store.names()
    assert not caplog.records
    clock.ahead = -datetime.timedelta(days=30)
    again = ProfileStore(store.path, bytes(range(32)))
    again.names()
    again.names()
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1 and "clock" in warnings[0].getMessage()


def test_threads_that_decide_while_profiles_come_and_go_accept_no_removed_one(
    encoder: Encoder, store: ProfileStore
) -> None:
    embedding = encoder.embed(HERS, RATE).vector
    verifier = store.verifier("ana", encoder)
    quality = verifier.verify(HERS, RATE).quality
    assert quality is not None
    wrong: list[object] = []
    removed, stop = threading.Event(), threading.Event()

    def decide() -> None:
        while not stop.is_set():
            was_removed = removed.is_set()
            try:
                decision = verifier.decide(embedding, quality)
            except EmoinvError as error:
                wrong.append(error)
                return
            if was_removed and decision:
                wrong.append(decision)

    threads = [threading.Thread(target=decide) for _ in range(4)]
    for thread in threads:
        thread.start()
    store.remove("ana")
    removed.set()
    stop.wait(0.3)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    with pytest.raises(UnknownSpeakerError):
        store.verifier("ana", encoder)


def test_looking_at_an_unchanged_store_costs_little(encoder: Encoder, store: ProfileStore) -> None:
    verifier = store.verifier("ana", encoder)
    os.utime(store.path, (1e9, 1e9))  # as if nobody had written for long
    embedding = encoder.embed(HERS, RATE).vector
    quality = verifier.verify(HERS, RATE).quality
    assert quality is not None
    start = time.perf_counter()
    for _ in range(200):
        verifier.decide(embedding, quality)
    assert time.perf_counter() - start < 0.5
