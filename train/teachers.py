"""Teachers: encoders whose embeddings are computed once for every clip of a prepared set, and kept.

A teacher is a checkpoint of this project, one of its .onnx files, or a foreign .onnx file whose front end
is said by an `EncoderSpec` (the published ResNet34-LM takes 80 mel bins, Hamming, int16 scale: the default).

Targets are kept as one .npy a set, named after the teacher's fingerprint and what was embedded, so that a
changed teacher or set is never mistaken for another. A stopped run goes on where it was; under ``torchrun``
each rank embeds its share and rank 0 joins them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.features import log_mel, mean_normalise
from emoinv_edge.spec import EncoderSpec

from .prepare import PreparedSet

__all__ = ["PUBLIC_SPEC", "Teacher", "fused_similarity", "open_teacher", "targets_path", "teach"]

PUBLIC_SPEC = EncoderSpec(name="resnet34-lm")
LONGEST_S = 4.0  # of a clip: its middle; a speaker's voice is known by then, and time grows with length
FORMAT = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Teacher:
    """A name, what identifies the weights and front end, and how waveforms become embeddings."""

    name: str
    fingerprint: str
    embedding_dim: int
    embed: Callable[[Sequence[NDArray[np.float32]]], NDArray[np.float32]]


def open_teacher(path: Path, spec: EncoderSpec | None = None, num_threads: int = 1) -> Teacher:
    """An .onnx file or a checkpoint of this project.

    The front end of an .onnx file is what its own metadata say, else `spec`, else the JSON of an
    `EncoderSpec` beside it (``NAME.json``), else `PUBLIC_SPEC`.

    Raises
    ------
    ValueError
        If the file is missing, or its input or output does not fit the spec.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such teacher; give an .onnx file or a checkpoint")
    beside = path.with_suffix(".json")
    if spec is None and beside.is_file():
        spec = EncoderSpec.from_json(beside.read_text(encoding="utf-8"))
    return _onnx(path, spec, num_threads) if path.suffix == ".onnx" else _checkpoint(path, num_threads)


def _fingerprint(path: Path, spec: EncoderSpec) -> str:
    digest = hashlib.sha256(f"{FORMAT} {LONGEST_S} {spec.to_json()} ".encode())
    digest.update(path.read_bytes())
    return digest.hexdigest()


def _unit(embeddings: NDArray[np.floating], what: str) -> NDArray[np.float32]:
    norms = np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    if not np.isfinite(norms).all() or (norms < 1e-9).any():
        raise ValueError(f"{what} gave an embedding that is zero or not finite")
    return np.asarray(embeddings / norms, np.float32)


def _features(waveform: NDArray[np.float32], spec: EncoderSpec) -> NDArray[np.float32]:
    features = log_mel(waveform, spec)
    return mean_normalise(features) if spec.mean_normalisation else features


def _onnx(path: Path, spec: EncoderSpec | None, num_threads: int) -> Teacher:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
    try:
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class but Exception
        raise ValueError(f"{path}: onnxruntime cannot read it ({error})") from error
    text = session.get_modelmeta().custom_metadata_map.get("emoinv.spec")
    found = EncoderSpec.from_json(text) if text else spec or PUBLIC_SPEC
    source = session.get_inputs()[0]
    shape = source.shape
    fits = len(shape) == 3 and (not isinstance(shape[2], int) or shape[2] == found.num_mel_bins)
    if len(session.get_inputs()) != 1 or not fits:
        raise ValueError(f"{path}: expected one input (batch, frames, {found.num_mel_bins}), got {shape}")
    sink = session.get_outputs()[0].name

    def embed(waveforms: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        rows = [session.run([sink], {source.name: _features(wave, found)[None]})[0][0] for wave in waveforms]
        out = np.stack(rows)
        if out.shape[1:] != (found.embedding_dim,):
            raise ValueError(f"{path}: expected embeddings of {found.embedding_dim} numbers, got shape {out.shape[1:]}")
        return _unit(out, path.name)

    return Teacher(path.stem, _fingerprint(path, found), found.embedding_dim, embed)


def _checkpoint(path: Path, num_threads: int) -> Teacher:
    import torch

    from .embed import embed_waveforms
    from .model import load_checkpoint

    torch.set_num_threads(num_threads)
    model, spec, _ = load_checkpoint(path)

    def embed(waveforms: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        return embed_waveforms(model, spec, lambda i: waveforms[i], [len(wave) for wave in waveforms])

    return Teacher(path.stem, _fingerprint(path, spec), spec.embedding_dim, embed)


def _manifest_key(prepared: PreparedSet) -> str:
    digest = hashlib.sha256()
    for clip in prepared.clips:
        digest.update(f"{clip.path} {clip.start} {clip.samples}\n".encode())
    return digest.hexdigest()[:12]


def targets_path(teacher: Teacher, prepared: PreparedSet, folder: Path) -> Path:
    """Where the targets of one set lie: named by the set, the teacher and the clips."""
    return folder / f"{prepared.folder.name}-{teacher.fingerprint[:12]}-{_manifest_key(prepared)}.npy"


def middle(waveform: NDArray[np.float32], samples: int) -> NDArray[np.float32]:
    """The middle `samples` samples of a longer waveform."""
    start = max(0, (len(waveform) - samples) // 2)
    return waveform[start : start + samples]


def teach(
    teacher: Teacher,
    prepared: PreparedSet,
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    chunk: int = 64,
) -> NDArray[np.float32] | None:
    """Embed every clip of a set, or read what an earlier run kept.

    Returns
    -------
    ndarray, shape (clips, embedding_dim), float32 of unit norm; None on ranks other than 0
    """
    from .distributed import barrier, rank, share, world_size

    path = targets_path(teacher, prepared, folder)
    if path.is_file():
        return np.load(path) if rank() == 0 else None
    folder.mkdir(parents=True, exist_ok=True)
    mine = share(len(prepared.clips))
    part = path.with_suffix(f".{rank()}of{world_size()}.part")
    rows = _open_part(part, (len(mine), teacher.embedding_dim))
    missing = np.flatnonzero(np.isnan(rows[:, 0]))
    missing = missing[np.argsort([prepared.clips[mine[i]].samples for i in missing], kind="stable")]
    done = len(mine) - len(missing)
    samples = round(LONGEST_S * PUBLIC_SPEC.sample_rate)
    for first in range(0, len(missing), chunk):
        batch = missing[first : first + chunk]
        rows[batch] = teacher.embed([middle(prepared.waveform(mine[i]), samples) for i in batch])
        rows.flush()
        done += len(batch)
        progress(done, len(mine))
    barrier()
    if rank() != 0:
        return None
    whole = np.empty((len(prepared.clips), teacher.embedding_dim), np.float32)
    parts = [path.with_suffix(f".{r}of{world_size()}.part") for r in range(world_size())]
    for r, each in enumerate(parts):
        whole[r :: world_size()] = np.load(each)
    temporary = path.with_suffix(".tmp.npy")
    np.save(temporary, whole)
    os.replace(temporary, path)
    for each in parts:
        each.unlink()
    return whole


def _open_part(path: Path, shape: tuple[int, int]) -> np.memmap[tuple[int, int], np.dtype[np.float32]]:
    """A file of rows, NaN where not yet embedded; one of another shape is begun anew."""
    if path.is_file():
        try:
            rows = np.lib.format.open_memmap(path, "r+")
            if rows.shape == shape and rows.dtype == np.float32:
                return rows
        except ValueError:
            pass  # cut short while it was made
    rows = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    rows[:] = np.nan
    rows.flush()
    return rows


def fused_similarity(*embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Embeddings whose cosine is the mean of the teachers' cosines: what distilling them all can reach.

    Each input has shape (clips, its own dim); the rows are scaled to unit norm and laid side by side.
    """
    count = len(embeddings)
    if not count or len({len(each) for each in embeddings}) != 1:
        raise ValueError(f"expected embeddings of the same clips, got {[len(each) for each in embeddings]}")
    return np.concatenate([_unit(each, "a teacher") / np.float32(np.sqrt(count)) for each in embeddings], axis=1)
