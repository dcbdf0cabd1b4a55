"""Kind 4: what was judged against one profile is learnt by that profile and by no other."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from emoinv_edge.adaptation import Adapter
from emoinv_edge.encoder import Encoder
from emoinv_edge.enrolment import Enroller
from emoinv_edge.errors import DailyLimitError, ProfileChangedError, UnknownSpeakerError
from emoinv_edge.profiles import Exemplar, Profile
from emoinv_edge.store import Passphrase, ProfileStore
from tests.builders import ANA_HZ, BOB_HZ, RATE, enrolled, profile, synthesise, unit_vectors

KEY = bytes(range(32))


def test_an_adapter_that_judged_the_former_owner_writes_nothing_into_the_new_ones_profile(
    encoder: Encoder, store: ProfileStore
) -> None:
    adapter = Adapter(encoder, store, "ana", margin=0.0, per_day=100)
    examined = [adapter.verifier.examine(synthesise(2.5, seed, ANA_HZ), RATE) for seed in range(40, 48)]
    assert sum(map(bool, examined)) >= 3
    ProfileStore(store.path, KEY).put(enrolled(encoder, "ana", BOB_HZ))
    his = store.get("ana").exemplars
    added = [adapter.consider(each.decision, each.embedding) for each in examined if each.embedding is not None]
    assert not any(added) and store.get("ana").exemplars == his
    assert adapter.profile.exemplars == his  # it judges by the present owner from now on
    assert not any(adapter.verify(synthesise(2.5, seed, ANA_HZ), RATE) for seed in range(48, 52))


def test_adapt_takes_the_version_that_was_judged_and_refuses_every_other(store: ProfileStore) -> None:
    judged = store.get("ana")
    once = store.adapt(judged, new_like(judged))
    for stale in (judged, profile("ana", *unit_vectors(1, 1), model=judged.model_fingerprint)):
        with pytest.raises(ProfileChangedError):
            store.adapt(stale, new_like(judged, 8))
    store.adapt(once, new_like(judged, 8))
    store.put(judged)  # the very same profile: still another state
    with pytest.raises(ProfileChangedError):
        store.adapt(once, new_like(judged, 9))
    before = store.get("ana")
    store.remove("ana")
    with pytest.raises(UnknownSpeakerError):
        store.adapt(before, new_like(judged, 9))
    store.put(judged)
    with pytest.raises(ProfileChangedError):
        store.adapt(before, new_like(judged, 9))


def new_like(judged: Profile, seed: int = 7) -> Exemplar:
    """Another exemplar for a profile of this model."""
    (vector,) = unit_vectors(1, seed, judged.embedding_dim)
    return profile("x", vector, model=judged.model_fingerprint).exemplars[0]


def test_further_enrolment_goes_to_the_enrolment_that_was_added_to(encoder: Encoder, store: ProfileStore) -> None:
    judged = store.get("ana")
    store.adapt(judged, new_like(judged))  # does no harm
    store.extend(judged, [new_like(judged, 8)])
    store.put(enrolled(encoder, "ana", BOB_HZ))
    with pytest.raises(ProfileChangedError, match="anew"):
        store.extend(judged, [new_like(judged, 9)])


def test_adapted_exemplars_stay_adapted_through_export_import_put_and_further_enrolment(
    encoder: Encoder, store: ProfileStore, tmp_path: Path
) -> None:
    for seed in (7, 8):
        store.adapt(store.get("ana"), new_like(store.get("ana"), seed))
    held = store.get("ana")
    assert held.num_adapted == 2 and held.adapted == held.exemplars[-2:]
    word = Passphrase("correct horse")
    store.export_profile("ana", tmp_path / "ana.emoinv", word)
    other = ProfileStore(tmp_path / "other.db", KEY)
    imported = other.import_profile(tmp_path / "ana.emoinv", word, model_fingerprint=held.model_fingerprint)
    assert imported == held and other.get("ana") == held and other.info("ana").num_enrolled == 2
    other.put(other.get("ana"))
    assert other.info("ana").num_enrolled == 2
    enroller = Enroller(encoder, profile=other.get("ana"))
    assert any(enroller.add(synthesise(3.0, seed, ANA_HZ), RATE) for seed in range(1002, 1008))
    grown = enroller.profile("ana")
    assert grown.num_adapted == 2 and grown.adapted == held.adapted and grown.enrolled[:2] == held.enrolled
    assert len(grown.enrolled) > 2
    limited = other.adapt(other.get("ana"), new_like(held, 9), limit=4)
    assert limited.enrolled == held.enrolled  # the oldest adapted one went


def test_of_racing_adapters_each_learns_what_it_judged_or_nothing(store: ProfileStore) -> None:
    judged = store.get("ana")
    outcomes: list[bool] = []

    def race(seed: int) -> None:
        try:
            ProfileStore(store.path, KEY).adapt(judged, new_like(judged, seed))
            outcomes.append(True)
        except ProfileChangedError:
            outcomes.append(False)

    threads = [threading.Thread(target=race, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False] * 7 + [True] and store.get("ana").num_adapted == 1


def test_a_day_holds_a_few_adaptations_and_no_more(store: ProfileStore) -> None:
    for seed in range(3):
        store.adapt(store.get("ana"), new_like(store.get("ana"), seed), per_day=3)
    store.rollback("ana")  # gives none of them back
    with pytest.raises(DailyLimitError, match="3 times within 24 hours"):
        store.adapt(store.get("ana"), new_like(store.get("ana"), 9), per_day=3)
