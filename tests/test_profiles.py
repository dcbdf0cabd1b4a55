"""Exemplar, Profile, their encoding in bytes, and the transform that a store puts over embeddings."""

from __future__ import annotations

import dataclasses
import datetime
import json
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from profile_samples import MODEL, QUALITY, WHEN, sample_exemplar, sample_profile

from emoinv_edge.errors import StoreError
from emoinv_edge.profiles import Exemplar, Profile, checked_name, decode_profile, encode_profile
from emoinv_edge.transform import orthogonal_matrix

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
    with pytest.raises(TypeError, match="float32, got list"):
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


profiles = st.builds(
    sample_profile,
    name=st.text(min_size=1, max_size=20).filter(
        lambda text: text.isprintable() and text == text.strip() and text.isascii()
    ),
    seeds=st.lists(st.integers(0, 99), min_size=1, max_size=4).map(tuple),
    dim=st.integers(2, 40),
    audio=st.none() | st.binary(min_size=1, max_size=50),
    expires=st.none() | st.datetimes(timezones=st.just(UTC)),
    consent=st.text(max_size=50),
)


@given(profiles)
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
def test_every_profile_survives_its_encoding(profile: Profile) -> None:
    assert decode_profile(encode_profile(profile)) == profile


def test_unvoiced_speech_survives_its_encoding() -> None:
    exemplar = dataclasses.replace(sample_exemplar(1), quality=dataclasses.replace(QUALITY, log_f0_mean=None))
    profile = dataclasses.replace(sample_profile("ana"), exemplars=(exemplar,))
    assert decode_profile(encode_profile(profile)) == profile


def test_the_envelope_survives_its_encoding_and_is_unknown_in_profiles_of_before() -> None:
    quality = dataclasses.replace(QUALITY, envelope=(0.5,) * 8)
    exemplar = dataclasses.replace(sample_exemplar(1), quality=quality)
    profile = dataclasses.replace(sample_profile("ana"), exemplars=(exemplar,))
    encoded = encode_profile(profile)
    assert decode_profile(encoded) == profile
    key = b',"envelope":[' + b",".join([b"0.5"] * 8) + b"]"
    assert encoded.count(key) == 1
    length = int.from_bytes(encoded[:4], "little") - len(key)
    before = decode_profile(length.to_bytes(4, "little") + encoded[4:].replace(key, b""))
    assert before.exemplars[0].quality == QUALITY
    for damaged in (b',"envelope":[true,0.5,0.5,0.5,0.5,0.5,0.5,0.5]', b',"envelope":"abcdefgh"'):
        forged = encoded[4:].replace(key, damaged)
        length = int.from_bytes(encoded[:4], "little") - len(key) + len(damaged)
        with pytest.raises(StoreError):
            decode_profile(length.to_bytes(4, "little") + forged)


def test_the_norm_survives_its_encoding_and_is_unknown_in_profiles_of_before() -> None:
    exemplar = dataclasses.replace(sample_exemplar(1), quality=dataclasses.replace(QUALITY, log_embedding_norm=2.5))
    profile = dataclasses.replace(sample_profile("ana"), exemplars=(exemplar,))
    encoded = encode_profile(profile)
    assert decode_profile(encoded) == profile
    key = b',"log_embedding_norm":2.5'
    assert encoded.count(key) == 1

    def with_key(other: bytes) -> bytes:
        length = int.from_bytes(encoded[:4], "little") - len(key) + len(other)
        return length.to_bytes(4, "little") + encoded[4:].replace(key, other)

    assert decode_profile(with_key(b"")).exemplars[0].quality == QUALITY
    assert decode_profile(with_key(b',"log_embedding_norm":null')).exemplars[0].quality == QUALITY
    for damaged in (b"true", b'"2.5"', b"[2.5]"):
        with pytest.raises(StoreError):
            decode_profile(with_key(b',"log_embedding_norm":' + damaged))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"dim":8', '"dim":9'),
        ('"dim":8', '"dim":1e99'),
        ('"dim":8', '"dim":true'),
        ('"name":"ana"', '"name":"ana","more":1'),
        ('"name":"ana"', '"name":7'),
        ('"consent":""', '"consent":null'),
        ('"snr_db":21.0', '"snr_db":NaN'),
        ('"snr_db":21.0', '"snr_db":1e999'),
        ('"snr_db":21.0', '"snr_db":null'),
        ('"audio":null', '"audio":-1'),
        ('"audio":null', '"audio":9999999999'),
        ('"expires":null', '"expires":"tomorrow"'),
        ("2024-05-06T12:00:00+00:00", "2024-05-06T12:00:00"),
        ("2024-05-06T12:00:00+00:00", "2024-05-06T12:00:00+02:00"),
    ],
)
def test_a_header_with_a_wrong_value_is_refused(old: str, new: str) -> None:
    data = encode_profile(sample_profile("ana"))
    (length,) = struct.unpack_from("<I", data)
    text = data[4 : 4 + length].decode()
    assert old in text
    text = text.replace(old, new)
    with pytest.raises(StoreError, match="not a profile of this format"):
        decode_profile(struct.pack("<I", len(text)) + text.encode() + data[4 + length :])


def test_every_truncation_and_every_addition_is_refused() -> None:
    data = encode_profile(sample_profile("ana", audio=b"four"))
    for length in range(len(data)):
        with pytest.raises(StoreError):
            decode_profile(data[:length])
    with pytest.raises(StoreError):
        decode_profile(data + b"\x00")


def test_a_refusal_does_not_repeat_the_bytes() -> None:
    header = {"name": "very secret name"}
    text = json.dumps(header).encode()
    with pytest.raises(StoreError) as caught:
        decode_profile(struct.pack("<I", len(text)) + text)
    assert "secret" not in str(caught.value) and caught.value.__cause__ is None


def test_json_nested_a_million_deep_is_refused() -> None:
    text = b"[" * 1_000_000
    with pytest.raises(StoreError):
        decode_profile(struct.pack("<I", len(text)) + text)


# -- the transform -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 3, 32, 192, 256])
def test_the_transform_is_orthogonal(dim: int) -> None:
    matrix = orthogonal_matrix(b"s" * 32, dim)
    assert np.abs(matrix @ matrix.T - np.eye(dim)).max() < 1e-12


def test_scores_do_not_change_under_the_transform() -> None:
    matrix = orthogonal_matrix(b"s" * 32, 256)
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((50, 256))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    kept = (vectors @ matrix.T).astype(np.float32)
    assert np.abs(kept @ kept.T - vectors @ vectors.T).max() < 1e-5


def test_vectors_of_two_stores_have_nothing_to_do_with_each_other() -> None:
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((200, 256))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    one, other = (vectors @ orthogonal_matrix(secret * 32, 256).T for secret in (b"a", b"b"))
    mated = np.sum(one * other, axis=1)  # the same embedding in both stores
    # Like unrelated directions in 256 dimensions: mean 0, standard deviation 1/16.
    assert abs(mated.mean()) < 4 / 16 / np.sqrt(200)
    assert 0.8 / 16 < mated.std() < 1.2 / 16


def test_the_transform_is_spread_evenly_over_the_orthogonal_matrices() -> None:
    matrices = np.stack([orthogonal_matrix(bytes([n % 256, n // 256]), 4) for n in range(2000)])
    traces = np.trace(matrices, axis1=1, axis2=2)  # mean 0 and variance 1 under Haar measure
    assert abs(traces.mean()) < 0.1 and abs(traces.var() - 1.0) < 0.15
    assert np.abs((matrices**2).mean(axis=0) - 0.25).max() < 0.03
    assert abs((np.linalg.det(matrices) > 0).mean() - 0.5) < 0.05


def test_the_transform_stays_what_it_was() -> None:
    matrix = orthogonal_matrix(bytes(range(32)), 3)
    expected = [
        [-0.09552921811146686, -0.8528366804218377, -0.5133651380977013],
        [-0.4256319713361699, -0.4312048794162753, 0.7955499839382068],
        [0.8998397598814455, -0.2945028836779967, 0.3218018925392556],
    ]
    assert np.abs(matrix - expected).max() < 1e-12  # or every store in the field would lose its embeddings
