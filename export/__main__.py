"""``python -m export make | calibrate | guards | cohort | browser | study``: model files, and for other languages."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from train.calibration.thresholds import SAFETY
from train.calibration.weights import GROUPS
from train.progress import Progress, time_left

from .chain import Calibrating, Options, export_model, recalibrate
from .cohort import SPEAKERS, add_cohort
from .gates import GateFailed
from .guards import add_guards
from .quantise import CORRECTIONS, Scheme

EXIT_GATE = 1
EPILOG = """examples:
  python -m export make runs/base/best.pt -o base.onnx --speech prepared/speechocean762 prepared/emogator \\
      --calibrate prepared/ased prepared/nemo
  python -m export calibrate base.onnx prepared/ased prepared/nemo -o new.onnx
  python -m export cohort base.onnx prepared/librispeech -o base.onnx --source "LibriSpeech, CC BY 4.0"
  python -m export browser base -o examples/browser/model
  python -m export guards new.onnx --speech prepared/ased prepared/nemo --sounds sounds/esc10
  python -m export study runs/base/best.pt --speech prepared/speechocean762 -o quantisation.md"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``python -m export``."""
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_make(commands)
    _add_calibrate(commands)
    _add_cohort(commands)
    _add_browser(commands)
    _add_guards(commands)
    _add_study(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; exit status 0, or 1 if a gate failed."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    started = time.monotonic()
    try:
        arguments.run(parser, arguments)
    except GateFailed as error:
        print(f"export stopped: {error}", file=sys.stderr)
        return EXIT_GATE
    print(f"done in {time_left(time.monotonic() - started)}")
    return 0


def _add_make(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    what = (
        "Make one int8 model file of a checkpoint: ranges and weights fitted on real speech, every step with its gate, "
        "scores calibrated on the int8 file itself."
    )
    parser = commands.add_parser("make", help="a model file of a checkpoint", description=what)
    _add_checkpoint(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the .onnx file to write")
    parser.add_argument(
        "--calibrate", type=Path, nargs="+", default=[], metavar="SET",
        help="prepared sets of two corpora or more, not trained on, that the scores are calibrated on "
        "(default: write no calibration)",
    )  # fmt: skip
    _add_calibration(parser)
    parser.add_argument("--name", metavar="TIER", help="name of the model (default: the checkpoint's)")
    parser.add_argument("--input", choices=("features", "waveform"), default="features", help="what the file takes")
    parser.add_argument("--correction", choices=CORRECTIONS, default="none", help="what makes up for rounding")
    parser.add_argument(
        "--equalisation",
        type=float,
        default=0.0,
        metavar="0..1",
        help="strength of the evening of channels (default: 0)",
    )
    parser.add_argument("--fit-clips", type=int, default=Options().fit_clips, metavar="N")
    parser.add_argument("--correct-clips", type=int, default=Options().correct_clips, metavar="N")
    parser.add_argument("--eer-clips", type=int, default=Options().eer_clips, metavar="N", help="0 leaves the EER out")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of the fit (the timing always has one)")
    parser.add_argument(
        "--keep-going", action="store_true", help="write the file even if a gate fails; its metadata name which"
    )
    parser.set_defaults(run=_make)


def _add_calibrate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    what = (
        "Calibrate the scores of a file of `python -m export make` anew; its embeddings and profiles stay as they are."
    )
    parser = commands.add_parser("calibrate", help="new scores for a model file", description=what)
    parser.add_argument("model", type=Path, metavar="FILE", help="the .onnx file")
    parser.add_argument(
        "calibrate", type=Path, nargs="+", metavar="SET",
        help="prepared sets of two corpora or more that the encoder was not trained on",
    )  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the .onnx file to write")
    _add_calibration(parser)
    parser.set_defaults(run=_calibrate)


def _add_cohort(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    what = "Put strangers into a model file, on whom every new profile is tried; everything else in it stays."
    parser = commands.add_parser("cohort", help="strangers for a model file", description=what)
    parser.add_argument("model", type=Path, metavar="FILE", help="the .onnx file")
    parser.add_argument("sets", type=Path, nargs="+", metavar="SET", help="prepared sets whose licence allows it")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the .onnx file to write")
    parser.add_argument("--source", required=True, metavar="TEXT", help="who they are, with the licence")
    parser.add_argument("--speakers", type=int, default=SPEAKERS, metavar="N", help=f"how many (default: {SPEAKERS})")
    parser.set_defaults(run=_cohort)


def _add_browser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    what = (
        "Write what a page or another language needs: the model with its front end inside, the calibration of a score "
        "without pitch as JSON, its schema, and test vectors."
    )
    parser = commands.add_parser("browser", help="a model for a page or another language", description=what)
    parser.add_argument("model", metavar="MODEL", help="base, small, or the path of an .onnx file that takes features")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the folder to write")
    parser.add_argument(
        "--calibrate", type=Path, nargs="+", default=[], metavar="SET",
        help="fit the scores anew on these prepared sets, and write scores.json beside "
        "(default: those kept in export/portable_scores)",
    )  # fmt: skip
    _add_calibration(parser)
    parser.set_defaults(run=_browser)


def _add_guards(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    what = (
        "Fit what a model file knows of sounds that are no voice, of a second voice and of a stranger's clip, after "
        "its calibration; its embeddings, scores and profiles stay as they are."
    )
    parser = commands.add_parser("guards", help="guards at enrolment and at the door", description=what)
    parser.add_argument("model", type=Path, metavar="FILE", help="the .onnx file, with a calibration")
    parser.add_argument(
        "--speech", type=Path, nargs="+", required=True, metavar="SET",
        help="prepared sets of two corpora or more that the encoder was not trained on",
    )  # fmt: skip
    parser.add_argument(
        "--sounds", type=Path, nargs="+", required=True, metavar="FOLDER", help="recorded sounds that are no speech"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the .onnx file to write (default: the same)")
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="FOLDER",
        help="keep there what the model heard, for the next fit after a calibration",
    )
    parser.add_argument("--figures", type=Path, metavar="FILE", help="write what the guards find and mistake, as JSON")
    parser.set_defaults(run=_guards)


def _add_study(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    what = "Measure what each way of making up for rounding costs and gains, and each layer's share of the loss."
    parser = commands.add_parser("study", help="what quantisation costs and gains", description=what)
    _add_checkpoint(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the Markdown file to write")
    parser.add_argument("--fit-clips", type=int, default=64, metavar="N")
    parser.add_argument("--held-clips", type=int, default=64, metavar="N")
    parser.add_argument("--eer-clips", type=int, default=600, metavar="N")
    parser.add_argument("--layer-clips", type=int, default=6, metavar="N")
    parser.set_defaults(run=_study)


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="from `python -m train`")
    parser.add_argument(
        "--speech", type=Path, nargs="+", required=True, metavar="SET",
        help="prepared sets (of `python -m train prepare`); half of their speakers to fit on, half to measure with",
    )  # fmt: skip


def _add_calibration(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("calibration of scores")
    group.add_argument(
        "--terms", nargs="+", choices=tuple(GROUPS), metavar="TERM",
        help=f"what the score weighs beside the cosine, of: {', '.join(GROUPS)} "
        "(default: those that lower the Cllr of corpora left out)",
    )  # fmt: skip
    group.add_argument(
        "--noise", type=Path, nargs="+", default=[], metavar="FOLDER",
        help="recordings of noise that half of the tests are heard in, beside pink noise",
    )  # fmt: skip
    group.add_argument(
        "--emotion-axis", nargs="+", default=[], metavar="CORPUS",
        help="corpora among the sets that give the emotion axis, which the term emotion_shift is measured along",
    )  # fmt: skip
    group.add_argument(
        "--channels", action="store_true",
        help="hear a few clips of each speaker through telephones, codecs and rooms too, enrolled and tested",
    )  # fmt: skip
    group.add_argument(
        "--labels", type=Path, metavar="FILE", help="corrections of the sets' labels, from `python -m train audit -o`"
    )
    group.add_argument(
        "--safety", type=float, default=SAFETY, metavar="TIMES",
        help="how many times more strictly than the impostors of all sets together ask the thresholds are, since sets "
        f"differ (default: {SAFETY:g})",
    )  # fmt: skip


def _calibrating(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Calibrating | None:
    """The options of the calibration; None without any set."""
    terms = arguments.terms
    for option, given in (
        ("terms", terms),
        ("noise", arguments.noise),
        ("emotion-axis", arguments.emotion_axis),
        ("channels", arguments.channels),
        ("labels", arguments.labels),
    ):
        if given and not arguments.calibrate:
            parser.error(f"--{option} belongs to a calibration: expected --calibrate")
    if not 1.0 <= arguments.safety <= 10.0:
        parser.error(f"expected --safety from 1 to 10, got {arguments.safety}")
    if "emotion_shift" in (terms or ()) and not arguments.emotion_axis:
        parser.error("--terms emotion_shift is measured along the emotion axis: expected --emotion-axis CORPUS")
    if len(set(terms or ())) < len(terms or ()):
        parser.error(f"expected --terms without repeats, got {' '.join(terms)}")
    if not arguments.calibrate:
        return None
    return Calibrating(
        arguments.calibrate,
        terms,
        arguments.noise,
        arguments.emotion_axis,
        arguments.channels,
        arguments.labels,
        arguments.safety,
    )


def _report(line: str) -> None:
    print(line, flush=True)


def _make(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    calibrating = _calibrating(parser, arguments)
    import torch

    torch.set_num_threads(arguments.threads)
    options = Options(
        scheme=Scheme(arguments.correction, arguments.equalisation),
        flavour=arguments.input,
        fit_clips=arguments.fit_clips,
        correct_clips=arguments.correct_clips,
        eer_clips=arguments.eer_clips,
        require=not arguments.keep_going,
    )
    export_model(
        arguments.checkpoint,
        arguments.output,
        arguments.speech,
        options,
        calibrating,
        arguments.name,
        _report,
        Progress,
    )


def _calibrate(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    calibrating = _calibrating(parser, arguments)
    assert calibrating is not None  # the sets are required
    recalibrate(arguments.model, arguments.output, calibrating, _report)


def _cohort(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    add_cohort(arguments.model, arguments.output, arguments.sets, arguments.source, arguments.speakers, _report)


def _browser(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    from emoinv_edge.encoder import Encoder

    from .browser import export_browser
    from .portable import PORTABLE_GROUPS

    arguments.terms = arguments.terms or (list(PORTABLE_GROUPS) if arguments.calibrate else None)
    foreign = set(arguments.terms or ()) - set(PORTABLE_GROUPS)
    if foreign:
        parser.error(f"expected --terms of {', '.join(PORTABLE_GROUPS)}, got {', '.join(sorted(foreign))}")
    export_browser(Encoder.open(arguments.model), arguments.output, _calibrating(parser, arguments), _report)


def _guards(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    out = arguments.output or arguments.model
    figures = add_guards(arguments.model, out, arguments.speech, arguments.sounds, arguments.cache, _report)
    for name, shares in figures.items():
        parts = ", ".join(f"{label} {share:.1%}" for label, share in shares.items() if label != "all")
        print(f"{name}: {shares['all']:.1%} ({parts})")
    if arguments.figures is not None:
        arguments.figures.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _study(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    from .study import study

    counts = (arguments.fit_clips, arguments.held_clips, arguments.eer_clips, arguments.layer_clips)
    arguments.output.write_text(study(arguments.checkpoint, arguments.speech, *counts), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
