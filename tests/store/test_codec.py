"""A profile in bytes: what comes back, and that nothing else is taken for one."""

from __future__ import annotations

import dataclasses
import datetime
import json
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emoinv_edge.errors import StoreError
from emoinv_edge.profiles import Profile
from emoinv_edge.store.codec import decode_profile, encode_profile
from tests.store.profile_samples import QUALITY, sample_exemplar, sample_profile

UTC = datetime.timezone.utc

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


def test_what_was_measured_of_the_speech_survives_the_encoding_and_must_be_numbers() -> None:
    quality = dataclasses.replace(QUALITY, envelope=(0.5,) * 8, log_embedding_norm=2.5)
    exemplar = dataclasses.replace(sample_exemplar(1), quality=quality)
    profile = dataclasses.replace(sample_profile("ana"), exemplars=(exemplar,))
    encoded = encode_profile(profile)
    assert decode_profile(encoded) == profile
    envelope, norm = b"[" + b",".join([b"0.5"] * 8) + b"]", b'"log_embedding_norm":2.5'
    for key, damaged in (
        (envelope, b"[true,0.5,0.5,0.5,0.5,0.5,0.5,0.5]"),
        (envelope, b'"abcdefgh"'),
        (norm, b'"log_embedding_norm":true'),
        (norm, b'"log_embedding_norm":"2.5"'),
        (norm, b'"log_embedding_norm":[2.5]'),
        (b"," + norm, b""),
    ):
        assert encoded.count(key) == 1
        length = int.from_bytes(encoded[:4], "little") - len(key) + len(damaged)
        with pytest.raises(StoreError):
            decode_profile(length.to_bytes(4, "little") + encoded[4:].replace(key, damaged))


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


def test_a_profile_of_before_the_band_was_measured_opens_with_an_unknown_band() -> None:
    measured = dataclasses.replace(QUALITY, bandwidth_hz=4000.0, decay_s=0.3)
    new = dataclasses.replace(
        sample_profile("ana"), exemplars=(dataclasses.replace(sample_exemplar(1), quality=measured),)
    )
    assert decode_profile(encode_profile(new)) == new
    written = encode_profile(new)
    (length,) = struct.unpack_from("<I", written)
    header = json.loads(written[4 : 4 + length])
    for exemplar in header["exemplars"]:
        del exemplar["quality"]["bandwidth_hz"], exemplar["quality"]["decay_s"]
    text = json.dumps(header).encode()
    old = decode_profile(struct.pack("<I", len(text)) + text + written[4 + length :])
    assert old.exemplars[0].quality == dataclasses.replace(measured, bandwidth_hz=None, decay_s=None)
