"""Compression: the int8 file answers as the encoder that it was made from would."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from export.chain import quantise
from export.quantise import Scheme
from export.speech import Portion
from tests.training import TINY_SPEC, tiny_encoder
from train.compress import StageTeacher, answers


def crops(count=8, frames=96, seed=0):
    noise = np.random.default_rng(seed).normal(size=(count, frames, 80)).astype(np.float32)
    return noise - noise.mean(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def int8_file(tmp_path_factory):
    portion = Portion(crops(), ("toy",) * 8, ("a",) * 8, ("neutral",) * 8)
    path = tmp_path_factory.mktemp("teacher") / "int8.onnx"
    onnx.save(quantise(tiny_encoder(), TINY_SPEC, portion, Scheme(), correct_clips=4), path)
    return path


def test_the_int8_file_gives_the_stages_and_the_embedding_of_its_encoder(int8_file):
    large, features = tiny_encoder(), crops(4, seed=3)
    found = answers(StageTeacher(int8_file, (1, 2))(features), large)
    with torch.no_grad():
        stages = large.outputs(torch.from_numpy(features))
        embedding = large.pool(stages[-1])
    assert set(found.stages) == {1, 2}
    for number, values in found.stages.items():
        difference = (values - stages[number]).square().mean() / stages[number].square().mean()
        assert values.shape == stages[number].shape and difference < 0.01
    assert torch.cosine_similarity(found.embedding, embedding, dim=1).min() > 0.98


def test_a_batch_without_answers_gets_those_of_the_encoder_itself():
    large, features = tiny_encoder(), torch.from_numpy(crops(2))
    found = answers({"features": features * 0.5, "clean": features}, large)
    assert set(found.stages) == {0, 1, 2}
    with torch.no_grad():
        assert torch.allclose(found.embedding, large(features), atol=1e-5)


def test_a_file_without_int8_stages_is_refused(int8_file):
    with pytest.raises(ValueError, match=r"no stage 6 in int8; expected a file of `python -m export`"):
        StageTeacher(int8_file, (5,))(crops(1))
