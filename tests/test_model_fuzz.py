"""Damaged model files: 2,000 of them, each refused with a ModelFormatError and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from emoinv_edge.encoder import Encoder
from emoinv_edge.errors import ModelFormatError
from emoinv_edge.model_file import DIGEST_KEY, check_digest, seal, sealed_body
from export.chain import write_model

MUTANTS = 2000

Mutation = Callable[[bytearray, np.random.Generator], bytes]


def _span(content: bytearray, rng: np.random.Generator) -> tuple[int, int]:
    first = int(rng.integers(len(content)))
    return first, min(len(content), first + 1 + int(rng.integers(64)))


def _flip_bit(content: bytearray, rng: np.random.Generator) -> bytes:
    content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    return bytes(content)


def _overwrite(content: bytearray, rng: np.random.Generator) -> bytes:
    first, last = _span(content, rng)
    content[first:last] = rng.bytes(last - first)
    return bytes(content)


def _zero(content: bytearray, rng: np.random.Generator) -> bytes:
    first, last = _span(content, rng)
    content[first:last] = bytes(last - first)
    return bytes(content)


def _cut(content: bytearray, rng: np.random.Generator) -> bytes:
    return bytes(content[: int(rng.integers(len(content)))])


def _cut_near_the_end(content: bytearray, rng: np.random.Generator) -> bytes:
    return bytes(content[: len(content) - 1 - int(rng.integers(200))])


def _drop(content: bytearray, rng: np.random.Generator) -> bytes:
    first, last = _span(content, rng)
    del content[first:last]
    return bytes(content)


def _insert(content: bytearray, rng: np.random.Generator) -> bytes:
    first, _ = _span(content, rng)
    content[first:first] = rng.bytes(1 + int(rng.integers(64)))
    return bytes(content)


def _append(content: bytearray, rng: np.random.Generator) -> bytes:
    return bytes(content) + rng.bytes(1 + int(rng.integers(100)))


def _repeat(content: bytearray, rng: np.random.Generator) -> bytes:
    first, last = _span(content, rng)
    content[last:last] = content[first:last]
    return bytes(content)


def _near_the_end(content: bytearray, rng: np.random.Generator) -> bytes:
    content[len(content) - 1 - int(rng.integers(100))] ^= 1 << int(rng.integers(8))
    return bytes(content)


def _in_a_key(content: bytearray, rng: np.random.Generator) -> bytes:
    places = [i for i in range(len(content)) if content[i : i + 7] == b"emoinv."]
    content[places[int(rng.integers(len(places)))] + int(rng.integers(18))] ^= 1 << int(rng.integers(8))
    return bytes(content)


MUTATIONS: tuple[Mutation, ...] = (
    _flip_bit, _overwrite, _zero, _cut, _cut_near_the_end, _drop, _insert, _append, _repeat, _near_the_end, _in_a_key,
)  # fmt: skip


@pytest.fixture(scope="module")
def sealed(tiny_encoder_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    graph = onnx.load(tiny_encoder_path)
    spec = next(entry.value for entry in graph.metadata_props if entry.key == "emoinv.spec")
    path = tmp_path_factory.mktemp("sealed") / "tiny.onnx"
    write_model(path, graph, {"emoinv.spec": spec, "emoinv.provenance": {"format": 1, "sealed": True}})
    return path


def test_a_sealed_file_loads_as_sealed(sealed: Path, tiny_encoder: Encoder) -> None:
    encoder = Encoder(sealed)
    features = np.random.default_rng(0).standard_normal((50, 80)).astype(np.float32)
    assert np.array_equal(encoder.embed_features(features), tiny_encoder.embed_features(features))
    sha256, is_sealed = check_digest(sealed.read_bytes(), sealed)
    assert is_sealed and encoder.file_sha256 == sha256
    assert len(encoder.metadata[DIGEST_KEY]) == 64


def test_2000_damaged_files_are_refused(sealed: Path, tmp_path: Path) -> None:
    content = sealed.read_bytes()
    path = tmp_path / "damaged.onnx"
    accepted = []
    for seed in range(MUTANTS):
        rng = np.random.default_rng(seed)
        mutation = MUTATIONS[seed % len(MUTATIONS)]
        damaged = mutation(bytearray(content), rng)
        if damaged == content:  # zeroes written over zeroes
            continue
        path.write_bytes(damaged)
        try:
            Encoder(path)
        except ModelFormatError as error:
            assert str(path) in str(error)
        else:
            accepted.append((seed, mutation.__name__))
    assert accepted == []


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.onnx"
    path.write_bytes(b"")
    with pytest.raises(ModelFormatError, match="0 bytes"):
        Encoder(path)


def test_a_changed_weight_is_found_by_its_digest(sealed: Path, tmp_path: Path) -> None:
    content = bytearray(sealed.read_bytes())
    content[len(content) // 3] ^= 0x40
    path = tmp_path / "changed.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFormatError, match=r"SHA-256 .* expected .* damaged"):
        Encoder(path)


def test_a_file_without_its_digest_is_refused(sealed: Path, tmp_path: Path) -> None:
    body = sealed_body(sealed.read_bytes())
    assert body is not None and seal(body) == sealed.read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(body)
    with pytest.raises(ModelFormatError, match=rf"'emoinv\.digest' at the end .* got {len(body)} bytes"):
        Encoder(path)


def test_a_digest_before_the_end_is_refused(sealed: Path, tmp_path: Path) -> None:
    path = tmp_path / "more.onnx"
    path.write_bytes(sealed.read_bytes() + b"\x72\x04\x0a\x01a\x12")  # one more metadata entry, well formed or not
    with pytest.raises(ModelFormatError):
        Encoder(path)
    path.write_bytes(sealed.read_bytes() + b"\x72\x06\x0a\x01a\x12\x01b")
    with pytest.raises(ModelFormatError, match="something was added"):
        Encoder(path)
