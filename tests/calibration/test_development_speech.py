"""Development speech is heard as the runtime hears it, and in the same noise whatever else is measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emoinv_edge.encoder import Encoder
from emoinv_edge.utterance import hear
from tests.builders import RATE, synthesise
from tests.calibration.development import in_noise, speech
from train.calibration.speech import join, measure, pink_noise, without_copies
from train.prepare import PreparedSet, write_set


def prepared(folder: Path, corpus: str, waves: list[np.ndarray]) -> PreparedSet:
    with write_set(folder / corpus) as add:
        for k, wave in enumerate(waves):
            add((corpus, f"{corpus}-{k}", "female", "neutral", ""), np.rint(wave * 32767).astype(np.int16), f"{k}.wav")
    return PreparedSet(folder / corpus)


def test_training_hears_exactly_what_the_runtime_hears(tmp_path: Path, tiny_encoder: Encoder) -> None:
    loud = np.clip(8.0 * synthesise(2.0, 3), -1.0, 1.0)
    waves = [synthesise(2.0, 1), synthesise(0.4, 2), loud, np.zeros(RATE, np.float32), synthesise(3.0, 4, 200.0)]
    clips = prepared(tmp_path, "mixed", waves)
    found = measure(tiny_encoder, [clips])
    heard = [hear(tiny_encoder, clips.waveform(i), RATE) for i in range(len(waves))]
    usable = [each for each in heard if each.refusal is None]
    assert {each.refusal.code for each in heard if each.refusal} == {"too_short", "clipped", "silent"}
    assert [clip.speaker for clip in found.clips] == ["mixed-0", "mixed-4"]
    assert found.qualities == [each.quality for each in usable]
    assert np.array_equal(found.embeddings, [each.embedding for each in usable])


def test_speech_without_a_usable_clip_is_refused(tmp_path: Path, tiny_encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="no usable clip"):
        measure(tiny_encoder, [prepared(tmp_path, "short", [synthesise(0.4, 1)])])


def test_measured_noise_is_the_same_whatever_else_is_measured(tmp_path: Path, tiny_encoder: Encoder) -> None:
    sets = [prepared(tmp_path, corpus, [synthesise(2.0, k, 150.0 + 20 * k)]) for corpus, k in (("one", 1), ("two", 2))]
    noises = (pink_noise(4.0, RATE), pink_noise(4.0, RATE, seed=1))
    both = measure(tiny_encoder, sets, noises=noises)
    assert both.copies() == {1: 0, 3: 2}
    alone = measure(tiny_encoder, sets[1:], noises=noises)
    assert np.array_equal(alone.embeddings, both.embeddings[2:])
    assert alone.copies() == {1: 0}
    for own, copy in ((0, 1), (2, 3)):
        assert both.clips[own] == both.clips[copy]
        assert both.qualities[copy].level_dbfs > both.qualities[own].level_dbfs  # by the noise
        assert 0.0 < both.embeddings[copy] @ both.embeddings[own] < 0.999
    assert measure(tiny_encoder, sets).copies() == {}


def test_parts_join_with_their_copies_and_come_apart_without() -> None:
    plain = speech(0, 2, corpora=1)
    both = join([plain, in_noise(plain)])
    count = len(plain.clips)
    assert both.copies() == {2 * count + i: count + i for i in range(count)}
    assert np.array_equal(without_copies(both).embeddings, np.concatenate((plain.embeddings, plain.embeddings)))


def test_pink_noise_falls_by_three_db_an_octave() -> None:
    noise = pink_noise(20.0, RATE)
    assert noise.dtype == np.float32 and np.sqrt(np.mean(noise**2)) == pytest.approx(0.1, rel=1e-3)
    power = np.abs(np.fft.rfft(noise)) ** 2
    octaves = [10 * np.log10(power[20 * hz : 40 * hz].mean()) for hz in (50, 100, 200, 400, 800, 1600, 3200)]
    assert np.diff(octaves) == pytest.approx(np.full(6, -3.0), abs=0.5)
