"""Keys of a store: where they come from, how they are changed, and that no secret leaks."""

from __future__ import annotations

import copy
import datetime
import logging
import os
import pickle
import traceback
from pathlib import Path

import pytest

from emoinv_edge.errors import EmoinvError, SealError, StoreError
from emoinv_edge.store import PLAINTEXT, KeyFile, KeySource, KeyVariable, Passphrase, ProfileStore
from emoinv_edge.store.keys import StoreKeys
from tests.store.profile_samples import KEY, MODEL, OTHER_MODEL, cheap_derive, sample_exemplar, sample_profile
from tests.store.raw_store import raw_connection, sealed_columns

UTC = datetime.timezone.utc


# -- keys -------------------------------------------------------------------------------------------------------------


def test_without_a_key_a_key_file_is_made_beside_the_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMOINV_STORE_KEY", raising=False)
    old_mask = os.umask(0o000)
    try:
        ProfileStore(folder / "p.db").put(sample_profile("anabel", consent="on paper"))
    finally:
        os.umask(old_mask)
    key_file = folder / "p.db.key"
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert len(bytes.fromhex(key_file.read_text())) == 32
    assert ProfileStore(folder / "p.db").names() == ["anabel"]
    content = (folder / "p.db").read_bytes()
    assert b"anabel" not in content and b"on paper" not in content


def test_the_environment_variable_is_the_default_key_where_it_is_set(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMOINV_STORE_KEY", KEY.hex())
    ProfileStore(folder / "p.db").put(sample_profile("ana"))
    assert not (folder / "p.db.key").exists()
    assert ProfileStore(folder / "p.db", KEY).names() == ["ana"]
    monkeypatch.setenv("EMOINV_STORE_KEY", "not a key")
    with pytest.raises(StoreError, match="EMOINV_STORE_KEY: expected 64 hexadecimal digits"):
        ProfileStore(folder / "p.db").names()
    monkeypatch.delenv("EMOINV_STORE_KEY")
    with pytest.raises(StoreError, match="EMOINV_STORE_KEY is not set"):
        ProfileStore(folder / "p.db", KeyVariable()).names()


def test_only_plaintext_writes_in_the_clear(folder: Path) -> None:
    ana = sample_profile("anabel", (1, 2), consent="on paper", audio=b"clip-bytes")
    for number, key in enumerate((KEY, lambda: KEY, KeyFile(folder / "key"), None)):
        sealed = ProfileStore(folder / f"{number}.db", key)
        sealed.put(ana)
        sealed.note_verified("anabel", "accept")
        content = sealed.path.read_bytes()
        for secret in (b"anabel", b"on paper", b"clip-bytes", b"accept", b"2.5", ana.exemplars[0].embedding.tobytes()):
            assert secret not in content
    plain = ProfileStore(folder / "plain.db", PLAINTEXT)
    plain.put(ana)
    assert b"anabel" in plain.path.read_bytes()
    assert ProfileStore(folder / "plain.db", PLAINTEXT).get("anabel") == ana


def test_a_store_opens_with_its_own_key_only(folder: Path, cheap_scrypt: None) -> None:
    keys: dict[str, KeySource] = {
        "bytes": KEY,
        "other": b"x" * 32,
        "word": Passphrase("correct horse"),
        "wrong": Passphrase("wrong horse"),
        "plain": PLAINTEXT,
    }
    for made in ("bytes", "word", "plain"):
        ProfileStore(folder / made, keys[made]).put(sample_profile("ana"))
        for name, key in keys.items():
            opened = ProfileStore(folder / made, key)
            if name == made:
                assert opened.names() == ["ana"]
                continue
            before = opened.path.read_bytes()
            for act, *arguments in (
                (opened.names,),
                (opened.list,),
                (opened.get, "ana"),
                (opened.put, sample_profile("bo")),
            ):
                with pytest.raises(SealError):
                    act(*arguments)
            assert opened.path.read_bytes() == before


def test_the_kind_of_key_that_is_wanted_is_named(folder: Path) -> None:
    ProfileStore(folder / "plain", PLAINTEXT).put(sample_profile("ana"))
    with pytest.raises(SealError, match=r"is in plaintext.*PLAINTEXT"):
        ProfileStore(folder / "plain", KEY).names()
    ProfileStore(folder / "sealed", KEY).put(sample_profile("ana"))
    with pytest.raises(SealError, match="sealed with a key"):
        ProfileStore(folder / "sealed", Passphrase("12345678")).names()


def test_a_passphrase_goes_through_scrypt(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(passphrase: Passphrase, salt: bytes) -> bytes:
        calls.append(salt)
        return cheap_derive(passphrase, salt)

    assert Passphrase("password").derive(b"NaCl", 10, 8, 16)[:8].hex() == "fdbabe1c9d347200"  # RFC 7914, section 12
    monkeypatch.setattr(Passphrase, "derive", counted)
    opened = ProfileStore(folder / "p.db", Passphrase("correct horse"))
    opened.put(sample_profile("ana"))
    for _ in range(5):
        opened.get("ana")
    assert len(calls) == 2 and len(calls[0]) == 16  # once to make the store, once to open it


def test_a_short_passphrase_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 8"):
        Passphrase("short")
    with pytest.raises(TypeError, match="str"):
        Passphrase(b"12345678")  # type: ignore[arg-type]


@pytest.mark.parametrize("key", [b"short", lambda: b"short", lambda: "x" * 32])
def test_a_key_of_the_wrong_size_is_refused(folder: Path, key: KeySource) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        ProfileStore(folder / "p.db", key).put(sample_profile("ana"))
    assert not (folder / "p.db").exists()


def test_a_key_of_the_wrong_type_is_refused(folder: Path) -> None:
    with pytest.raises(TypeError, match="expected a key"):
        ProfileStore(folder / "p.db", "text")  # type: ignore[arg-type]


def test_a_key_file_that_others_can_read_is_refused(folder: Path) -> None:
    ProfileStore(folder / "p.db").put(sample_profile("ana"))
    (folder / "p.db.key").chmod(0o644)
    with pytest.raises(StoreError, match=r"mode 0644 .*chmod 600"):
        ProfileStore(folder / "p.db").names()


def test_a_missing_key_file_is_never_made_anew_for_a_store_that_exists(folder: Path) -> None:
    ProfileStore(folder / "p.db").put(sample_profile("ana"))
    kept = (folder / "p.db.key").read_bytes()
    (folder / "p.db.key").unlink()
    for act in (lambda: ProfileStore(folder / "p.db").put(sample_profile("bo")), ProfileStore(folder / "p.db").names):
        with pytest.raises(StoreError, match="restore it from a copy"):
            act()
    assert not (folder / "p.db.key").exists()
    (folder / "p.db.key").write_bytes(kept)
    (folder / "p.db.key").chmod(0o600)
    assert ProfileStore(folder / "p.db").names() == ["ana"]


# -- rotation ---------------------------------------------------------------------------------------------------------


def test_rotation_renews_every_sealed_byte_and_keeps_every_profile(store: ProfileStore) -> None:
    store.put(sample_profile("ana", (1, 2), audio=b"clip"))
    store.put(sample_profile("bo", (3,)))
    store.adapt(store.get("bo"), sample_exemplar(4))
    before = sealed_columns(store.path)
    store.rotate()
    after = sealed_columns(store.path)
    assert len(before) == len(after) and not before & after
    content = store.path.read_bytes()
    assert not any(blob in content for blob in before)
    fresh = ProfileStore(store.path, KEY)
    assert fresh.get("ana") == sample_profile("ana", (1, 2), audio=b"clip")
    assert fresh.get("bo") == sample_profile("bo", (3, 4), adapted=1)
    assert fresh.rollback("bo") == sample_profile("bo", (3,))  # what can be undone is carried along
    assert [event for _, event in fresh.audit("bo").events] == ["enrolled", "adapted", "rolled back"]
    assert [event for _, event in fresh.log()] == ["sealed anew"]


def test_rotation_changes_the_kind_of_key(folder: Path, cheap_scrypt: None) -> None:
    path = folder / "p.db"
    moving = ProfileStore(path, KEY)
    moving.put(sample_profile("ana"))
    chain: list[KeySource] = [Passphrase("correct horse"), KeyFile(folder / "k"), PLAINTEXT, b"y" * 32]
    previous: KeySource = KEY
    for key in chain:
        moving.rotate(key)
        assert moving.names() == ProfileStore(path, key).names() == ["ana"]
        with pytest.raises(SealError):
            ProfileStore(path, previous).names()
        previous = key
    assert b"ana" not in path.read_bytes()


def test_rotation_renews_a_key_file_in_its_place(folder: Path) -> None:
    path = folder / "p.db"
    first, other = ProfileStore(path), ProfileStore(path)
    first.put(sample_profile("ana"))
    assert other.names() == ["ana"]
    old_key = (folder / "p.db.key").read_text()
    first.rotate(first.own_key_file())
    assert (folder / "p.db.key").read_text() != old_key
    assert (folder / "p.db.key").stat().st_mode & 0o777 == 0o600
    assert sorted(each.name for each in folder.iterdir()) == ["p.db", "p.db.key"]
    assert other.names() == first.names() == ProfileStore(path).names() == ["ana"]  # `other` had the old key open
    with pytest.raises(SealError):
        ProfileStore(path, bytes.fromhex(old_key)).names()


def test_there_is_nothing_to_rotate_before_a_store_is_made(store: ProfileStore, folder: Path) -> None:
    for key in (None, KeyFile(folder / "k")):
        with pytest.raises(StoreError, match="does not exist; enrol a speaker first"):
            store.rotate(key)
    assert list(folder.iterdir()) == []


def test_a_rotation_cut_off_between_store_and_key_file_is_finished_by_the_next_write(folder: Path) -> None:
    path = folder / "p.db"
    cut = ProfileStore(path)
    cut.put(sample_profile("ana"))
    old_key = (folder / "p.db.key").read_bytes()
    cut.rotate(cut.own_key_file())
    new_key = (folder / "p.db.key").read_bytes()
    os.rename(folder / "p.db.key", folder / "p.db.key.new")  # as if killed before the last step
    (folder / "p.db.key").write_bytes(old_key)
    (folder / "p.db.key").chmod(0o600)
    assert ProfileStore(path).names() == ["ana"]
    assert (folder / "p.db.key").read_bytes() == old_key  # reading settles nothing
    ProfileStore(path).put(sample_profile("bo"))
    assert (folder / "p.db.key").read_bytes() == new_key and not (folder / "p.db.key.new").exists()
    assert ProfileStore(path).names() == ["ana", "bo"]


def test_a_rotation_cut_off_before_its_commit_leaves_the_old_key(folder: Path) -> None:
    path = folder / "p.db"
    ProfileStore(path).put(sample_profile("ana"))
    (folder / "p.db.key.new").write_text("00" * 32)
    (folder / "p.db.key.new").chmod(0o600)
    assert ProfileStore(path).names() == ["ana"]
    ProfileStore(path).put(sample_profile("bo"))
    assert not (folder / "p.db.key.new").exists() and ProfileStore(path).names() == ["ana", "bo"]


# -- secrets ----------------------------------------------------------------------------------------------------------


def test_secrets_reach_no_log_exception_or_repr(
    folder: Path, caplog: pytest.LogCaptureFixture, cheap_scrypt: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    shown: list[str] = []
    audio = b"THE-CLIP-ITSELF"
    ana = sample_profile("ana", (1, 2), audio=audio)
    word, export_word = Passphrase("store passphrase"), Passphrase("export passphrase")
    wrong_word = Passphrase("another passphrase")

    def attempt(act) -> None:
        try:
            shown.append(repr(act()))
        except (EmoinvError, ValueError, TypeError) as error:
            shown.append(repr(error) + "".join(traceback.format_exception(type(error), error, error.__traceback__)))

    sources: list[KeySource] = [KEY, lambda: KEY, word, KeyFile(folder / "key"), KeyVariable("EMOINV_TEST_KEY")]
    monkeypatch.setenv("EMOINV_TEST_KEY", KEY.hex())

    def everything_with(opened: ProfileStore) -> None:
        attempt(lambda: opened)
        attempt(lambda: opened.put(ana))
        attempt(lambda: opened.get("ana"))
        attempt(opened.list)
        attempt(lambda: opened.audit("ana"))
        attempt(lambda: opened.adapt(opened.get("ana"), sample_exemplar(3)))
        attempt(lambda: opened.export_profile("ana", folder / "ana.emoinv", export_word))
        attempt(lambda: opened.import_profile(folder / "ana.emoinv", export_word, model_fingerprint=MODEL))
        attempt(lambda: opened.import_profile(folder / "ana.emoinv", word, model_fingerprint=MODEL))
        attempt(lambda: opened.get("ana", model_fingerprint=OTHER_MODEL))
        attempt(lambda: pickle.dumps(opened))
        attempt(lambda: pickle.dumps(word))
        attempt(lambda: copy.copy(opened))
        attempt(lambda: ProfileStore(opened.path, b"x" * 32).names())
        attempt(lambda: ProfileStore(opened.path, wrong_word).get("ana"))
        with raw_connection(opened.path) as db:
            db.execute("UPDATE exemplar SET vector = zeroblob(200)")
        attempt(lambda: opened.get("ana"))
        attempt(opened.list)
        attempt(opened.rotate)
        with raw_connection(opened.path) as db:
            db.execute("UPDATE store SET keys = zeroblob(92)")
        attempt(opened.names)

    for number, key in enumerate(sources):
        attempt(lambda key=key: key if isinstance(key, (Passphrase, KeyFile, KeyVariable)) else None)
        attempt(lambda key=key: StoreKeys.fresh(key, b"id"))
        everything_with(ProfileStore(folder / f"{number}.db", key))
    everything = "\n".join([*shown, *(record.getMessage() for record in caplog.records)])
    assert "does not open" in everything and "already" in everything and "not pickled" in everything
    keys = [KEY, bytes.fromhex((folder / "key").read_text())]
    secrets = ["store passphrase", "export passphrase", "another passphrase", audio.decode(), "4.8125"]
    secrets += [key.hex() for key in keys] + [repr(key)[2:-1] for key in keys]
    for exemplar in ana.exemplars:
        secrets += [f"{value:.5f}" for value in exemplar.embedding] + [str(value) for value in exemplar.embedding]
        secrets += [repr(exemplar.embedding.tobytes())[2:40], exemplar.embedding.tobytes().hex()]
    for secret in secrets:
        assert secret not in everything
