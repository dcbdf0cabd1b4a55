"""Embeddings of a set: remembered on disk, and heard as the runtime hears them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from emoinv_edge.encoder import Encoder
from emoinv_edge.utterance import hear
from tests.builders import RATE, synthesise
from tests.evaluation.population import Clip
from train.evaluation.clips import EvaluationSet
from train.evaluation.embeddings import EmbeddingCache, Model, hear_set, open_model


def vector(seed, dim=4):
    return np.random.default_rng(seed).normal(size=dim).astype(np.float32)


def test_cache_gives_back_what_was_put_after_reopening(tmp_path):
    wave = vector(0, 100)
    key = EmbeddingCache.key(wave)
    with EmbeddingCache(tmp_path, "f" * 64, 4) as cache:
        assert cache.get(key) is None
        cache.put(key, vector(1))
    with EmbeddingCache(tmp_path, "f" * 64, 4) as cache:
        assert np.array_equal(cache.get(key), vector(1))
        assert cache.get(EmbeddingCache.key(wave + np.float32(1e-6))) is None
    with EmbeddingCache(tmp_path, "e" * 64, 4) as cache:
        assert len(cache) == 0  # another model


def test_cache_drops_a_record_that_a_stopped_process_left_unfinished(tmp_path):
    with EmbeddingCache(tmp_path, "f" * 64, 4) as cache:
        for seed in range(3):
            cache.put(EmbeddingCache.key(vector(seed)), vector(seed))
        path = cache.path
    for cut in (1, 16, 31):
        data = path.read_bytes()
        path.write_bytes(data[:-cut])
        with EmbeddingCache(tmp_path, "f" * 64, 4) as cache:
            assert len(cache) == 2
            cache.put(EmbeddingCache.key(vector(2)), vector(2))
        with EmbeddingCache(tmp_path, "f" * 64, 4) as cache:
            assert np.array_equal(cache.get(EmbeddingCache.key(vector(2))), vector(2))


def test_ranks_write_their_own_file_and_read_all(tmp_path):
    for rank in (0, 1):
        with EmbeddingCache(tmp_path, "f" * 64, 4, rank) as cache:
            cache.put(EmbeddingCache.key(vector(rank)), vector(rank))
    with EmbeddingCache(tmp_path, "f" * 64, 4) as cache:
        assert len(cache) == 2


def test_cache_refuses_what_is_no_embedding(tmp_path):
    with EmbeddingCache(tmp_path, "f" * 64, 4) as cache:
        for bad in (np.full(4, np.nan, np.float32), np.zeros(5, np.float32)):
            with pytest.raises(ValueError, match="expected a finite embedding of shape"):
                cache.put(b"k" * 16, bad)


def recordings():
    """A voice, silence, and a click too short to judge."""
    waves = [synthesise(2.0, 1), np.zeros(RATE, np.float32), synthesise(0.3, 2), synthesise(2.5, 3, 200.0)]
    return EvaluationSet("three", [Clip(f"s{k}") for k in range(len(waves))], waves.__getitem__)


@pytest.mark.parametrize("cached", [False, True])
def test_evaluation_hears_what_the_runtime_hears(tiny_encoder_path, tmp_path, cached):
    model, encoder = open_model(tiny_encoder_path), Encoder(tiny_encoder_path)
    evaluation = recordings()
    cache = EmbeddingCache(tmp_path, model.fingerprint, model.embedding_dim) if cached else None
    for _ in range(2):  # the second time from the cache
        found = hear_set(model, evaluation, cache)
        assert [each is None for each in found] == [False, True, True, False]
        for index, each in enumerate(found):
            expected = hear(encoder, evaluation.waveform(index), RATE)
            assert (expected.refusal is None) == (each is not None)
            if each is not None:
                assert each.embedding == pytest.approx(np.asarray(expected.embedding), abs=1e-6)
                norm = each.quality.log_embedding_norm
                assert norm == pytest.approx(expected.quality.log_embedding_norm, abs=1e-6)
                assert each.quality == dataclasses.replace(expected.quality, log_embedding_norm=norm)
    if cache is not None:
        cache.close()
        assert len(cache) == 2


def test_a_model_that_is_no_file_of_this_project_has_no_runtime_path():
    model = Model("peer", "f" * 64, 4, lambda waveform: vector(0))
    with pytest.raises(ValueError, match="expected a model file"):
        hear_set(model, recordings())
