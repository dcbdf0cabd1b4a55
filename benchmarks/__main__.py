"""``python -m benchmarks``: measure, compare, and make the report; every step's result is one JSON file.

    python -m benchmarks --peers FOLDER --eval ../shared/eval
    python -m benchmarks docs

Steps can be named: ``speed`` (pytest benchmarks), ``peers`` (time, memory and size in turns), ``accuracy``,
``robustness`` and ``enrolment`` (error rates; need --eval), ``report`` (the page and its tables). What lacks
something is skipped with the reason. Embeddings are kept in the user's cache, so that a stopped run goes on
where it was. ``docs``, which only runs when named, writes the tables and pictures of README and docs.
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
from emoinv_edge.encoder import Encoder
from emoinv_edge.files import write_atomically
from emoinv_edge.machine import describe_machine, processor

from .documents import documents
from .peers import PEERS, ROOT, our_models
from .report import RESULTS, make, read
from .workers import ONE_THREAD, Worker, open_workers, take_turns

STEPS = ("speed", "peers", "accuracy", "robustness", "enrolment", "report")
REFERENCE = "wespeaker"  # fp32 ResNet34-LM, which ratios are against
CLIP_S = 3.0
FORMAT = 2


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"of {', '.join(STEPS)} (all by default), and docs")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FILE", help="instead of the shipped ones")
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
    parser.add_argument(
        "--left-out", action="append", default=[], metavar="NAME=FILE",
        help="JSON of `python -m train calibration ... --enrolment`, for the step enrolment",
    )  # fmt: skip
    args = parser.parse_args(arguments)
    unknown = set(args.steps) - {*STEPS, "docs"}
    if unknown:
        parser.error(f"expected steps of {(*STEPS, 'docs')}, got {sorted(unknown)}")
    return args


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a step's result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**result, "format": FORMAT}, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, f"{text}\n", mode=0o644)


def origin(sha256: str, fingerprint: str, versions: dict[str, str]) -> dict[str, Any]:
    """What a row was measured with: the model file, this checkout's commit, the processor and the versions."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return {
        "sha256": sha256, "fingerprint": fingerprint, "commit": commit, "cpu": processor()[0], "versions": versions
    }  # fmt: skip


def origin_of(worker: Worker) -> dict[str, Any]:
    """`origin` of what a worker holds."""
    return origin(worker.about["sha256"], worker.about["fingerprint"], worker.about["versions"])


def speed(args: argparse.Namespace) -> None:
    """pytest benchmarks, its JSON brought down to what the report needs."""
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch) / "raw.json"
        command = [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "benchmarks"),
            f"--benchmark-json={raw}", "--benchmark-sort=name", "--benchmark-columns=median,iqr,rounds",
            f"--stream-minutes={args.stream_minutes:g}", *(f"--model={model}" for model in args.model),
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
    about = describe_machine()
    origins = {}
    for name, path in our_models(args.model).items():
        encoder = Encoder.open(path)
        origins[name] = origin(encoder.file_sha256, encoder.fingerprint, about["versions"])
    rows = [
        {
            "name": row["name"],
            "file": row["fullname"].partition("::")[0].rpartition("/")[2],
            "median_ms": 1000.0 * row["stats"]["median"],
            "iqr_ms": 1000.0 * row["stats"]["iqr"],
            "rounds": row["stats"]["rounds"],
            "extra": row["extra_info"],
            **(
                {"key": key, "origin": origins[key]}
                if (key := (row["params"] or {}).get("model_name")) in origins
                else {}
            ),
        }
        for row in found["benchmarks"]
    ]
    write(args.out / "speed.json", {"machine": about, "passed": done.returncode == 0, "benchmarks": rows})


def peers(args: argparse.Namespace) -> None:
    """Time of 3 s, memory and model size of every encoder, in turns on the same clip."""
    folder = ROOT / "emoinv_edge" / "demo" / "clips" / "slt"
    voice = np.concatenate([read_audio(path)[0] for path in sorted(folder.glob("*.ogg"))])
    ours = list(our_models(args.model).items())
    with (
        tempfile.TemporaryDirectory() as scratch,
        open_workers(ours, args.peers, args.resemblyzer_python, args.only) as (workers, skipped),
    ):
        for name, reason in skipped.items():
            log(f"skipped {name}: {reason}")
        clip = Path(scratch) / "clip.npy"
        np.save(clip, voice[: round(CLIP_S * 16000)])
        times = take_turns(workers, clip, args.rounds)
        about = {peer.key: peer for peer in PEERS}
        rows = []
        for worker in workers:
            row = {
                "key": worker.key, "name": worker.name, "ours": worker.ours, "dim": worker.about["dim"],
                "model_mb": worker.about["model_mb"], "rss_mb": worker.about["rss_mb"], "origin": origin_of(worker),
                **{name: value for name, value in times[worker.key].items() if name != "cpu_ms_rounds"},
            }  # fmt: skip
            if worker.key in about:
                row.update(get=about[worker.key].get, licence=about[worker.key].licence)
            if REFERENCE in times:
                row["times_faster_than_reference"] = times[REFERENCE]["cpu_ms"] / times[worker.key]["cpu_ms"]
            rows.append(row)
    result = {"machine": describe_machine(), "clip_s": CLIP_S, "rounds": 2 * args.rounds, "encoders": rows}
    write(args.out / "peers.json", {**result, "skipped": skipped})


def error_rates(args: argparse.Namespace, step: str) -> None:
    """One entry an encoder, in accuracy.json or robustness.json; entries of encoders not asked for stay."""
    if args.eval is None:
        log(f"skipped {step}: no --eval FOLDER with the evaluation speech was given")
        return
    from train.evaluation.embeddings import default_cache

    from . import accuracy

    cache = args.cache or default_cache()
    path = args.out / f"{step}.json"
    result = {"encoders": {}, **read(path)}
    measures: dict[str, Callable[..., dict[str, Any]]] = {
        "accuracy": accuracy.measure,
        "robustness": accuracy.robustness,
    }
    ours = our_models(args.model)
    for key in [*ours, *(peer.key for peer in PEERS)]:
        if args.only and key not in args.only:
            continue
        if step == "robustness" and key not in ours and key not in (args.only or [best_peer(args.out)]):
            continue
        mine = [(key, ours[key])] if key in ours else []
        with open_workers(mine, args.peers, args.resemblyzer_python, [key]) as (workers, skipped):
            for name, reason in skipped.items():
                log(f"skipped {name}: {reason}")
            for worker in workers:
                row = measures[step](worker, args.eval, cache, progress=log)
                row.update(name=worker.name, ours=worker.ours, origin=origin_of(worker))
                if step == "accuracy" and worker.ours:
                    row["calibrated"] = accuracy.calibrated(Encoder.open(ours[key]).path, args.eval, cache)
                result["encoders"][key] = row
                write(path, result)


def best_peer(out: Path) -> str:
    """The peer with the lowest `enrol` EER measured so far, else the reference."""
    rows = read(out / "accuracy.json").get("encoders", {})
    found = {key: row["ravdess"]["enrol"]["eer"] for key, row in rows.items() if not row["ours"] and "ravdess" in row}
    return min(found, key=lambda key: found[key]) if found else REFERENCE


def enrolment(args: argparse.Namespace) -> None:
    """What enrolment is worth with our models: one entry each, in enrolment.json, and what --left-out names."""
    from train.evaluation.embeddings import default_cache

    from . import accuracy

    path = args.out / "enrolment.json"
    result = {"encoders": {}, **read(path)}
    about = describe_machine()["versions"]
    left_out = dict(text.partition("=")[::2] for text in args.left_out)
    for key, model in our_models(args.model).items():
        encoder = Encoder.open(model)
        row = {"name": key, "ours": True, **result["encoders"].get(key, {})}
        if row.get("origin", {}).get("fingerprint") != encoder.fingerprint:
            row.pop("left_out", None)
        if key in left_out:
            study = json.loads(Path(left_out[key]).read_text(encoding="utf-8"))
            if study["fingerprint"] != encoder.fingerprint:
                raise ValueError(f"expected figures of {key}, got another model's in {left_out[key]}; measure again")
            row["left_out"] = study["enrolment"]
        if args.eval is None:
            log(f"skipped enrolment of {key}: no --eval FOLDER with the evaluation speech was given")
        elif not args.only or key in args.only:
            log(f"{key}: enrolment")
            found = accuracy.enrolment(encoder.path, args.eval, args.cache or default_cache())
            if found is None:
                continue
            row |= {"sets": found, "origin": origin(encoder.file_sha256, encoder.fingerprint, about)}
        if "sets" in row:
            result["encoders"][key] = row
            write(path, result)


def log(text: str) -> None:
    """One line on standard error."""
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps; 0 when all of them ran."""
    args = parse(arguments)
    steps = args.steps or STEPS
    if not our_models(args.model):
        log("no model is shipped in this checkout; name one with --model NAME=FILE")
        return 1
    if "speed" in steps:
        speed(args)
    if "peers" in steps:
        peers(args)
    for step in ("accuracy", "robustness"):
        if step in steps:
            error_rates(args, step)
    if "enrolment" in steps:
        enrolment(args)
    if "report" in steps:
        for made in make(args.out):
            log(f"wrote {made}")
    if "docs" in steps:
        for path, text in documents(args.out).items():
            write_atomically(path, text, mode=0o644)
            log(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
