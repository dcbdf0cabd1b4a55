"""Kind 7: a profile made by hand, whose numbers no speech gives, or that is like too many voices."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from emoinv_edge.calibration import Term
from emoinv_edge.cli import main
from emoinv_edge.cohort import Cohort, cohort_of
from emoinv_edge.encoder import MODEL_NAMES, Encoder
from emoinv_edge.enrolment import Enroller
from emoinv_edge.errors import EnrolmentError, ModelFormatError
from emoinv_edge.plausible import MAX_CIRCUMSTANCES
from emoinv_edge.profiles import Exemplar, Profile
from emoinv_edge.scoring import ProfileBank
from emoinv_edge.store import Passphrase, ProfileStore
from emoinv_edge.store.portable import write_profile_file
from tests.builders import ANA_HZ, NOW, RATE, build_encoder, calibration, enrolled, in_file, quality, synthesise

WORD = Passphrase("correct horse")


@pytest.fixture(scope="module")
def base() -> Encoder:
    return Encoder.default()


def made_by_hand(encoder: Encoder, vector: NDArray[Any], **circumstances: Any) -> Profile:
    whole = quality(log_embedding_norm=1.2)
    measured = dataclasses.replace(whole, **circumstances)
    unit = (vector / np.linalg.norm(vector)).astype(np.float32)
    return Profile("ana", encoder.fingerprint, (Exemplar(unit, measured, NOW),), NOW)


def imported(folder: Path, encoder: Encoder, profile: Profile, **how: Any) -> Profile:
    write_profile_file(folder / "ana.emoinv", profile, WORD)
    store = ProfileStore(folder / "p.db", bytes(32))
    return store.import_profile(
        folder / "ana.emoinv", WORD, model_fingerprint=encoder.fingerprint, encoder=encoder, **how
    )


@pytest.mark.parametrize("norm", [1.2, 1.6])
def test_a_mean_of_many_voices_is_refused_as_a_wolf(base: Encoder, tmp_path: Path, norm: float) -> None:
    cohort = cohort_of(base)
    assert cohort is not None
    others = [base.embed(synthesise(2.0, seed, hz), RATE).vector for seed, hz in enumerate(range(100, 260, 20))]
    for vector in (cohort.vectors.mean(axis=0), cohort.vectors[::2].mean(axis=0) + 0.2 * np.mean(others, axis=0)):
        profile = made_by_hand(base, vector, log_embedding_norm=norm, bandwidth_hz=8000.0)
        with pytest.raises(EnrolmentError, match="a wolf or a lamb"):
            imported(tmp_path, base, profile)
    assert not (tmp_path / "p.db").exists()


HOSTILE = [
    {"log_embedding_norm": 9.0}, {"log_embedding_norm": 3.0}, {"log_embedding_norm": -20.0}, {"log_f0_mean": 0.0},
    {"log_f0_mean": 9.0}, {"log_f0_std": 4.0}, {"net_speech_s": 0.01}, {"net_speech_s": 1.0},
    {"net_speech_s": 1e9}, {"clipped_fraction": 1.0}, {"snr_db": -300.0}, {"level_dbfs": 1e6}, {"tilt_db": 1e6},
    {"envelope": (1e6,) * 8}, {"bandwidth_hz": 10.0}, {"decay_s": 1e9},
]  # fmt: skip


@pytest.mark.parametrize("circumstances", HOSTILE, ids=str)
def test_circumstances_that_no_speech_has_are_refused(
    base: Encoder, tmp_path: Path, circumstances: dict[str, Any]
) -> None:
    own = base.embed(synthesise(3.0, 0, ANA_HZ), RATE).vector
    with pytest.raises(EnrolmentError, match="enrol the speaker again"):
        imported(tmp_path, base, made_by_hand(base, own, **circumstances))


def test_numbers_are_looked_at_without_the_model_too(encoder: Encoder, tmp_path: Path) -> None:
    own = encoder.embed(synthesise(3.0, 0, ANA_HZ), RATE).vector
    write_profile_file(tmp_path / "a", made_by_hand(encoder, own, log_embedding_norm=50.0), WORD)
    store = ProfileStore(tmp_path / "p.db", bytes(32))
    with pytest.raises(EnrolmentError):
        store.import_profile(tmp_path / "a", WORD, model_fingerprint=encoder.fingerprint)


def test_the_command_refuses_it_too(base: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = cohort_of(base)
    assert cohort is not None
    write_profile_file(tmp_path / "a", made_by_hand(base, cohort.vectors.mean(axis=0), bandwidth_hz=8000.0), WORD)
    monkeypatch.setenv("EMOINV_EXPORT_PASSPHRASE", "correct horse")
    store = str(tmp_path / "p.db")
    assert main(["profiles", "import", str(tmp_path / "a"), "--store", store, "--plaintext"]) == 3


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_an_honest_profile_is_taken(name: str, tmp_path: Path) -> None:
    from emoinv_edge.audio import read_audio

    encoder = Encoder.open(name)
    assert cohort_of(encoder) is not None
    voices = Path(__file__).parents[2] / "emoinv_edge" / "demo" / "clips"
    for voice in sorted(each for each in voices.iterdir() if each.is_dir()):
        enroller = Enroller(encoder)
        for clip in sorted(voice.rglob("*.ogg"))[:4]:
            enroller.add(*read_audio(clip)[:1], 16000)
        assert imported(tmp_path, encoder, enroller.profile("ana"), replace=True).name == "ana"


def test_what_norm_pitch_and_seconds_add_together_is_bounded() -> None:
    terms = tuple(
        Term(name, weight, low, high)
        for name, weight, low, high in (
            ("cosine", 10.0, -1.0, 1.0), ("norm_below", 5.0, 0.0, 1.4), ("f0_above", 3.0, 0.0, 1.5),
            ("enrol_seconds", -2.0, -2.0, 3.0),
        )
    )  # fmt: skip
    held = calibration(terms=terms)
    vector = np.zeros(32, np.float32)
    vector[0] = 1.0
    hostile = quality(log_embedding_norm=8.0, log_f0_mean=3.0, net_speech_s=0.3)
    profile = Profile("x", "ab" * 32, (Exemplar(vector, hostile, NOW),), NOW)
    heard = quality(log_embedding_norm=0.0, log_f0_mean=5.5)
    assert float(ProfileBank([profile]).score(held, vector, heard)[0][0]) <= -7.0 + 10.0 + MAX_CIRCUMSTANCES + 1e-9


def test_a_cohort_survives_its_file_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((6, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    whole = Cohort(vectors, (4.8,) * 6, (1.0,) * 6, 4.0, "invented")
    values = whole.to_values()
    metadata = {**in_file(calibration()), "emoinv.cohort": values}
    encoder = Encoder(build_encoder(tmp_path / "m.onnx", metadata=metadata))
    found = cohort_of(encoder)
    assert found is not None and float((found.vectors * vectors).sum(axis=1).min()) > 0.999
    for change in (
        {"vectors": "!"}, {"vectors": ""}, {"log_f0": []}, {"log_norm": [1.0]}, {"format": 2}, {"extra": 1},
        {"largest_log_norm": "big"}, {"log_f0": [None] * 6}, {"vectors": values["vectors"][:40]},
    ):  # fmt: skip
        with pytest.raises(ModelFormatError, match="cohort"):
            Cohort.from_values(values | change, 32)
    assert enrolled(encoder, "ana", ANA_HZ).name == "ana"
