"""``python -m benchmarks``: measure, compare, and make the report; every step's result is one JSON file.

    python -m benchmarks --peers FOLDER --eval ../shared/eval

Steps can be named: ``speed`` (pytest benchmarks), ``peers`` (time, memory and size in turns), ``accuracy`` and
``robustness`` (error rates; need --eval), ``report`` (figures, tables and the page). What lacks something is
skipped with the reason. Embeddings are kept in the user's cache, so that a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emoinv_edge.audio import read_audio
from emoinv_edge.cli.bench import machine
from emoinv_edge.encoder import MODEL_NAMES

from .peers import ONE_THREAD, PEERS, ROOT, open_workers, take_turns

STEPS = ("speed", "peers", "accuracy", "robustness", "report")
RESULTS = Path(__file__).resolve().parent / "results"
REFERENCE = "wespeaker"  # fp32 ResNet34-LM, which ratios are against
CLIP_S = 3.0
FORMAT = 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"of {', '.join(STEPS)}; all by default")
    parser.add_argument(
        "--model", action="append", default=[], metavar="NAME=FILE", help="instead of the shipped base and small"
    )
    parser.add_argument("--fp32", type=Path, metavar="FILE", help="the fp32 .onnx file that base was made from")
    parser.add_argument("--peers", type=Path, metavar="FOLDER", help="the unpacked wheels of the peers")
    parser.add_argument("--only", action="append", default=[], metavar="KEY", help="only this encoder; may be repeated")
    parser.add_argument("--resemblyzer-python", metavar="FILE", help="the python of the environment with Resemblyzer")
    parser.add_argument("--eval", type=Path, metavar="FOLDER", help="the evaluation speech")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="where embeddings are kept")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="where results go")
    parser.add_argument("--rounds", type=int, default=20, help="turns of the comparison (default: 20)")
    parser.add_argument("--stream-minutes", type=float, default=60.0, help="stream whose memory is watched (60)")
    parser.add_argument("--install", action="store_true", help="also time pip install (network)")
    args = parser.parse_args(arguments)
    unknown = set(args.steps) - set(STEPS)
    if unknown:
        parser.error(f"expected steps of {STEPS}, got {sorted(unknown)}")
    return args


def models(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Our models: name, and path or shipped name."""
    if args.model:
        given = []
        for text in args.model:
            name, _, path = text.rpartition("=")
            given.append((name or Path(path).stem, str(Path(path).resolve())))
        return given
    shipped = [name for name in MODEL_NAMES if (ROOT / "emoinv_edge" / "models" / f"{name}.onnx").is_file()]
    return [(name, name) for name in shipped]


def read(path: Path) -> dict[str, Any]:
    """A result of an earlier step, or an empty one."""
    if not path.is_file():
        return {}
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a step's result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": FORMAT, **result}, indent=1, ensure_ascii=False, allow_nan=False)
    temporary = path.with_suffix(".part")
    temporary.write_text(f"{text}\n", encoding="utf-8")
    os.replace(temporary, path)


def speed(args: argparse.Namespace) -> None:
    """pytest benchmarks, its JSON brought down to what the report needs."""
    chosen = args.model or [f"{name}={path}" for name, path in models(args) if path not in MODEL_NAMES]
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch) / "raw.json"
        command = [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "benchmarks"),
            f"--benchmark-json={raw}", "--benchmark-sort=name", "--benchmark-columns=median,iqr,rounds",
            f"--stream-minutes={args.stream_minutes:g}", *(f"--model={model}" for model in chosen),
        ]  # fmt: skip
        if args.fp32:
            command.append(f"--fp32={args.fp32}")
        if args.peers:
            command.append(f"--peers={args.peers}")
        if args.install:
            command.append("--install")
        done = subprocess.run(command, cwd=ROOT, env={"EMOINV_SOAK_HOURS": "1", **os.environ, **ONE_THREAD})
        if not raw.is_file():
            raise SystemExit(f"pytest ended with status {done.returncode} and wrote no result")
        found = json.loads(raw.read_text())
    rows = [
        {
            "name": row["name"],
            "file": row["fullname"].partition("::")[0].rpartition("/")[2],
            "median_ms": 1000.0 * row["stats"]["median"],
            "iqr_ms": 1000.0 * row["stats"]["iqr"],
            "rounds": row["stats"]["rounds"],
            "extra": row["extra_info"],
        }
        for row in found["benchmarks"]
    ]
    write(args.out / "speed.json", {"machine": machine(), "passed": done.returncode == 0, "benchmarks": rows})


def peers(args: argparse.Namespace) -> None:
    """Time of 3 s, memory and model size of every encoder, in turns on the same clip."""
    folder = ROOT / "emoinv_edge" / "demo" / "clips" / "slt"
    voice = np.concatenate([read_audio(path)[0] for path in sorted(folder.glob("*.ogg"))])
    with (
        tempfile.TemporaryDirectory() as scratch,
        open_workers(models(args), args.peers, args.resemblyzer_python, args.only) as (workers, skipped),
    ):
        for name, reason in skipped.items():
            say(f"skipped {name}: {reason}")
        clip = Path(scratch) / "clip.npy"
        np.save(clip, voice[: round(CLIP_S * 16000)])
        times = take_turns(workers, clip, args.rounds)
        about = {peer.key: peer for peer in PEERS}
        rows = []
        for worker in workers:
            row = {
                "key": worker.key, "name": worker.name, "ours": worker.ours, "dim": worker.about["dim"],
                "model_mb": worker.about["model_mb"], "rss_mb": worker.about["rss_mb"],
                "versions": worker.about["versions"],
                **{name: value for name, value in times[worker.key].items() if name != "cpu_ms_rounds"},
            }  # fmt: skip
            if worker.key in about:
                row.update(get=about[worker.key].get, licence=about[worker.key].licence)
            if REFERENCE in times:
                row["times_faster_than_reference"] = times[REFERENCE]["cpu_ms"] / times[worker.key]["cpu_ms"]
            rows.append(row)
    result = {"machine": machine(), "clip_s": CLIP_S, "rounds": 2 * args.rounds, "encoders": rows, "skipped": skipped}
    write(args.out / "peers.json", result)


def error_rates(args: argparse.Namespace, step: str) -> None:
    """One entry an encoder, in accuracy.json or robustness.json; entries of encoders not asked for stay."""
    if args.eval is None:
        say(f"skipped {step}: no --eval FOLDER with the evaluation speech was given")
        return
    from train.evaluate import default_cache

    from . import accuracy

    cache = args.cache or default_cache()
    path = args.out / f"{step}.json"
    result = {"encoders": {}, **read(path)}
    measures: dict[str, Callable[..., dict[str, Any]]] = {
        "accuracy": accuracy.measure,
        "robustness": accuracy.robustness,
    }
    ours = models(args)
    for key in [name for name, _ in ours] + [peer.key for peer in PEERS]:
        if args.only and key not in args.only:
            continue
        mine = [(name, model) for name, model in ours if name == key]
        if step == "robustness" and not mine and key not in (args.only or [best_peer(args.out)]):
            continue
        with open_workers(mine, args.peers, args.resemblyzer_python, [key]) as (workers, skipped):
            for name, reason in skipped.items():
                say(f"skipped {name}: {reason}")
            for worker in workers:
                row = measures[step](worker, args.eval, cache, progress=say)
                row.update(name=worker.name, ours=worker.ours)
                if step == "accuracy" and worker.ours:
                    model = mine[0][1]
                    file = ROOT / "emoinv_edge" / "models" / f"{model}.onnx" if model in MODEL_NAMES else Path(model)
                    row["calibrated"] = accuracy.calibrated(file, args.eval, cache)
                result["encoders"][key] = row
                write(path, {key: value for key, value in result.items() if key != "format"})


def best_peer(out: Path) -> str:
    """The peer with the lowest `enrol` EER measured so far, else the reference."""
    rows = read(out / "accuracy.json").get("encoders", {})
    found = {
        key: row["ravdess"]["enrol"]["eer"] for key, row in rows.items() if not row["ours"] and "ravdess" in row
    }
    return min(found, key=lambda key: found[key]) if found else REFERENCE


def say(text: str) -> None:
    """One line on standard error."""
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps; 0 when all of them ran."""
    args = parse(arguments)
    steps = args.steps or STEPS
    if not models(args):
        say("no model is shipped in this checkout; name one with --model NAME=FILE")
        return 1
    for step in STEPS:
        if step not in steps:
            continue
        if step == "speed":
            speed(args)
        elif step == "peers":
            peers(args)
        elif step == "report":
            from .report import make

            for made in make(args.out):
                say(f"wrote {made.name}")
        else:
            error_rates(args, step)
    return 0


if __name__ == "__main__":
    sys.exit(main())
