"""Exemplar and Profile as values."""

from __future__ import annotations

import dataclasses
import datetime

import numpy as np
import pytest

from emoinv_edge.profiles import Exemplar, Profile, checked_name
from tests.store.profile_samples import MODEL, QUALITY, WHEN, sample_exemplar, sample_profile

UTC = datetime.timezone.utc


def test_a_profile_without_exemplars_is_refused() -> None:
    with pytest.raises(ValueError, match="1 to 1024 exemplars, got 0; enrol"):
        Profile("ana", MODEL, (), WHEN)


@pytest.mark.parametrize(
    ("embedding", "message"),
    [
        (np.array([np.nan, 1.0], np.float32), "finite"),
        (np.array([np.inf, 0.0], np.float32), "finite"),
        (np.array([0.0, 0.0], np.float32), "unit norm"),
        (np.array([0.9, 0.0], np.float32), "unit norm"),
        (np.eye(2, dtype=np.float32), "shape"),
        (np.ones(1, np.float32), "shape"),
    ],
)
def test_an_embedding_that_is_not_finite_or_not_unit_is_refused(embedding: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Exemplar(embedding, QUALITY, WHEN)


def test_an_embedding_of_another_type_is_refused_and_not_cast() -> None:
    with pytest.raises(TypeError, match="float32, got float64"):
        Exemplar(np.array([1.0, 0.0]), QUALITY, WHEN)
    with pytest.raises(TypeError, match="float32, got float64"):
        Exemplar([1.0, 0.0], QUALITY, WHEN)  # type: ignore[arg-type]


def test_an_exemplar_owns_its_embedding() -> None:
    given_array = np.array([1.0, 0.0], np.float32)
    exemplar = Exemplar(given_array, QUALITY, WHEN)
    given_array[0] = 0.0
    assert exemplar.embedding[0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        exemplar.embedding[0] = 0.5


def test_embeddings_of_two_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="one length"):
        Profile("ana", MODEL, (sample_exemplar(1, 8), sample_exemplar(2, 16)), WHEN)


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="zone"):
        dataclasses.replace(sample_profile("ana"), created=datetime.datetime(2026, 1, 1))


def test_times_are_kept_in_utc() -> None:
    zone = datetime.timezone(datetime.timedelta(hours=2))
    profile = dataclasses.replace(sample_profile("ana"), expires=datetime.datetime(2030, 1, 1, 2, tzinfo=zone))
    assert profile.expires == datetime.datetime(2030, 1, 1, tzinfo=UTC)
    assert profile.expires.utcoffset() == datetime.timedelta(0)


@pytest.mark.parametrize("name", ["", " ana", "ana ", "a\nb", "a\x00b", "a" * 129, "\ud800"])
def test_names_that_a_terminal_or_a_file_would_garble_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected a name"):
        checked_name(name)


def test_two_spellings_of_one_name_are_one_name() -> None:
    assert checked_name("Zoe\u0308") == checked_name("Zo\u00eb") == sample_profile("Zoe\u0308").name


def test_a_profile_expires_at_its_expiry_and_not_before() -> None:
    end = datetime.datetime(2030, 1, 1, tzinfo=UTC)
    profile = sample_profile("ana", expires=end)
    assert not profile.expired(end - datetime.timedelta(seconds=1))
    assert profile.expired(end)
    assert not sample_profile("ana").expired(end)


def test_equality_covers_embeddings_and_clips() -> None:
    assert sample_profile("ana", (1, 2)) == sample_profile("ana", (1, 2))
    assert sample_profile("ana", (1, 2)) != sample_profile("ana", (1, 3))
    assert sample_exemplar(1, audio=b"ab") != sample_exemplar(1, audio=b"ac")
    assert len({sample_exemplar(1), sample_exemplar(1), sample_exemplar(2)}) == 2


def test_reprs_show_neither_embeddings_nor_clips_nor_pitch() -> None:
    shown = repr(sample_profile("ana", audio=b"clip-bytes"))
    assert "embedding" not in shown and "clip-bytes" not in shown and "4.8125" not in shown
