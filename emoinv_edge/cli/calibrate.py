"""``emoinv calibrate``: fit the scores to this device's room, microphone and impostors."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AudioError, CalibrationError, UnknownSpeakerError
from .options import add_command, add_shared, open_encoder, open_store
from .terminal import EXIT_ACCEPT, print_error, print_json

if TYPE_CHECKING:
    from ..conditions import Heard
    from ..verifier import Verifier

__all__ = ["add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of ``emoinv calibrate``."""
    parser = add_command(
        subparsers,
        "calibrate",
        "Fit scores and thresholds to this device, with recordings made on it; undone with --reset.",
        "emoinv calibrate --impostors visitors --genuine family\n  emoinv calibrate --reset",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--impostors",
        type=Path,
        metavar="DIR",
        help="recordings of people who are not enrolled: one sub-folder a speaker, 5 speakers or more",
    )
    what.add_argument("--reset", action="store_true", help="go back to the model's own calibration")
    what.add_argument("--show", action="store_true", help="describe what this device has changed")
    parser.add_argument(
        "--genuine",
        type=Path,
        metavar="DIR",
        help="new recordings of the enrolled: one sub-folder a speaker, named as the profile",
    )
    add_shared(parser, run, store=True)


def run(args: argparse.Namespace) -> int:
    """Calibrate, reset or show, and return 0."""
    from ..decision import require_calibration
    from ..device_calibration import refine
    from ..verifier import Verifier

    store = open_store(args)
    if args.reset:
        there = store.device.reset()
        return _answer(
            args, {"reset": there}, "The model's own calibration holds again." if there else "Nothing to undo."
        )
    if args.show:
        refined = store.device.refinements()
        if not refined:
            return _answer(args, {"refined": False}, "This device uses the model's own calibration.")
        found = next(iter(refined.values())) if len(refined) == 1 else refined.get(open_encoder(args).fingerprint)
        if found is None:
            models = ", ".join(key[:12] for key in refined)
            return _answer(args, {"refined": False}, f"This device was calibrated for models {models}, not for this.")
        answer = {"refined": True, "model": found.model_fingerprint, "shift": found.shift, "raises": found.raises}
        return _answer(args, answer, f"{_summary(found)}\nFor model {found.model_fingerprint[:12]}.")

    encoder = open_encoder(args)
    calibration = require_calibration(encoder, None)
    usable, left_out = store.usable(encoder.fingerprint)
    for error in left_out.values():
        print_error(f"left out: {error}")
    profiles = {profile.name: profile for profile in usable}
    if not profiles:
        raise UnknownSpeakerError(f"no profile in {store.path} to try impostors on; enrol a speaker first")
    # Scores of the model's own calibration, whatever this device refined before.
    verifiers = {
        name: Verifier(encoder, profile, prior=0.5, calibration=calibration) for name, profile in profiles.items()
    }
    scored = {
        speaker: _scores(list(verifiers.values()), files)
        for speaker, files in _speakers(args.impostors).items()
        if speaker not in profiles
    }
    impostors = {speaker: scores for speaker, (scores, _) in scored.items()}
    heard = {speaker: conditions for speaker, (_, conditions) in scored.items()}
    genuine: list[float] = []
    if args.genuine is not None:
        for speaker, files in _speakers(args.genuine).items():
            if speaker not in profiles:
                raise UnknownSpeakerError(
                    f"{args.genuine / speaker}: no profile of that name; the enrolled are {', '.join(profiles)}"
                )
            genuine += _scores([verifiers[speaker]], files)[0]
    sha256 = encoder.file_sha256
    refinement = refine(calibration, encoder.fingerprint, impostors, genuine, file_sha256=sha256, heard=heard)
    store.device.keep(refinement)
    answer = {"refined": True, "store": str(store.path), "shift": refinement.shift, "raises": refinement.raises}
    return _answer(args, answer, f"{_summary(refinement)}\nKept in {store.path}; undo with `emoinv calibrate --reset`.")


def _summary(refinement: Any) -> str:
    highest = max((rise for _, rise in refinement.raises), default=0.0)
    return (
        f"Scores shifted by {refinement.shift:+.2f}, thresholds raised by up to {highest:.2f}, from "
        f"{refinement.num_impostor_speakers} impostor speakers and {refinement.num_genuine} genuine recordings."
    )


def _answer(args: argparse.Namespace, answer: dict[str, Any], text: str) -> int:
    if args.json:
        print_json(answer)
    else:
        print(text)
    return EXIT_ACCEPT


def _speakers(folder: Path) -> dict[str, list[Path]]:
    """The recordings in each sub-folder."""
    if not folder.is_dir():
        raise CalibrationError(f"{folder}: no such folder; expected one with a sub-folder for each speaker")
    found = {
        each.name: sorted(file for file in each.iterdir() if file.is_file() and not file.name.startswith("."))
        for each in sorted(folder.iterdir())
        if each.is_dir()
    }
    if not found:
        raise CalibrationError(f"{folder}: no sub-folder; expected one for each speaker, with recordings in it")
    return found


def _scores(verifiers: Sequence[Verifier], files: Sequence[Path]) -> tuple[list[float], list[Heard]]:
    """LLRs of every usable recording against every profile, and where each was heard; others go to standard error."""
    from ..audio import read_audio
    from ..conditions import Heard

    scores, heard = [], []
    for file in files:
        try:
            waveform, _ = read_audio(file, verifiers[0].encoder.spec.sample_rate)
        except AudioError as error:
            print_error(f"left out: {error}")
            continue
        examined = verifiers[0].examine(waveform, verifiers[0].encoder.spec.sample_rate)
        decision, embedding = examined.decision, examined.embedding
        if decision.score is None or embedding is None or decision.quality is None:
            print_error(f"left out: {file}: {decision.reason}")
            continue
        scores.append(decision.score)
        heard.append(Heard.of(decision.quality))
        for verifier in verifiers[1:]:
            score = verifier.decide(embedding, decision.quality).score
            if score is not None:
                scores.append(score)
    return scores, heard
