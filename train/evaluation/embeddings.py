"""Embeddings of a set's clips, whole or as the runtime hears them, remembered on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.encoder import Embedding, Encoder
from emoinv_edge.quality import SpeechQuality
from emoinv_edge.utterance import hear

from .clips import EvaluationSet

__all__ = ["EmbeddingCache", "Heard", "Model", "default_cache", "embed_set", "hear_set", "open_model", "unit"]

CACHE_FORMAT = 2  # vectors as the model gives them; in format 1 some were of unit norm
Progress = Callable[[int, int], None]


def _silent(done: int, total: int) -> None:
    pass


def unit(embeddings: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows scaled to unit norm."""
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or (norms < 1e-9).any():
        bad = np.flatnonzero(~np.isfinite(norms[:, 0]) | (norms[:, 0] < 1e-9))
        raise ValueError(f"{len(bad)} of {len(norms)} embeddings are zero or not finite, the first is row {bad[0]}")
    return np.asarray(embeddings / norms, np.float32)


class EmbeddingCache:
    """Embeddings on disk, keyed by the model's fingerprint and each clip's samples.

    One append-only file a model (and rank), of records hash and float32 vector; a record cut short by a
    stopped process is dropped on the next opening.
    """

    def __init__(self, folder: Path, fingerprint: str, embedding_dim: int, rank: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{fingerprint[:24]}-{embedding_dim}-v{CACHE_FORMAT}"
        self._dim = embedding_dim
        self._known: dict[bytes, NDArray[np.float32]] = {}
        self.path = folder / f"{stem}-rank{rank}.bin"
        record = 16 + 4 * embedding_dim
        for path in sorted(folder.glob(f"{stem}-rank*.bin")):
            data = path.read_bytes()
            whole = len(data) // record * record
            if whole < len(data) and path == self.path:
                with open(path, "r+b") as file:
                    file.truncate(whole)
            for start in range(0, whole, record):
                key = data[start : start + 16]
                self._known[key] = np.frombuffer(data, "<f4", embedding_dim, start + 16).astype(np.float32)
        self._file = open(self.path, "ab")  # noqa: SIM115 - closed by close()

    @staticmethod
    def key(waveform: NDArray[np.float32]) -> bytes:
        """The hash of a clip's samples."""
        return hashlib.sha256(np.ascontiguousarray(waveform, "<f4").tobytes()).digest()[:16]

    def get(self, key: bytes) -> NDArray[np.float32] | None:
        """The embedding of a clip, or None."""
        return self._known.get(key)

    def put(self, key: bytes, embedding: NDArray[np.float32]) -> None:
        """Remember an embedding; it is on disk when this returns."""
        vector = np.ascontiguousarray(embedding, "<f4")
        if vector.shape != (self._dim,) or not np.isfinite(vector).all():
            raise ValueError(f"expected a finite embedding of shape ({self._dim},), got shape {vector.shape}")
        self._file.write(key + vector.tobytes())
        self._file.flush()
        self._known[key] = vector.astype(np.float32)

    def __len__(self) -> int:
        return len(self._known)

    def close(self) -> None:
        """Close the file; what is in memory can still be read."""
        self._file.close()

    def __enter__(self) -> EmbeddingCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def default_cache() -> Path:
    """The folder for embeddings that were computed before."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emoinv-edge" / "embeddings"


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    """Something that embeds: a name, what identifies it, and a function from waveform to embedding, of any norm."""

    name: str
    fingerprint: str
    embedding_dim: int
    embed: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    encoder: Encoder | None = None  # where the model is one of this project's files


def open_model(path: Path, num_threads: int = 1) -> Model:
    """A model file of this project."""
    encoder = Encoder(path, num_threads)
    rate = encoder.spec.sample_rate

    def embed(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        found = encoder.embed(waveform, rate)
        return found.vector * np.float32(found.norm)

    return Model(path.name, encoder.fingerprint, encoder.spec.embedding_dim, embed, encoder)


def _embed(model: Model, cache: EmbeddingCache | None, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """The embedding of one waveform, of any norm, from the cache where it is known."""
    if cache is None:
        return model.embed(waveform)
    key = EmbeddingCache.key(waveform)
    known = cache.get(key)
    if known is None:
        known = model.embed(waveform)
        cache.put(key, known)
    return known


def embed_set(
    model: Model,
    evaluation: EvaluationSet,
    cache: EmbeddingCache | None = None,
    progress: Progress = _silent,
    indices: Sequence[int] | None = None,
) -> NDArray[np.float32]:
    """Embed the clips of a set whole, or those at `indices`, taking from the cache what it holds.

    Returns
    -------
    ndarray, shape (clips, embedding_dim), float32 of unit norm

    Raises
    ------
    ValueError
        If a clip cannot be read or embedded; the message names it.
    """
    chosen = range(len(evaluation.clips)) if indices is None else indices
    out = np.empty((len(chosen), model.embedding_dim), np.float32)
    for row, index in enumerate(chosen):
        try:
            out[row] = _embed(model, cache, evaluation.waveform(index))
        except Exception as error:
            name = getattr(evaluation.clips[index], "path", index)
            raise ValueError(f"{evaluation.name}, clip {name}: {error}") from error
        progress(row + 1, len(chosen))
    return unit(out)


@dataclasses.dataclass(frozen=True, slots=True)
class Heard:
    """A clip as the runtime hears it: the quality of its speech, and its embedding, of unit norm."""

    quality: SpeechQuality
    embedding: NDArray[np.float32]


class _Remembering:
    """An `emoinv_edge.utterance.Embedder` whose embeddings are kept in a cache."""

    input = "waveform"

    def __init__(self, model: Model, encoder: Encoder, cache: EmbeddingCache | None) -> None:
        self.spec, self.embed_features = encoder.spec, encoder.embed_features
        self._model, self._cache = model, cache

    def embed(self, waveform: NDArray[np.float32], sample_rate: int) -> Embedding:
        found = _embed(self._model, self._cache, waveform)
        norm = float(np.linalg.norm(found.astype(np.float64)))
        return Embedding((found / norm).astype(np.float32), norm)


def hear_set(
    model: Model, evaluation: EvaluationSet, cache: EmbeddingCache | None = None, progress: Progress = _silent
) -> list[Heard | None]:
    """Every clip of a set by the runtime's own path: pauses cut out, quality measured, embedded; None if refused.

    Raises
    ------
    ValueError
        If the model is no file of this project.
    """
    if model.encoder is None:
        raise ValueError(f"{model.name}: expected a model file; a checkpoint has no runtime path")
    encoder, rate = _Remembering(model, model.encoder, cache), model.encoder.spec.sample_rate
    out: list[Heard | None] = []
    for index in range(len(evaluation.clips)):
        heard = hear(encoder, evaluation.waveform(index), rate)
        if heard.quality is None or heard.embedding is None:
            out.append(None)
        else:
            out.append(Heard(heard.quality, heard.embedding.vector))
        progress(index + 1, len(evaluation.clips))
    return out
