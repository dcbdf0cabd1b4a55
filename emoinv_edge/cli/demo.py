"""``emoinv demo``: enrol a voice from neutral clips, then verify it in other emotions, and other voices."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.resources
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AudioError, EnrolmentError
from .options import add_command, add_shared, open_encoder
from .terminal import (
    EXIT_ACCEPT,
    EXIT_NO_DECISION,
    EXIT_REJECT,
    console,
    decision_fields,
    one_in,
    print_error,
    print_json,
    track,
    verdict_text,
)

if TYPE_CHECKING:
    from ..decision import Decision
    from ..encoder import Encoder

__all__ = ["Clip", "Trial", "add_parser", "find_clips", "run"]

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf", ".w64")
BUNDLED_VOICE = "awb"
MAX_ENROL_CLIPS = 4
SYNTHETIC = (
    "The clips are synthetic: four voices of the synthesiser flite, each in five emotions. They show that the "
    "software works, not how often it errs on people. For your own: emoinv demo --clips FOLDER"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Clip:
    """One recording of a folder with a sub-folder a speaker; its emotion is the file's name without number."""

    path: Path
    speaker: str
    emotion: str


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """One clip tried against the enrolled voice."""

    clip: Clip
    is_target: bool
    decision: Decision
    ms: float

    @property
    def right(self) -> bool | None:
        """Whether the decision is right; None where none was made."""
        if self.decision.score is None:
            return None
        return self.decision.accepted == self.is_target


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of ``emoinv demo``."""
    parser = add_command(
        subparsers,
        "demo",
        "Enrol a voice from neutral clips, then verify it in other emotions, and other voices. Stores nothing.",
        "emoinv demo\n  emoinv demo --clips FOLDER --voice ana     (FOLDER/ana/neutral-1.wav, FOLDER/ana/angry.wav, "
        "FOLDER/bob/...)",
    )
    parser.add_argument(
        "--clips",
        type=Path,
        metavar="FOLDER",
        help="your own recordings, one sub-folder a speaker; files named neutral* are enrolled, or else the first 3",
    )
    parser.add_argument("--voice", metavar="NAME", help="the speaker to enrol (default: awb, or the first sub-folder)")
    add_shared(parser, run, far=True)


def find_clips(folder: Path) -> list[Clip]:
    """The clips in the sub-folders of `folder`, sorted by speaker and name.

    Raises
    ------
    AudioError
        If there is no folder, or no sub-folder with audio files.
    """
    if not folder.is_dir():
        raise AudioError(f"{folder}: expected a folder with one sub-folder a speaker; check the path")
    clips = [
        Clip(path, path.parent.name, re.sub(r"[-_ ]*\d*$", "", path.stem) or path.stem)
        for path in sorted(folder.glob("*/*"))
        if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file()
    ]
    if not clips:
        raise AudioError(
            f"{folder}: no audio files in its sub-folders; put each speaker's recordings into a sub-folder of their "
            "own, as FOLDER/ana/neutral-1.wav"
        )
    return clips


def choose_enrolment(clips: list[Clip], voice: str) -> list[Clip]:
    """The clips of `voice` to enrol: its neutral ones, else its first three; at least one must be left to verify."""
    own = [clip for clip in clips if clip.speaker == voice]
    if not own:
        raise EnrolmentError(f"no speaker {voice!r} here; choose one of {sorted({clip.speaker for clip in clips})}")
    neutral = [clip for clip in own if "neutral" in clip.path.stem.lower()]
    chosen = neutral[:MAX_ENROL_CLIPS] or own[:3]
    if len(chosen) == len(own):
        raise EnrolmentError(
            f"all {len(own)} clips of {voice!r} would be enrolled and none left to verify; add recordings, "
            "best in another emotion"
        )
    return chosen


def run(args: argparse.Namespace) -> int:
    """Run the demo; 0 if every decision was right, 1 if one was wrong, 2 if one could not be made, 3 on errors."""
    encoder = open_encoder(args)
    if args.clips is not None:
        return run_on(args.clips, args, encoder)
    with bundled_clips() as folder:
        return run_on(folder, args, encoder)


@contextlib.contextmanager
def bundled_clips() -> Iterator[Path]:
    """The folder of the bundled clips; where the library lies in a zip, a copy for the moment."""
    clips = importlib.resources.files("emoinv_edge") / "demo" / "clips"
    if isinstance(clips, Path):
        yield clips
        return
    with tempfile.TemporaryDirectory() as temporary:
        for voice in clips.iterdir():
            for clip in voice.iterdir() if voice.is_dir() else ():
                copy = Path(temporary, voice.name, clip.name)
                copy.parent.mkdir(exist_ok=True)
                copy.write_bytes(clip.read_bytes())
        yield Path(temporary)


def run_on(folder: Path, args: argparse.Namespace, encoder: Encoder) -> int:
    """The demo on the clips of one folder."""
    from ..audio import read_audio
    from ..enrolment import Enroller
    from ..verifier import Verifier

    rate = encoder.spec.sample_rate
    clips = find_clips(folder)
    voice = args.voice or (clips[0].speaker if args.clips else BUNDLED_VOICE)
    enrolled = choose_enrolment(clips, voice)
    enroller = Enroller(encoder)
    taken = 0
    for clip in track(enrolled, f"enrolling {voice}", show=not args.json):
        feedback = enroller.add(read_audio(clip.path, rate)[0], rate)
        taken += feedback.accepted
        if not feedback.accepted:
            print_error(f"{clip.speaker}/{clip.path.name} was not enrolled: {feedback.message}")
    verifier = Verifier(encoder, enroller.profile(voice), args.far, extrapolate=args.extrapolate)
    tests = sorted((clip for clip in clips if clip not in enrolled), key=lambda clip: clip.speaker != voice)
    trials = []
    for clip in track(tests, "verifying", show=not args.json):
        waveform, _ = read_audio(clip.path, rate)
        start = time.perf_counter()
        decision = verifier.verify(waveform, rate)
        trials.append(Trial(clip, clip.speaker == voice, decision, 1000.0 * (time.perf_counter() - start)))
    report = {
        "model": encoder.spec.name,
        "model_fingerprint": encoder.fingerprint,
        "synthetic": args.clips is None,
        "enrolled": {"speaker": voice, "clips": taken, "seconds": enroller.seconds},
        "target_far": args.far,
        "threshold": verifier.threshold.llr,
        "trials": [trial_fields(trial) for trial in trials],
        "wrong": sum(trial.right is False for trial in trials),
        "undecided": sum(trial.right is None for trial in trials),
    }
    if args.json:
        print_json(report)
    else:
        print_report(report, trials)
    if report["wrong"]:
        return EXIT_REJECT
    return EXIT_NO_DECISION if report["undecided"] else EXIT_ACCEPT


def trial_fields(trial: Trial) -> dict[str, Any]:
    """A trial as a JSON object."""
    return {
        "file": f"{trial.clip.speaker}/{trial.clip.path.name}",
        "speaker_said": trial.clip.speaker,
        "emotion": trial.clip.emotion,
        "is_target": trial.is_target,
        "right": trial.right,
        "ms": round(trial.ms, 1),
        **decision_fields(trial.decision),
    }


def print_report(report: dict[str, Any], trials: list[Trial]) -> None:
    """The table of decisions, and a summary."""
    from rich.table import Table

    out = console()
    enrolled = report["enrolled"]
    if report["synthetic"]:
        out.print(SYNTHETIC)
    out.print(
        f"Enrolled [bold]{enrolled['speaker']}[/] from {enrolled['clips']} clips, {enrolled['seconds']:.1f} s. "
        f"An LLR of {report['threshold']:.2f} or more is accepted: {one_in(report['target_far'])} impostors at most."
    )
    table = Table(caption=f"model {report['model']}, fingerprint {report['model_fingerprint'][:12]}")
    for heading, justify in (("voice", "left"), ("emotion", "left"), ("decision", "left"), ("LLR", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    table.add_column("speech s", justify="right")
    table.add_column("ms", justify="right")
    table.add_column("")
    previous = trials[0].clip.speaker if trials else ""
    for trial in trials:
        if trial.clip.speaker != previous:
            table.add_section()
            previous = trial.clip.speaker
        decision = trial.decision
        table.add_row(
            trial.clip.speaker,
            trial.clip.emotion,
            verdict_text(decision),
            "-" if decision.score is None else f"{decision.score:.1f}",
            "-" if decision.quality is None else f"{decision.quality.net_speech_s:.1f}",
            f"{trial.ms:.0f}",
            {True: "", False: "[bold red]wrong[/]", None: decision.reason.split(":")[0]}[trial.right],
        )
    out.print(table)
    own = [trial for trial in trials if trial.is_target]
    others = [trial for trial in trials if not trial.is_target]
    milliseconds = sorted(trial.ms for trial in trials)
    out.print(
        f"{enrolled['speaker']} accepted in {sum(trial.decision.accepted for trial in own)} of {len(own)} clips; "
        f"other voices rejected in {sum(trial.right is True for trial in others)} of {len(others)}. "
        f"Median {milliseconds[len(milliseconds) // 2]:.0f} ms a decision on one thread."
    )
    out.print("Next: emoinv enroll NAME FILE... (or --mic), then emoinv verify NAME FILE", soft_wrap=True)
