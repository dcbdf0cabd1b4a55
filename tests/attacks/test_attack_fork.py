"""Kind 14: a fork while other threads verify leaves a child that answers, or gives the reason why it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from emoinv_edge.encoder import Encoder
from emoinv_edge.errors import EmoinvError

FULL = bool(os.environ.get("EMOINV_FULL_PROOFS"))
FORKS = 200 if FULL else 12

PROGRAM = """
import os, signal, sys, threading, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[3])
import numpy as np
from emoinv_edge.encoder import Encoder
from emoinv_edge.errors import EmoinvError
threads = int(sys.argv[2])
encoder = Encoder(sys.argv[1], num_threads=threads)
speech = np.random.default_rng(0).standard_normal(48000).astype(np.float32) * np.float32(0.1)
stop = threading.Event()
def work():
    while not stop.is_set():
        encoder.embed(speech, 16000)
workers = [threading.Thread(target=work) for _ in range(2)]
for worker in workers: worker.start()
answered = 0
for _ in range(int(sys.argv[4])):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            encoder.embed(speech, 16000)
            status = 0
        except EmoinvError:
            status = 8
        try:
            Encoder(sys.argv[1], num_threads=threads).embed(speech, 16000)
        except BaseException:
            status = 6
        os._exit(status)
    _, status = os.waitpid(child, 0)
    answered += os.waitstatus_to_exitcode(status) == 0
stop.set()
for worker in workers: worker.join()
print(answered)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("threads", [1, 2])
def test_no_child_hangs(encoder: Encoder, threads: int) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", PROGRAM, str(encoder.path), str(threads), str(root), str(FORKS)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60 + 65 * FORKS)
    assert answer.returncode == 0 and int(answer.stdout) == FORKS, answer.stdout + answer.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_an_encoder_of_several_threads_refuses_another_file_in_a_child(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    from emoinv_edge import forks

    path = tmp_path / "model.onnx"
    path.write_bytes(encoder.path.read_bytes())
    speech = (0.1 * np.random.default_rng(0).standard_normal(16000)).astype(np.float32)
    several = Encoder(path, num_threads=2)
    monkeypatch.setattr(forks.FORKS, "generation", forks.FORKS.generation + 1)
    several.embed(speech, 16000)  # the same file, opened again
    monkeypatch.setattr(forks.FORKS, "generation", forks.FORKS.generation + 1)
    path.unlink()
    with pytest.raises(EmoinvError, match="no such model file"):
        several.embed(speech, 16000)
