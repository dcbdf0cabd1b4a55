"""Teachers: encoders whose embeddings are computed once for every clip of a prepared set, and kept.

A teacher is a checkpoint of this project, one of its .onnx files, or a foreign .onnx file with the front end
of an `EncoderSpec` (the published ResNet34-LM takes 80 mel bins, Hamming, int16 scale: the default).

Targets are kept as one .npy a set, named after the teacher's fingerprint and what was embedded, so that a
changed teacher or set is never mistaken for another. A stopped run goes on where it was; under ``torchrun``
each rank embeds its share and rank 0 joins them.

Teachers of other shapes and training err on other trials: the mean of their cosines beats each of them.
That mean is the cosine of their unit embeddings laid side by side. `fit_projection` brings the long
vector down to the first teacher's dimensions by the principal axes (which keep the cosines) and turns
it onto the first teacher's embeddings (orthogonal Procrustes: Schönemann 1966), so that an encoder
started from that teacher has little way to go.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.errors import ModelFormatError
from emoinv_edge.features import log_mel, mean_normalise
from emoinv_edge.files import write_atomically
from emoinv_edge.session import open_session
from emoinv_edge.spec import EncoderSpec

from .distributed import barrier, rank, share, world_size
from .model import ResidualEncoder, embed_waveforms, load_checkpoint
from .prepare import SAMPLE_RATE, PreparedSet
from .progress import Report, silent

__all__ = [
    "LONGEST_S",
    "PUBLIC_SPEC",
    "Teacher",
    "embed_initial",
    "fit_projection",
    "fuse",
    "fused_similarity",
    "middle",
    "open_teacher",
    "project",
    "save_rows",
    "targets_path",
    "teach",
]

PUBLIC_SPEC = EncoderSpec(name="resnet34-lm")
LONGEST_S = 4.0  # of a clip: a speaker's voice is known by then, and time grows with length
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

    The front end of an .onnx file is that of its own metadata, else `spec`, else the JSON of an
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
    try:
        session = open_session(path.read_bytes(), num_threads)
    except ModelFormatError as error:
        raise ValueError(f"{path}: {error}") from error
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
    progress: Report = silent,
    chunk: int = 64,
) -> NDArray[np.float32] | None:
    """Embed every clip of a set, or read what an earlier run kept.

    Returns
    -------
    ndarray, shape (clips, embedding_dim), float32 of unit norm; None on ranks other than 0
    """
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
    samples = round(LONGEST_S * SAMPLE_RATE)
    for first in range(0, len(missing), chunk):
        batch = missing[first : first + chunk]
        rows[batch] = teacher.embed([middle(prepared.waveform(mine[i]), samples) for i in batch])
        rows.flush()
        done += len(batch)
        progress(done, len(mine))
    barrier()
    if rank() != 0:
        return None
    return _join([path.with_suffix(f".{r}of{world_size()}.part") for r in range(world_size())], path)


def embed_initial(encoder: ResidualEncoder, spec: EncoderSpec, folder: Path, progress: Report = silent) -> None:
    """Embed the beginning of every clip of a prepared set by the initial encoder, into ``public.npy`` beside it."""
    clips = PreparedSet(folder)
    mine = share(len(clips.clips))
    longest = round(LONGEST_S * SAMPLE_RATE)
    embeddings = embed_waveforms(
        encoder,
        spec,
        lambda i: clips.waveform(mine[i])[:longest],
        [min(clips.clips[i].samples, longest) for i in mine],
        progress,
    )
    parts = [folder / f"public.{r}of{world_size()}.part.npy" for r in range(world_size())]
    np.save(parts[rank()], embeddings)
    barrier()
    if rank() == 0:
        _join(parts, folder / "public.npy")
    barrier()


def save_rows(path: Path, rows: NDArray[np.float32]) -> None:
    """Write an .npy file atomically."""
    content = io.BytesIO()
    np.save(content, rows)
    write_atomically(path, content.getvalue(), 0o666)


def _join(parts: Sequence[Path], path: Path) -> NDArray[np.float32]:
    """The rows of all ranks, in the order of the clips, into one file; the parts go."""
    of_rank = [np.load(part) for part in parts]
    rows = np.empty((sum(map(len, of_rank)), of_rank[0].shape[1]), np.float32)
    for number, each in enumerate(of_rank):
        rows[number :: len(parts)] = each
    save_rows(path, rows)
    for part in parts:
        part.unlink()
    return rows


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


def fit_projection(first: NDArray[np.float32], *others: NDArray[np.float32]) -> NDArray[np.float32]:
    """The projection from `fused_similarity` of the teachers to the first one's space.

    Parameters
    ----------
    first, others : ndarray, shape (clips, each its own dim)
        Embeddings of the same clips.

    Returns
    -------
    ndarray, shape (sum of the dims, first dim), orthonormal columns

    Raises
    ------
    ValueError
        If there are fewer clips than the first teacher has dimensions: its axes would be undetermined.
    """
    clips, dim = first.shape
    if clips < dim:
        raise ValueError(f"expected at least {dim} clips to fit a projection to {dim} dimensions, got {clips}")
    together = fused_similarity(first, *others).astype(np.float64)
    _, axes = np.linalg.eigh(together.T @ together)
    axes = axes[:, ::-1][:, :dim]
    left, _, right = np.linalg.svd((together @ axes).T @ first.astype(np.float64))
    return np.asarray(axes @ (left @ right), np.float32)


def project(projection: NDArray[np.float32], *embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Targets of unit norm, shape (clips, dim), of the teachers' embeddings in the order of the fit."""
    targets = fused_similarity(*embeddings) @ projection
    return np.asarray(targets / np.maximum(np.linalg.norm(targets, axis=1, keepdims=True), 1e-9), np.float32)


def fuse(folders: Sequence[Path], others: Sequence[Teacher]) -> NDArray[np.float32]:
    """Write ``fused.npy`` beside each taught set: the joint target of the initial encoder and `others`.

    Raises
    ------
    ValueError
        If a set was not taught by the initial encoder, or not by one of the others.
    """
    taught = []
    for folder in folders:
        paths = [folder / "public.npy", *(targets_path(o, PreparedSet(folder), folder / "teachers") for o in others)]
        for path in paths:
            if not path.is_file():
                raise ValueError(f"{path} is missing; make it with `python -m train teach START SET --beside TEACHER`")
        taught.append([np.load(path) for path in paths])
    projection = fit_projection(*(np.concatenate(each) for each in zip(*taught, strict=True)))
    for folder, embeddings in zip(folders, taught, strict=True):
        save_rows(folder / "fused.npy", project(projection, *embeddings))
    return projection
