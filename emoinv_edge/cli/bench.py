"""``emoinv bench``: what verification costs on this machine, in half a minute."""

from __future__ import annotations

import argparse
import importlib.resources
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from .. import __version__
from ..machine import describe_machine, resident_mb
from .options import add_command, add_json, add_model, open_encoder, positive
from .terminal import EXIT_ACCEPT, console, print_json, track

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..calibration import Calibration
    from ..encoder import Encoder
    from ..profiles import Profile
    from ..quality import SpeechQuality

__all__ = ["add_parser", "demo_speech", "run", "stand_in_calibration"]

BUDGET_S = 30.0
VOICE = "slt"  # of the demo's clips
LENGTHS_S = (1.0, 2.0, 3.0, 5.0, 10.0)
PROFILES = (1, 1000)
CHUNK_MS = 30
MOST_ROUNDS = 200
# A fresh interpreter: what an application pays before its first answer.
COLD_START = """
import sys, time
from emoinv_edge import Encoder
encoder = Encoder.open(sys.argv[1])
import numpy
encoder.embed(0.1 * numpy.random.default_rng(0).standard_normal(48000).astype("float32").clip(-1, 1), 16000)
"""


class Row(TypedDict):
    """One line of the table; times are medians of one call on one thread."""

    name: str
    audio_s: float | None  # speech that one call works on, None where time does not depend on it
    ms: float  # on the wall
    cpu_ms: float
    rounds: int
    rtf: float | None
    percent_of_one_core: float | None


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of ``emoinv bench``."""
    parser = add_command(
        subparsers,
        "bench",
        "Measure what verification costs on this machine: time, share of a core, memory, size.",
        "emoinv bench --model small --json",
    )
    add_model(parser)
    parser.add_argument(
        "--seconds",
        type=positive("seconds", 3600),
        default=BUDGET_S,
        metavar="S",
        help="time to measure for (default: 30)",
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, and print a table or one JSON object."""
    start = time.perf_counter()
    encoder = open_encoder(args)
    load_ms = 1000.0 * (time.perf_counter() - start)
    stages = make_stages(encoder)
    rows = []
    for name, audio_s, call in track(stages, "Measuring", show=not args.json):
        rows.append(measure(name, audio_s, call, 0.9 * args.seconds / len(stages)))
    memory = resident_mb()
    result: dict[str, Any] = {
        "version": __version__,
        "machine": describe_machine(),
        "model": {
            "name": encoder.spec.name,
            "fingerprint": encoder.fingerprint,
            "mb": round(encoder.path.stat().st_size / 1e6, 3),
        },
        "threads": 1,
        "rows": rows,
        "load_ms": round(load_ms, 2),
        "cold_start_ms": cold_start_ms(args.model),
        "resident_mb": None if memory is None else round(memory, 1),
        "package_mb": round(package_bytes() / 1e6, 2),
        "took_s": round(time.perf_counter() - start, 1),
    }
    if args.json:
        print_json(result)
    else:
        print_table(result)
    return EXIT_ACCEPT


def measure(name: str, audio_s: float | None, call: Callable[[], object], budget_s: float) -> Row:
    """Call until the budget is spent, after one call that does not count."""
    call()
    wall: list[float] = []
    cpu: list[float] = []
    end = time.perf_counter() + budget_s
    while not wall or (time.perf_counter() < end and len(wall) < MOST_ROUNDS):
        at_wall, at_cpu = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - at_wall)
        cpu.append(time.process_time() - at_cpu)
    # The clock of CPU time is coarse on some systems (15 ms on Windows): the mean, where it stands still.
    typical = statistics.median(cpu) or statistics.fmean(cpu)
    return {
        "name": name,
        "audio_s": audio_s,
        "ms": round(1000.0 * statistics.median(wall), 4),
        "cpu_ms": round(1000.0 * typical, 4),
        "rounds": len(wall),
        "rtf": None if audio_s is None else round(typical / audio_s, 6),
        "percent_of_one_core": None if audio_s is None else round(100.0 * typical / audio_s, 3),
    }


def make_stages(encoder: Encoder) -> list[tuple[str, float | None, Callable[[], object]]]:
    """What is measured: a name, the seconds of speech behind one call, and the call, which checks its result."""
    import numpy as np

    from ..decision import Verdict
    from ..enrolment import Enroller
    from ..features import log_mel
    from ..quality import measure_quality
    from ..vad import speech_only
    from ..verifier import Verifier

    rate = encoder.spec.sample_rate
    calibration = encoder.calibration or stand_in_calibration(encoder.spec.embedding_dim)
    voice = demo_speech(rate)

    def speech(seconds: float, offset_s: float = 0.0) -> NDArray[np.float32]:
        return np.resize(np.roll(voice, -round(offset_s * rate)), round(seconds * rate))

    three = speech(3.0)
    found = speech_only(three, rate)
    quality = measure_quality(three, rate, found)
    stages: list[tuple[str, float | None, Callable[[], object]]] = [
        ("features", 3.0, lambda: log_mel(three, encoder.spec)),
        ("speech detection", 3.0, lambda: speech_only(three, rate)),
        ("quality and prosody", 3.0, lambda: measure_quality(three, rate, found)),
    ]
    for seconds in LENGTHS_S:
        piece = speech(seconds)

        def embed(piece: NDArray[np.float32] = piece) -> None:
            norm = float(np.linalg.norm(encoder.embed(piece, rate).vector))
            _expect(abs(norm - 1.0) < 1e-3, "an embedding of unit norm", norm)

        stages.append((f"embed {seconds:g} s", seconds, embed))

    def enrol() -> Profile:
        enroller = Enroller(encoder, calibration=calibration)
        answers = [enroller.add(speech(3.0, offset), rate) for offset in (0.0, 4.0, 8.0)]
        _expect(any(answer.accepted for answer in answers), "an utterance accepted", answers[0].message)
        return enroller.profile("bench")

    verifier = Verifier(encoder, enrol(), extrapolate=True, calibration=calibration)

    def verify() -> None:
        decision = verifier.verify(three, rate)
        _expect(decision.verdict is not Verdict.NO_DECISION, "a decision", decision.reason)

    ten = speech(10.0)
    size = rate * CHUNK_MS // 1000
    chunks = np.split(ten, range(size, len(ten), size))

    def stream() -> None:
        listening = verifier.stream(rate)
        decisions = [decision for chunk in chunks for decision in listening.process(chunk)] + listening.flush()
        _expect(bool(decisions), "decisions", "none")

    stages += [
        ("verify 3 s", 3.0, verify),
        ("enrol 3 x 3 s", 9.0, enrol),
        (f"stream, {CHUNK_MS} ms chunks", 10.0, stream),
    ]
    test = encoder.embed(three, rate).vector
    stages += [score_stage(count, test, quality, calibration) for count in PROFILES]
    return stages


def score_stage(
    count: int, test: NDArray[np.float32], quality: SpeechQuality, calibration: Calibration
) -> tuple[str, float | None, Callable[[], object]]:
    """Scoring one embedding against `count` profiles; the last of them is the speaker's own."""
    import numpy as np

    from ..scoring import ProfileBank

    others = np.random.default_rng(0).standard_normal((count, len(test)), np.float32)
    others[-1] = test
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    names = [str(i) for i in range(count)]
    bank = ProfileBank.from_arrays(names, others, [quality] * count, [1] * count, calibration.emotion_axis)

    def score() -> None:
        best = int(np.argmax(bank.score(calibration, test, quality)[0]))
        _expect(best == count - 1, f"profile {count - 1}", best)

    return f"score {count:,} profile{'s' if count > 1 else ''}", None, score


def _expect(holds: bool, expected: str, got: object) -> None:
    """What is measured must also be right."""
    if not holds:
        from ..errors import EmoinvError

        raise EmoinvError(f"the benchmark expected {expected}, got {got}; see `emoinv doctor`")


def stand_in_calibration(embedding_dim: int) -> Calibration:
    """A calibration for models without one, to measure times only: its scores mean nothing."""
    import numpy as np

    from ..calibration import TERMS, Calibration, EmotionAxis, FarTable, Term

    terms = tuple(Term(name, 1.0 if name == "cosine" else 0.0, -10.0, 10.0) for name in TERMS)
    table = FarTable(1, (0.5, 0.001), (0.0, 1.0))
    axis = EmotionAxis(np.eye(1, embedding_dim, dtype="<f4").tobytes())
    return Calibration(20.0, terms, (table,), 3000, "none: stands in for a benchmark", axis)


def demo_speech(sample_rate: int) -> NDArray[np.float32]:
    """All clips of one of the demo's voices, one after another."""
    import numpy as np

    from ..audio import read_audio

    folder = importlib.resources.files("emoinv_edge") / "demo" / "clips" / VOICE
    clips = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        with importlib.resources.as_file(entry) as path:
            clips.append(read_audio(path, sample_rate)[0])
    return np.concatenate(clips)


def cold_start_ms(model: str) -> float | None:
    """From the start of a fresh Python to the first embedding, the better of two; None where it failed."""
    times = []
    for _ in range(2):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", COLD_START, model], capture_output=True, check=False)
        if done.returncode:
            return None
        times.append(1000.0 * (time.perf_counter() - start))
    return round(min(times), 1)


def package_bytes() -> int:
    """Size of the installed library, model files included."""
    folder = Path(str(importlib.resources.files("emoinv_edge")))
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def print_table(result: dict[str, Any]) -> None:
    """The rows as a table, then memory and sizes."""
    from rich.table import Table

    out = console()
    about, model = result["machine"], result["model"]
    flags = f" ({', '.join(about['flags'])})" if about["flags"] else ""
    out.print(f"{about['cpu']}, {about['cores']} cores{flags}, {about['system']}", markup=False, soft_wrap=True)
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    out.print(f"emoinv-edge {result['version']}, {versions}", markup=False, soft_wrap=True)
    out.print(f"model {model['name']}, {model['mb']:.2f} MB, {model['fingerprint'][:12]}; one thread", markup=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for title in ("ms", "CPU ms", "x real time", "% of a core"):
        table.add_column(title, justify="right")
    for row in result["rows"]:
        rtf, percent = row["rtf"], row["percent_of_one_core"]
        table.add_row(
            row["name"],
            f"{row['ms']:.2f}",
            f"{row['cpu_ms']:.2f}",
            "" if not rtf else f"{1.0 / rtf:,.0f}",
            "" if percent is None else f"{percent:.2f}",
        )
    out.print(table)
    cold, memory = result["cold_start_ms"], result["resident_mb"]
    out.print(
        f"cold start to the first embedding {'failed' if cold is None else f'{cold:.0f} ms'}, "
        f"loading the model {result['load_ms']:.0f} ms; "
        f"memory {'not known' if memory is None else f'{memory:.0f} MB'}; "
        f"installed library {result['package_mb']:.1f} MB",
        soft_wrap=True,
    )
    if about["load"] is not None and about["load"] > 0.5 * about["cores"]:
        out.print(f"other programs are running (load {about['load']:g}); trust the CPU time, not the wall's")
