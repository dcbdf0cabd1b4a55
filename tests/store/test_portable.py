"""The portable profile file: its layout, that nothing altered opens, and that nothing crashes its parser."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from emoinv_edge.errors import SchemaError, SealError, StoreError
from emoinv_edge.store import Passphrase
from emoinv_edge.store.codec import decode_profile, encode_profile
from emoinv_edge.store.portable import MAGIC, open_profile, read_profile_file, seal_profile, write_profile_file
from tests.store.profile_samples import FULL, cheap_derive, sample_profile

WORD = Passphrase("correct horse")
PROFILE = sample_profile("ana", (1, 2), audio=b"clip", consent="on paper")


def test_a_profile_comes_back_as_it_was(cheap_scrypt: None) -> None:
    assert open_profile(seal_profile(PROFILE, WORD), WORD) == PROFILE


def test_the_layout_is_the_documented_one() -> None:
    """An independent reader, written from the module's docstring alone."""
    data = seal_profile(PROFILE, WORD)
    assert data[0:8] == bytes.fromhex("89454d4f494e560a")
    assert struct.unpack("<H", data[8:10]) == (2,)
    assert data[10] == 1
    log_n, r, p = data[11], data[12], data[13]
    assert (log_n, r, p) == (15, 8, 3)
    assert data[14:16] == b"\x00\x00"
    key = Scrypt(salt=data[16:32], length=32, n=2**log_n, r=r, p=p).derive(b"correct horse")
    plain = AESGCM(key).decrypt(data[32:44], data[44:], data[0:44])
    assert plain == encode_profile(PROFILE)


def test_nothing_of_the_profile_can_be_read_in_the_file(cheap_scrypt: None) -> None:
    data = seal_profile(PROFILE, WORD)
    secrets = (b"ana", b"on paper", b"clip", b"created", PROFILE.model_fingerprint.encode())
    assert not any(secret in data for secret in secrets)
    assert PROFILE.exemplars[0].embedding.tobytes()[:8] not in data


def test_two_exports_of_one_profile_share_nothing_but_the_head(cheap_scrypt: None) -> None:
    one, other = seal_profile(PROFILE, WORD), seal_profile(PROFILE, WORD)
    assert one[:16] == other[:16] and one[16:32] != other[16:32] and one[44:60] != other[44:60]


def test_the_wrong_passphrase_is_refused_as_such(cheap_scrypt: None) -> None:
    with pytest.raises(SealError, match="passphrase is another one"):
        open_profile(seal_profile(PROFILE, WORD), Passphrase("wrong horse"))


def test_flipping_any_byte_is_noticed(cheap_scrypt: None) -> None:
    data = seal_profile(PROFILE, WORD)
    for place in range(len(data)):
        for flip in (0xFF, 1 << place % 8):
            altered = bytearray(data)
            altered[place] ^= flip
            expected = StoreError if place < 8 else SchemaError if place < 10 else SealError
            with pytest.raises(StoreError) as caught:
                open_profile(bytes(altered), WORD)
            assert type(caught.value) is expected, (place, flip)


def test_truncating_at_any_length_is_noticed(cheap_scrypt: None) -> None:
    data = seal_profile(PROFILE, WORD)
    for length in range(len(data)):
        with pytest.raises(StoreError, match=r"not a portable profile|cut off"):
            open_profile(data[:length], WORD)


def test_bytes_added_at_the_end_are_noticed(cheap_scrypt: None) -> None:
    with pytest.raises(SealError):
        open_profile(seal_profile(PROFILE, WORD) + b"\x00", WORD)


def test_a_newer_format_is_named(cheap_scrypt: None) -> None:
    data = bytearray(seal_profile(PROFILE, WORD))
    data[8] = 3
    with pytest.raises(SchemaError, match=r"format 3, expected 2.*newer"):
        open_profile(bytes(data), WORD)


def test_costs_that_would_exhaust_the_memory_are_refused_before_they_are_paid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = bytearray(SEALED)
    monkeypatch.setattr(Passphrase, "derive", lambda *_: pytest.fail("the costs were accepted"))
    for place, value in ((11, 30), (11, 2), (12, 255), (13, 0), (13, 200), (10, 2), (14, 1)):
        altered = data.copy()
        altered[place] = value
        with pytest.raises(SealError, match="header was altered"):
            open_profile(bytes(altered), WORD)


def test_a_file_replaces_an_older_one_and_is_for_its_owner_only(tmp_path: Path, cheap_scrypt: None) -> None:
    path = tmp_path / "ana.emoinv"
    path.write_bytes(b"older")
    write_profile_file(path, PROFILE, WORD)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["ana.emoinv"]
    assert read_profile_file(path, WORD) == PROFILE


def test_a_folder_that_is_missing_is_an_error_with_the_path(tmp_path: Path, cheap_scrypt: None) -> None:
    with pytest.raises(StoreError, match=r"missing/ana\.emoinv: cannot be written"):
        write_profile_file(tmp_path / "missing" / "ana.emoinv", PROFILE, WORD)
    with pytest.raises(StoreError, match="cannot be read"):
        read_profile_file(tmp_path / "ana.emoinv", WORD)
    (tmp_path / "ana.emoinv").write_bytes(b"RIFF")
    with pytest.raises(StoreError, match=r"ana\.emoinv: not a portable profile"):
        read_profile_file(tmp_path / "ana.emoinv", WORD)


# -- fuzz: 20,000 inputs with EMOINV_FULL_PROOFS=1 -----------------------------------------------------------

PLAIN = encode_profile(PROFILE)
EXAMPLES = 10_000 if FULL else 100  # each of two tests


@st.composite
def edits(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` with a few pieces replaced, removed, doubled or put elsewhere."""
    altered = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(altered)))
        end = min(len(altered), start + draw(st.integers(0, 12)))
        piece = draw(
            st.binary(max_size=12)
            | st.just(bytes(altered[start:end]) * 2)
            | st.sampled_from([b"null", b"-1", b"1e999", b"NaN", b'"', b"{}", b"[]", b"\\ud800", b"\xff\xff\xff\xff"])
        )
        altered[start:end] = piece
    return bytes(altered)


@given(st.binary(max_size=300) | edits(PLAIN))
@example(b"")
@example(PLAIN)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_parser_of_the_opened_profile_never_crashes(data: bytes) -> None:
    """Bytes that passed the seal, as from a foreign program that knows the passphrase."""
    try:
        profile = decode_profile(data)
    except StoreError:
        return
    assert decode_profile(encode_profile(profile)) == profile


with pytest.MonkeyPatch.context() as cheaper:
    cheaper.setattr(Passphrase, "derive", cheap_derive)
    SEALED = seal_profile(PROFILE, WORD)


@given(st.binary(max_size=300) | st.binary(max_size=300).map(MAGIC.__add__) | edits(SEALED) | edits(PLAIN))
@example(SEALED)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_import_of_any_bytes_is_an_error_or_the_profile(data: bytes) -> None:
    with pytest.MonkeyPatch.context() as cheaper:
        cheaper.setattr(Passphrase, "derive", cheap_derive)
        try:
            profile = open_profile(data, WORD)
        except StoreError:
            return
    assert profile == PROFILE
