"""Encoders beside each other: the same clips, the same run, one thread, each in a process of its own.

A worker is a process that loads one encoder and answers requests, one JSON object a line. So its memory is its
own, its libraries cannot disturb another's, and turns can be taken in any order.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from emoinv_edge.machine import installed_version, resident_mb

from .peers import PEERS, ROOT, SAMPLE_RATE, Missing, Opened, open_ours

__all__ = ["ONE_THREAD", "Worker", "open_workers", "take_turns"]

# Set before numpy is loaded: one thread for everybody.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")


class Worker:
    """A process that holds one encoder.

    Attributes
    ----------
    key, name : str
    about : dict
        ``model_mb``, ``rss_mb`` (after loading and one embedding of 3 s), ``dim``, ``versions``, ``sha256`` of the
        model file, and the ``fingerprint`` that stays when only the scores in it change.
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
    models : sequence of (name, shipped name or path)
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
            start(name, name, [sys.executable, "-m", "benchmarks.workers", "ours", path], True)
        for peer in PEERS:
            if only and peer.key not in only:
                continue
            if folder is None:
                skipped[peer.name] = f"no --peers FOLDER was given ({peer.get})"
                continue
            python = resemblyzer_python if peer.key == "resemblyzer" and resemblyzer_python else sys.executable
            start(
                peer.key, peer.name, [python, "-W", "ignore", "-m", "benchmarks.workers", peer.key, str(folder)], False
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
    sha256 = hashlib.sha256(opened.file.read_bytes()).hexdigest()
    fingerprint = opened.fingerprint or sha256
    answer(
        dim=len(first),
        model_mb=opened.file.stat().st_size / 1e6,
        rss_mb=resident_mb(),
        versions={name: installed_version(name) for name in opened.packages},
        sha256=sha256,
        fingerprint=fingerprint,
    )
    # Evaluation keeps raw embeddings by the fingerprint alone; these are as the encoder hands them out.
    cache_key = hashlib.sha256(f"{key} 2 {fingerprint}".encode()).hexdigest()
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
            answer(done=embed_set(opened, len(first), cache_key, request))
        else:
            answer(missing=f"unknown request {request['op']!r}")


def embed_set(opened: Opened, dim: int, cache_key: str, request: dict[str, Any]) -> int:
    """Embed the clips of an evaluation folder under one condition and save the rows; known ones come from the cache."""
    from train.evaluation.clips import open_set
    from train.evaluation.embeddings import EmbeddingCache, Model
    from train.evaluation.embeddings import embed_set as embed_clips

    from .conditions import degraded

    evaluation = degraded(open_set(Path(request["folder"])), request["condition"])
    with EmbeddingCache(Path(request["cache"]), cache_key, dim) as cache:
        model = Model(cache_key[:8], cache_key, dim, opened.embed)
        rows = embed_clips(model, evaluation, cache, indices=request.get("indices"))
    np.save(request["out"], rows)
    return len(rows)


def main(arguments: Sequence[str]) -> int:
    """``ours PATH`` or ``KEY FOLDER``: load one encoder and serve."""
    key, path = arguments
    try:
        opened = open_ours(path) if key == "ours" else {peer.key: peer for peer in PEERS}[key].open(Path(path))
    except Exception as error:  # the parent skips this one and gives the reason
        print(json.dumps({"missing": str(error) or type(error).__name__}), flush=True)
        return 1
    serve(opened, key)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
