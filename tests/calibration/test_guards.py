"""Fitting the guards: what is planted is found, limits hold on what was left out, and what was heard is kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from emoinv_edge.calibration import Calibration, FarTable, Term
from emoinv_edge.quality import SpeechQuality
from emoinv_edge.vad import speech_only
from tests.builders import ANA_HZ, RATE, synthesise
from train.calibration.guard_speech import Heard, read_heard, write_heard
from train.calibration.guards import fit_guards
from train.calibration.sounds import FAMILIES, SOURCES, sound, whispered

DIM = 24
CALIBRATION = Calibration(
    -4.0, (Term("cosine", 10.0, -1.0, 1.0),), (FarTable(1, (0.5, 0.05, 0.01), (-1.0, 0.0, 1.0)),), 300, "invented"
)


def unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), np.float32)


def quality(rng: np.random.Generator, norm: float, voiced: float = 0.6) -> SpeechQuality:
    good = SpeechQuality(rng.uniform(1.5, 4.0), 25.0, 0.0, -20.0, rng.normal(5.0, 0.1), 0.15, -5.0, voiced)
    return good.with_embedding_norm(norm)


def heard(seed: int = 0) -> list[Heard]:
    """Three corpora of voices, and sounds that lie elsewhere: embeddings on a sphere, with one axis between them."""
    rng = np.random.default_rng(seed)
    between = unit(rng.standard_normal(DIM))
    found = []
    voices = {}

    def near(centre: NDArray[np.floating], spread: float) -> NDArray[np.float32]:
        return unit(centre + spread * rng.standard_normal(DIM) / np.sqrt(DIM))

    for corpus in ("a", "b", "c"):
        for number in range(8):
            voices[corpus, str(number)] = centre = unit(rng.standard_normal(DIM) / np.sqrt(DIM) + 0.8 * between)
            for clip in range(10):
                emotion = "neutral" if clip < 6 else "angry"
                vector = near(centre, 0.4 if clip < 6 else 0.7)
                labels = ("clean", corpus, str(number), "female", emotion, 0.0)
                found.append(Heard(*labels, vector, quality(rng, rng.uniform(8, 12)), None))
    for number in range(150):
        kind = ("recorded", "made")[number % 2]
        vector = near(unit(rng.standard_normal(DIM) - 4.0 * between), 0.3)
        labels = (kind, "sounds", f"{kind} {number % 6}", "", "", 0.0)
        found.append(Heard(*labels, vector, quality(rng, rng.uniform(3, 6), 0.2), None))
    for corpus, first in voices:
        for second in (first, str((int(first) + 1) % 8)):
            for emotion in ("", "mixed"):
                halves = [voices[corpus, first]] * 5 + [voices[corpus, second]] * 5
                windows = np.stack([near(centre, 0.5) for centre in halves])
                kind = "one" if first == second else "two"
                labels = (kind, corpus, first, "female", emotion, 3.0)
                found.append(Heard(*labels, unit(windows.mean(axis=0)), quality(rng, 10.0), windows))
    return found


def test_what_is_planted_is_found_on_corpora_left_out() -> None:
    fitted = fit_guards(heard(), CALIBRATION, 1.5, 0.5)
    figures = {name: shares["all"] for name, shares in fitted.figures.items()}
    assert figures["clean speech refused as no voice"] <= 0.01
    assert figures["recorded sounds taken for a voice"] <= 0.05
    assert figures["two voices found, 3 + 3 s"] >= 0.9
    assert figures["two voices found at the door, 3 + 3 s"] >= 0.9
    assert figures["one voice taken for two, 3 + 3 s"] <= 0.05
    assert figures["strangers' clips found"] >= 0.9
    assert figures["own emotional clips doubted"] <= 0.05
    assert set(fitted.figures["strangers' clips found"]) == {"a", "b", "c", "all"}
    assert fitted.guards.windows is not None and fitted.guards.windows.window_s == 1.5
    assert fitted.guards.door is not None and fitted.guards.door.fit <= 0.0
    assert "a, b, c" in fitted.guards.source


def test_the_fit_is_the_same_again() -> None:
    first, second = (fit_guards(heard(), CALIBRATION, 1.5, 0.5) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("missing", ["recorded", "one", "clean"])
def test_a_fit_without_one_of_its_kinds_is_refused(missing: str) -> None:
    gone = {"recorded": ("recorded", "made"), "one": ("one", "two"), "clean": ("clean",)}[missing]
    with pytest.raises(ValueError, match="two corpora or more, sounds, and recordings of two halves"):
        fit_guards([each for each in heard() if each.kind not in gone], CALIBRATION, 1.5, 0.5)


def test_what_was_heard_is_kept_as_it_was(tmp_path: Path) -> None:
    kept = heard()
    kept[0] = dataclasses.replace(kept[0], quality=dataclasses.replace(kept[0].quality, log_f0_mean=None))
    write_heard(tmp_path / "heard.npz", kept)
    again = read_heard(tmp_path / "heard.npz")
    assert [(each.kind, each.corpus, each.speaker, each.emotion, each.side_s, each.quality) for each in again] == [
        (each.kind, each.corpus, each.speaker, each.emotion, each.side_s, each.quality) for each in kept
    ]
    for each, was in zip(again, kept, strict=True):
        assert np.array_equal(each.vector, was.vector)
        assert (each.windows is None) == (was.windows is None)
        assert was.windows is None or np.array_equal(each.windows, was.windows)


def test_sounds_by_rule_are_of_every_kind_and_repeat_themselves() -> None:
    kinds = set()
    for seed in range(400):
        wave, kind = sound(np.random.default_rng(seed), 0.3)
        assert wave.dtype == np.float32 and wave.shape == (4800,)
        assert np.isfinite(wave).all() and 0.0 < np.abs(wave).max() <= 1.0
        kinds.add(kind)
    assert kinds == {f"{family} {source}" for family in FAMILIES for source in SOURCES} - {"vowels noise"}
    assert np.array_equal(sound(np.random.default_rng(3))[0], sound(np.random.default_rng(3))[0])


def test_whispered_speech_keeps_its_length_and_loses_its_pitch() -> None:
    from emoinv_edge.quality import measure_quality

    speech = speech_only(synthesise(3.0, 1, ANA_HZ), RATE)
    whisper = whispered(speech, np.random.default_rng(0))
    assert whisper.shape == speech.shape and whisper.dtype == np.float32
    assert measure_quality(speech, RATE).voiced_fraction > 0.5
    assert measure_quality(whisper, RATE).voiced_fraction < 0.4
    assert not whispered(speech[:300], np.random.default_rng(0)).any()
