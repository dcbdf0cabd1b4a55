"""Encoder: one ONNX file -> session, spec, fingerprint -> unit-norm speaker embeddings.

The file is the model: its weights, its `EncoderSpec`, its calibration and its provenance travel
in it, and the spec is checked against the graph before anything runs.

Two flavours of graph are read:

- input ``features`` (batch, frames, num_mel_bins): this library computes the log-mels, with the
  mean over frames removed where the spec asks for it;
- input ``waveform`` (batch, samples): the graph holds its own front end.

Both give ``embedding`` (batch, embedding_dim), not yet of unit norm, and may give ``windows`` (rows, embedding_dim).
"""

from __future__ import annotations

import ctypes
import importlib.resources
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .audio import to_mono
from .calibration import Calibration
from .embedding import Embedding, combine, windows_of
from .errors import AudioError, EmoinvError, ModelFormatError, ModelMismatchError
from .features import log_mel, mean_normalise
from .fields import read_json
from .files import read_regular
from .forks import FORKS
from .guards import Guards
from .model_file import DIGEST_KEY, check_digest
from .model_graph import check_graph, fingerprint_of
from .session import open_session, run_outputs
from .spec import EncoderSpec

__all__ = ["LONGEST_S", "MIN_FRAMES", "MODEL_NAMES", "Embedding", "Encoder", "combine"]

MODEL_NAMES = ("base", "small", "large")

# Less than this holds no dynamics at all (one frame minus its own mean is zero), and an embedding
# of nothing would still look like one. How much speech a decision needs is the verifier's matter.
MIN_FRAMES = 10
# The memory of an inference on more than this is given back to the system after it; shorter ones come again soon.
LONG_S = 8.0
# One inference sees no more speech than this; of longer speech every window of at most WINDOW_S is embedded.
LONGEST_S = 30.0
WINDOW_S = 10.0

# Every key that this version understands. A key of ours that is not here was written by another
# version and might change what the embedding means, so it is refused; foreign keys are ignored.
_PREFIX = "emoinv."
_SPEC = "emoinv.spec"
_CALIBRATION = "emoinv.calibration"
_GUARDS = "emoinv.guards"
_PROVENANCE = "emoinv.provenance"
MAX_FILE_BYTES = 256 << 20
MAX_METADATA_CHARACTERS = 1 << 20  # of one value
_KEYS = frozenset({_SPEC, _CALIBRATION, _GUARDS, _PROVENANCE, "emoinv.golden", "emoinv.cohort", DIGEST_KEY})


class Encoder:
    """A speaker encoder: speech in, one embedding of unit norm out.

    Immutable, keeps nothing between calls, and may be shared between threads.

    Parameters
    ----------
    path : str or path-like
        An ``.onnx`` file made by ``python -m export``.
    num_threads : int
        Threads of one inference. One is the right number on small devices, and where several
        threads share the encoder. With more, an encoder cannot be used in a process forked from the one that opened
        it: open it there.

    Raises
    ------
    ModelFormatError
        If the file is missing, truncated or foreign, was written for another version, or its
        graph disagrees with its spec.

    Examples
    --------
    >>> encoder = Encoder.default()                      # doctest: +SKIP
    >>> encoder.embed(waveform, sample_rate).vector      # doctest: +SKIP
    array([...], dtype=float32)
    """

    def __init__(self, path: str | os.PathLike[str], num_threads: int = 1) -> None:
        if isinstance(num_threads, bool) or not isinstance(num_threads, int):
            raise TypeError(f"expected num_threads as an int, got {num_threads!r}; pass 1 or more")
        if num_threads < 1:
            raise ValueError(f"expected num_threads of 1 or more, got {num_threads}; pass 1 for one core")
        self._path = Path(path)
        self._opened_as: str | Path = self._path.absolute()
        self._num_threads = num_threads
        try:
            content = read_regular(self._path, MAX_FILE_BYTES)
        except FileNotFoundError:
            names = ", ".join(MODEL_NAMES)
            raise ModelFormatError(
                f"{self._path}: no such model file; check the path (only {names} are opened by name)"
            ) from None
        except OSError as error:
            raise ModelFormatError(f"{self._path}: the model file cannot be read ({error})") from error
        self._num_bytes = len(content)
        # The hash and the session see the same bytes, whatever happens to the file meanwhile.
        self._generation, self._num_threads = FORKS.generation, num_threads
        self._file_sha256, sealed = check_digest(content, self._path)
        try:
            check_graph(content)
            self._session = open_session(content, num_threads)
        except EmoinvError as error:
            raise type(error)(f"{self._path}: {error}") from error
        self._metadata = _read_metadata(self._session, self._path)
        if not sealed and _should_be_sealed(self._metadata):
            raise ModelFormatError(
                f"{self._path}: expected {DIGEST_KEY!r} at the end of the file, got {len(content)} bytes that do not "
                "end with it; the file was cut, or something was added: copy it again"
            )
        self._calibration: Calibration | None = None
        try:
            self._spec = EncoderSpec.from_json(json.dumps(self._metadata[_SPEC]))
            if _CALIBRATION in self._metadata:
                self._calibration = Calibration.from_json(json.dumps(self._metadata[_CALIBRATION]))
                axis = self._calibration.emotion_axis
                if axis is not None and axis.dim != self._spec.embedding_dim:
                    raise ModelFormatError(
                        f"calibration: expected an emotion axis of {self._spec.embedding_dim} numbers, got "
                        f"{axis.dim}; it belongs to another model, calibrate again"
                    )
            self._guards = Guards.of_metadata(self._metadata.get(_GUARDS), self._spec.embedding_dim)
        except ModelFormatError as error:
            raise ModelFormatError(f"{self._path}: {error}") from error
        self._input, self._outputs = _check_graph(self._session, self._spec, self._path)
        self._fingerprint = fingerprint_of(content, self._spec)

    @classmethod
    def default(cls, num_threads: int = 1) -> Encoder:
        """The encoder shipped with the library (``base``)."""
        return cls.open("base", num_threads)

    @classmethod
    def open(cls, name_or_path: str | os.PathLike[str], num_threads: int = 1) -> Encoder:
        """One of the encoders shipped with the library, by its name, or one in a file.

        Parameters
        ----------
        name_or_path : "base", "small", "large", or path
            ``large`` takes nearly twice ``base``'s time and errs less, on short and accented speech above all;
            ``small`` takes a quarter of it and errs more (the model card has the figures). Anything else is the path
            of an ``.onnx`` file.
        num_threads : int
            As for `Encoder`.

        Raises
        ------
        ModelFormatError
            If this installation holds no file for the name, or as for `Encoder`.
        """
        if name_or_path not in MODEL_NAMES:
            return cls(name_or_path, num_threads)
        folder = importlib.resources.files("emoinv_edge") / "models"
        resource = folder / f"{name_or_path}.onnx"
        if not resource.is_file():
            held = [other for other in MODEL_NAMES if (folder / f"{other}.onnx").is_file()]
            cure = f"it holds {', '.join(held)}: use that" if held else "install emoinv-edge again from its wheel"
            raise ModelFormatError(
                f"this version of emoinv-edge comes without the model {name_or_path!r}; {cure}, "
                "or open a file of your own"
            )
        with importlib.resources.as_file(resource) as path:
            encoder = cls(path, num_threads)
        encoder._opened_as = str(name_or_path)  # from a zip the path was that of a copy, and is gone
        return encoder

    load = open

    @property
    def path(self) -> Path:
        """The file that the encoder was read from; from inside a zip, where a copy of it was for a moment."""
        return self._path

    @property
    def num_bytes(self) -> int:
        """Size of that file."""
        return self._num_bytes

    @property
    def input(self) -> str:
        """What the graph takes: ``"features"``, or ``"waveform"`` where it holds its own front end."""
        return self._input

    @property
    def spec(self) -> EncoderSpec:
        """Front end and embedding size, from the model file."""
        return self._spec

    @property
    def fingerprint(self) -> str:
        """What embeddings and profiles are bound to, in hexadecimal.

        SHA-256 of what makes the embedding: graph, weights and spec. Nothing that the file claims of itself is in it,
        and a file whose scores were calibrated anew has the same: profiles stay good.
        """
        return self._fingerprint

    @property
    def file_sha256(self) -> str:
        """SHA-256 of the model file, calibration and all, in hexadecimal."""
        return self._file_sha256

    @property
    def calibration(self) -> Calibration | None:
        """How scores of this model become log-likelihood ratios, or None if the file holds none."""
        return self._calibration

    @property
    def guards(self) -> Guards | None:
        """What the model knows of voices that are none, and of two voices in one; None if the file holds nothing."""
        return self._guards

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The model file's ``emoinv.*`` values, parsed from JSON and read-only."""
        return self._metadata

    def __repr__(self) -> str:
        return f"Encoder({str(self._path)!r}, name={self._spec.name!r}, fingerprint={self._fingerprint[:12]!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its name or path, and the file's hash: the other process opens the same file again."""
        return _reopened, (type(self), self._opened_as, self._num_threads, self._file_sha256)

    def embed(self, waveform: NDArray[Any], sample_rate: int) -> Embedding:
        """The embedding of one stretch of speech.

        Parameters
        ----------
        waveform : ndarray, shape (samples,) or (samples, channels), int16, int32, float32 or float64
            Speech of one person, as `emoinv_edge.audio.to_mono` takes it. Silence in it is not
            removed (see `emoinv_edge.vad.speech_only`). Of more than 30 s, windows of at most 10 s
            are embedded, and the result is their mean.
        sample_rate : int
            8000 to 192000 Hz; resampled to the model's rate where it differs.

        Raises
        ------
        TypeError, AudioError
            If the waveform cannot be used, or is shorter than `MIN_FRAMES` analysis frames (115 ms).
        EmoinvError
            If the model gives no usable embedding (not finite, or zero).
        """
        mono = to_mono(waveform, sample_rate, self._spec.sample_rate)
        minimum = self._spec.frame_length + (MIN_FRAMES - 1) * self._spec.frame_shift
        rate = self._spec.sample_rate
        if len(mono) < minimum:
            raise AudioError(
                f"expected at least {minimum} samples at {rate} Hz ({1000 * minimum / rate:g} ms), "
                f"got {len(mono)} ({1000 * len(mono) / rate:g} ms); record longer speech, ideally 3 s or more"
            )
        if len(mono) > LONGEST_S * rate:
            parts = [mono[window] for window in windows_of(len(mono), round(WINDOW_S * rate))]
            return combine([self.embed(part, rate) for part in parts], [len(part) for part in parts])
        if self._input == "waveform":
            return self._run(mono[np.newaxis], len(mono) / rate)
        return self.embed_features(log_mel(mono, self._spec))

    def embed_features(self, features: NDArray[np.float32]) -> Embedding:
        """The embedding of log-mel features that were computed before, e.g. by a `LogMelStream`.

        Parameters
        ----------
        features : ndarray, shape (frames, num_mel_bins), float32
            From `log_mel` with this encoder's spec; at least `MIN_FRAMES` frames. The mean over frames is
            removed here where the spec asks for it. Of more than 30 s, windows are embedded, as by `embed`.

        Raises
        ------
        TypeError, ValueError
            If `features` has another dtype or shape, or the model takes waveforms only.
        AudioError
            If a feature is not finite.
        EmoinvError
            If the model gives no usable embedding.
        """
        if self._input == "waveform":
            raise ValueError(f"{self._path}: this model computes its own features; call embed with the waveform")
        if not isinstance(features, np.ndarray) or features.dtype != np.float32:
            got = features.dtype if isinstance(features, np.ndarray) else type(features).__name__
            raise TypeError(f"expected a float32 array, got {got}; compute it with emoinv_edge.log_mel")
        bins = self._spec.num_mel_bins
        if features.ndim != 2 or features.shape[1] != bins or features.shape[0] < MIN_FRAMES:
            raise ValueError(
                f"expected shape (frames, {bins}) with at least {MIN_FRAMES} frames, got {features.shape}; "
                "compute the features with emoinv_edge.log_mel and this encoder's spec"
            )
        if not np.isfinite(features).all():
            raise AudioError("expected finite features, got NaN or infinite ones; check the waveform behind them")
        a_second = 1000.0 / self._spec.frame_shift_ms
        if len(features) > LONGEST_S * a_second:
            parts = [features[window] for window in windows_of(len(features), round(WINDOW_S * a_second))]
            return combine([self.embed_features(part) for part in parts], [len(part) for part in parts])
        if self._spec.mean_normalisation:
            features = mean_normalise(features)
        return self._run(features[np.newaxis], len(features) * self._spec.frame_shift_ms / 1000.0)

    def _run(self, batch: NDArray[np.float32], seconds: float) -> Embedding:
        """Run the session on one item; InferenceSession.run is safe from many threads at once."""
        if self._num_threads > 1 and self._generation != FORKS.generation:
            self._open_after_fork()
        try:
            found = run_outputs(self._session, self._outputs, {self._input: batch}, shrink=seconds > LONG_S)
        except EmoinvError as error:
            raise type(error)(f"{self._path}: {error}") from error
        embedding = found[0]
        if embedding.shape != (1, self._spec.embedding_dim):
            raise ModelFormatError(
                f"{self._path}: expected an embedding of shape (1, {self._spec.embedding_dim}), "
                f"got {embedding.shape}; export the model again"
            )
        norm = float(np.linalg.norm(embedding.astype(np.float64)))
        if not np.isfinite(norm) or norm < 1e-6:
            raise EmoinvError(
                f"{self._path}: the model gave an embedding of norm {norm:g}, which means nothing; "
                "try other speech, and check the model file with `emoinv doctor`"
            )
        windows = self._windows(found[1]) if len(found) > 1 else None
        return Embedding((embedding[0] / norm).astype(np.float32), norm, windows)

    def _windows(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Each of the windows' embeddings at unit norm."""
        norms = np.linalg.norm(windows.astype(np.float64), axis=-1, keepdims=True)
        if windows.ndim != 2 or not len(windows) or windows.shape[1] != self._spec.embedding_dim:
            raise ModelFormatError(
                f"{self._path}: expected windows of shape (1 or more, {self._spec.embedding_dim}), "
                f"got {windows.shape}; export the model again"
            )
        if not (np.isfinite(norms).all() and norms.min() >= 1e-6):
            raise EmoinvError(f"{self._path}: a window's embedding means nothing; check the file with `emoinv doctor`")
        return np.asarray(windows / norms, np.float32)

    def _open_after_fork(self) -> None:
        """Open the same file again in a process whose fork left this encoder's threads behind in the other one."""
        generation = FORKS.generation
        again = _reopened(type(self), self._opened_as, self._num_threads, self._file_sha256)
        # What would end the old session waits for its threads, so it must never be ended here.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))
        self._session, self._generation = again._session, generation


def _reopened(cls: type[Encoder], name_or_path: str | Path, num_threads: int, file_sha256: str) -> Encoder:
    """An encoder that was pickled, in the process that unpickles it."""
    encoder = cls.open(name_or_path, num_threads)
    if encoder.file_sha256 != file_sha256:
        raise ModelMismatchError(
            f"{encoder.path}: expected the model file {file_sha256[:12]} that was pickled, got "
            f"{encoder.file_sha256[:12]}; use one version of the model in all processes"
        )
    return encoder


def _read_metadata(session: Any, path: Path) -> Mapping[str, Any]:
    try:
        raw: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
    except UnicodeDecodeError as error:
        raise ModelFormatError(
            f"{path}: the metadata are not UTF-8 ({error}); the file is damaged: copy it again"
        ) from None
    ours = {key: text for key, text in raw.items() if key.startswith(_PREFIX)}
    for key in sorted(ours.keys() - _KEYS):
        raise ModelFormatError(
            f"{path}: metadata key {key!r} is unknown; install the emoinv-edge version that wrote this model"
        )
    if _SPEC not in ours:
        raise ModelFormatError(
            f"{path}: metadata key {_SPEC!r} is missing, so the features that the model needs are unknown; "
            "this is no emoinv-edge model, or one exported without its spec: export it with `python -m export`"
        )
    values = {}
    for key, text in ours.items():
        try:
            if len(text) > MAX_METADATA_CHARACTERS:
                raise ValueError(f"longer than {MAX_METADATA_CHARACTERS} characters")
            values[key] = read_json(text)
        except ValueError as error:
            raise ModelFormatError(
                f"{path}: metadata key {key!r} is {error}; the file is damaged, export it again"
            ) from None
    return MappingProxyType(values)


def _should_be_sealed(metadata: Mapping[str, Any]) -> bool:
    """Whether the file was written with a digest at its end, by its metadata."""
    provenance = metadata.get(_PROVENANCE)
    return DIGEST_KEY in metadata or (isinstance(provenance, dict) and provenance.get("sealed") is True)


def _check_graph(session: Any, spec: EncoderSpec, path: Path) -> tuple[str, list[str]]:
    """Check the graph against the spec and return the name of its input and those of its outputs."""

    def refuse(what: str, expected: str, got: object) -> ModelFormatError:
        return ModelFormatError(f"{path}: expected {what} {expected}, got {got}; export the model again")

    inputs, outputs = session.get_inputs(), session.get_outputs()
    names = [node.name for node in inputs]
    if names == ["features"]:
        trailing: list[int | None] = [None, spec.num_mel_bins]
    elif names == ["waveform"]:
        trailing = [None]
    else:
        raise refuse("one input,", "'features' or 'waveform'", names)
    given = [node.name for node in outputs]
    if given not in (["embedding"], ["embedding", "windows"]):
        raise refuse("one output,", "'embedding', or 'embedding' and 'windows'", given)
    checked: list[tuple[Any, list[int | None]]] = [(inputs[0], trailing)]
    checked += [(output, [spec.embedding_dim]) for output in outputs]
    for node, tail in checked:
        if node.type != "tensor(float)":
            raise refuse(f"{node.name!r} of type", "tensor(float)", node.type)
        shape = ["batch", *("any" if size is None else size for size in tail)]
        if len(node.shape) != len(shape):
            raise refuse(f"{node.name!r} of shape", str(shape), node.shape)
        if isinstance(node.shape[0], int) and node.shape[0] != 1 and node.name != "windows":
            raise refuse(f"{node.name!r} of shape", str(shape), node.shape)
        for got, size in zip(node.shape[1:], tail, strict=True):
            # A size left open is checked at run time; the varying one must be left open.
            if isinstance(got, int) and got != size:
                raise refuse(f"{node.name!r} of shape", str(shape), node.shape)
    return names[0], given
