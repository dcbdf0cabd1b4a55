"""Profiles that move to another store or another model."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pytest

from emoinv_edge.encoder import Encoder
from emoinv_edge.errors import EnrolmentError, ModelMismatchError, ProfileExpiredError, SealError, StoreError
from emoinv_edge.store import Passphrase, ProfileStore
from emoinv_edge.store.portable import write_profile_file
from tests.builders import synthesise
from tests.store.profile_samples import KEY, MODEL, OTHER_MODEL, WHEN, sample_exemplar, sample_profile

UTC = datetime.timezone.utc


def test_a_profile_moves_to_another_store(store: ProfileStore, folder: Path, cheap_scrypt: None) -> None:
    word = Passphrase("correct horse")
    ana = sample_profile("ana", (1, 2), audio=b"clip", consent="on paper")
    store.put(ana)
    store.export_profile("ana", folder / "ana.emoinv", word)
    other = ProfileStore(folder / "other.db", b"o" * 32)
    assert other.import_profile(folder / "ana.emoinv", word, model_fingerprint=MODEL) == ana
    assert other.get("ana") == ana
    with pytest.raises(StoreError, match="already"):
        other.import_profile(folder / "ana.emoinv", word, model_fingerprint=MODEL)
    other.import_profile(folder / "ana.emoinv", word, model_fingerprint=MODEL, name="ana at home")
    assert other.names() == ["ana", "ana at home"]
    assert [event for _, event in other.audit("ana").events] == ["imported"]


def test_an_export_can_leave_the_speech_out(store: ProfileStore, folder: Path, cheap_scrypt: None) -> None:
    word = Passphrase("correct horse")
    store.put(sample_profile("ana", (1, 2), audio=b"clip"))
    store.export_profile("ana", folder / "ana.emoinv", word, audio=False)
    other = ProfileStore(folder / "other.db", KEY)
    other.import_profile(folder / "ana.emoinv", word, model_fingerprint=MODEL)
    assert other.get("ana") == sample_profile("ana", (1, 2))
    assert store.get("ana") == sample_profile("ana", (1, 2), audio=b"clip")


def test_an_import_for_another_model_or_past_its_expiry_is_refused(
    store: ProfileStore, folder: Path, cheap_scrypt: None
) -> None:
    word = Passphrase("correct horse")
    store.put(sample_profile("ana", audio=b"clip"))
    store.put(sample_profile("cy"))
    for name in ("ana", "cy"):
        store.export_profile(name, folder / name, word)
    write_profile_file(folder / "bo", sample_profile("bo", expires=WHEN), word)
    other = ProfileStore(folder / "other.db", KEY)
    with pytest.raises(ModelMismatchError, match="import --upgrade"):
        other.import_profile(folder / "ana", word, model_fingerprint=OTHER_MODEL)
    with pytest.raises(ModelMismatchError, match="enrol the speaker again"):
        other.import_profile(folder / "cy", word, model_fingerprint=OTHER_MODEL)
    assert datetime.datetime.now(UTC) > WHEN
    with pytest.raises(ProfileExpiredError):
        other.import_profile(folder / "bo", word, model_fingerprint=MODEL)
    with pytest.raises(SealError, match="passphrase"):
        other.import_profile(folder / "ana", Passphrase("wrong horse"), model_fingerprint=MODEL)
    assert other.names() == []


def clip(speech: np.ndarray) -> bytes:
    return np.rint(speech * 32767.0).astype("<i2").tobytes()


def test_kept_speech_is_enrolled_again_on_another_model(
    store: ProfileStore, folder: Path, tiny_encoder: Encoder, cheap_scrypt: None
) -> None:
    speech = clip(synthesise(1.5, 1))
    store.put(sample_profile("ana", (1,), audio=speech, consent="on paper"))
    store.put(sample_profile("bo", (2,)))
    store.adapt(store.get("ana"), sample_exemplar(3))  # has no clip
    store.export_profile("ana", folder / "ana.emoinv", Passphrase("correct horse"))
    new = store.upgrade("ana", tiny_encoder)
    kept = store.get("ana", model_fingerprint=tiny_encoder.fingerprint)
    waveform = np.frombuffer(speech, "<i2").astype(np.float32) / 32768.0
    assert kept == new and kept.consent == "on paper" and kept.created == WHEN
    assert float(kept.exemplars[0].embedding @ tiny_encoder.embed(waveform, 16000)) > 1.0 - 1e-6
    assert len(kept.exemplars) == 1 and kept.exemplars[0].audio == speech
    assert store.audit("ana").events[-1][1] == f"upgraded to model {tiny_encoder.fingerprint[:12]}"
    with pytest.raises(EnrolmentError, match="without --keep-audio"):
        store.upgrade("bo", tiny_encoder)
    assert store.get("bo") == sample_profile("bo", (2,))
    other = ProfileStore(folder / "other.db", KEY)
    imported = other.import_profile(
        folder / "ana.emoinv",
        Passphrase("correct horse"),
        model_fingerprint=tiny_encoder.fingerprint,
        encoder=tiny_encoder,
    )
    assert imported == new
