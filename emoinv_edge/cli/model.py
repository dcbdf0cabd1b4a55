"""``emoinv model``: a model file's card, and whether this device computes what it should."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from .options import add_command, add_json
from .terminal import EXIT_ACCEPT, EXIT_ERROR, print_json, shown

if TYPE_CHECKING:
    from ..encoder import Encoder

__all__ = ["add_parser", "run"]

TIMED_RUNS = 5


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``model`` with its actions ``show`` and ``verify``."""
    parser = add_command(
        subparsers, "model", "Show a model file's card, or verify the file on this device.", "emoinv model verify base"
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name, summary, function in (
        ("show", "print the file's card: features, training data, gates, licences", show),
        ("verify", "check the file's digest and that this device computes the golden embeddings", verify),
    ):
        action = actions.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        action.add_argument("file", metavar="NAME|FILE", help="'base', 'small', 'large' or an .onnx file")
        add_json(action)
        action.set_defaults(run=run, run_action=function)


def run(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    status: int = args.run_action(args)
    return status


def show(args: argparse.Namespace) -> int:
    """Print the card of a model file."""
    from ..encoder import Encoder

    encoder = Encoder.open(args.file)
    if args.json:
        values = {key.removeprefix("emoinv."): value for key, value in encoder.metadata.items()}
        values.pop("golden", None)
        print_json(_names(encoder) | values)
        return EXIT_ACCEPT
    for line in _card(encoder):
        print(shown(line))
    return EXIT_ACCEPT


def _names(encoder: Encoder) -> dict[str, Any]:
    return {"path": str(encoder.path), "fingerprint": encoder.fingerprint, "file_sha256": encoder.file_sha256}


def _card(encoder: Encoder) -> list[str]:
    """Lines of the card, a heading and its facts."""
    spec, metadata = encoder.spec, encoder.metadata
    size = encoder.path.stat().st_size
    lines = [
        f"{spec.name}: speaker embeddings of {spec.embedding_dim} values",
        f"  file         {encoder.path} ({size / 1e6:.2f} MB)",
        f"  sha256       {encoder.file_sha256}",
        f"  fingerprint  {encoder.fingerprint}",
        f"  features     {spec.num_mel_bins} log-mels of {spec.frame_length_ms:g} ms every {spec.frame_shift_ms:g} ms, "
        f"{spec.low_hz:g}-{spec.high_hz:g} Hz, {spec.window} window, {spec.sample_rate} Hz"
        + (", mean removed" if spec.mean_normalisation else ""),
    ]
    provenance: dict[str, Any] = metadata.get("emoinv.provenance") or {}
    if not provenance:
        lines.append("  provenance   none: where this file comes from is not recorded")
    else:
        lines.append(f"  made         {provenance.get('created', '?')} by emoinv-edge {provenance.get('version', '?')}")
        for name, digest in (provenance.get("parents") or {}).items():
            lines.append(f"  parent       {name} {digest}")
        scheme = provenance.get("scheme") or {}
        if scheme:
            lines.append("  int8         " + ", ".join(f"{key} {_plain(value)}" for key, value in scheme.items()))
        for corpus in provenance.get("corpora") or []:
            lines.append(f"  trained on   {corpus.get('name', '?')} ({corpus.get('licence', 'licence not stated')})")
        for teacher in (provenance.get("training") or {}).get("teachers") or []:
            lines.append(f"  teacher      {teacher.get('name', '?')} ({teacher.get('licence', 'licence not stated')})")
        for name, gate in (provenance.get("gates") or {}).items():
            figures = ", ".join(f"{key} {_plain(value)}" for key, value in gate.items() if key != "passed")
            lines.append(f"  gate         {name}: {'passed' if gate.get('passed') else 'FAILED'} ({figures})")
    calibration = encoder.calibration
    if calibration is None:
        lines.append("  calibration  none: scores are cosines, and false-accept rates are unknown")
    else:
        lines.append(
            f"  calibration  {', '.join(term.name for term in calibration.terms)} on {calibration.source}; "
            f"{calibration.num_impostor_speakers} impostors"
        )
        if calibration.emotion_axis is not None:
            corpora = provenance.get("calibration_axis")
            lines.append(f"  emotion axis fitted on {', '.join(corpora or ['speech that the file does not name'])}")
    golden = metadata.get("emoinv.golden")
    if golden:
        lines.append(
            f"  golden test  {len(golden.get('items', []))} inputs, computed on {golden.get('machine', '?')}; "
            "run `emoinv model verify` here"
        )
    return lines


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} {_plain(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + " ".join(_plain(each) for each in value) + "]"
    return str(value)


def verify(args: argparse.Namespace) -> int:
    """Check a model file on this device; exit status 0 if every check passes, 3 if one fails or is missing."""
    from ..encoder import Encoder
    from ..golden import run_golden
    from ..model_file import check_digest

    encoder = Encoder.open(
        args.file
    )  # refuses damaged files, unknown keys, foreign formats and graphs at odds with the spec
    _, sealed = check_digest(encoder.path.read_bytes(), encoder.path)
    results = run_golden(encoder)
    checks = [
        {
            "check": "digest",
            "passed": sealed,
            "detail": "every byte is as exported" if sealed else "none; not made by `python -m export`",
        },
        {"check": "spec", "passed": True, "detail": f"format and graph agree ({encoder.spec.name})"},
        {
            "check": "golden",
            "passed": bool(results) and all(result.passed for result in results),
            "detail": "cosines "
            + ", ".join(f"{result.cosine:.6f}" for result in results)
            + f" (at least {results[0].least:g}), {_milliseconds(encoder):.1f} ms for 3 s"
            if results
            else "the file holds no golden test",
        },
    ]
    passed = all(check["passed"] for check in checks)
    if args.json:
        print_json(_names(encoder) | {"passed": passed, "checks": checks})
    else:
        for check in checks:
            print(shown(f"{'ok  ' if check['passed'] else 'FAIL'}  {check['check']}: {check['detail']}"))
        print(f"{encoder.path}: {'verified' if passed else 'NOT verified'}, sha256 {encoder.file_sha256}")
    return EXIT_ACCEPT if passed else EXIT_ERROR


def _milliseconds(encoder: Encoder) -> float:
    """The best of a few runs on 3 s of noise."""
    import numpy as np

    spec = encoder.spec
    waveform = np.random.default_rng(0).standard_normal(3 * spec.sample_rate).astype(np.float32) * np.float32(0.1)
    best = float("inf")
    for _ in range(TIMED_RUNS):
        start = time.perf_counter()
        encoder.embed(waveform, spec.sample_rate)
        best = min(best, time.perf_counter() - start)
    return 1e3 * best
