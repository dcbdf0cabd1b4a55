"""``python -m export``: make one model file of a checkpoint."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from train.calibrate import GROUPS
from train.progress import Progress, time_left

from .chain import Options, export_model, recalibrate
from .gates import GateFailed
from .quantise import CORRECTIONS, RANGES, Scheme

EXIT_GATE = 1
# What says how a checkpoint becomes a file; of a file of this command nothing but the scores is made anew.
EXPORTED_ONLY = (
    "speech", "name", "input", "activations", "reduce_range", "ranges", "correction", "equalisation",
    "fit_clips", "correct_clips", "eer_clips", "keep_going",
)  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``python -m export``."""
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Make one int8 model file of a checkpoint: ranges and weights fitted on real speech, every "
        "step with its gate, scores calibrated on the int8 file itself.",
        epilog="examples:\n  python -m export runs/base/best.pt -o emoinv_edge/models/base.onnx \\\n"
        "      --speech prepared/speechocean762 prepared/emogator --calibrate prepared/ased prepared/nemo\n"
        "  python -m export old.onnx -o new.onnx --calibrate prepared/ased prepared/nemo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT",
        help="from `python -m train`; or an .onnx file of this command, whose scores alone are calibrated anew",
    )  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the .onnx file to write")
    parser.add_argument(
        "--speech", type=Path, nargs="+", default=[], metavar="SET",
        help="prepared sets (of `python -m train prepare`); half of their speakers to fit on, half for the gates",
    )  # fmt: skip
    parser.add_argument(
        "--calibrate", type=Path, nargs="+", default=[], metavar="SET",
        help="prepared sets of two corpora or more, not trained on, that the scores are calibrated on "
        "(default: write no calibration)",
    )  # fmt: skip
    parser.add_argument(
        "--terms", nargs="+", choices=tuple(GROUPS), metavar="TERM",
        help=f"what the score weighs beside the cosine, of: {', '.join(GROUPS)} "
        "(default: those that lower the Cllr of corpora left out)",
    )  # fmt: skip
    parser.add_argument(
        "--noise", type=Path, nargs="+", default=[], metavar="FOLDER",
        help="recordings of noise: the tests of the calibration are heard in them too, beside pink noise",
    )  # fmt: skip
    parser.add_argument(
        "--moods", nargs="+", default=[], metavar="CORPUS",
        help="corpora among those of --calibrate that tell in which directions moods move embeddings: a share of each "
        "is left out of the cosine, and the term mood_shift says how far a test lies along their axis",
    )  # fmt: skip
    parser.add_argument("--name", metavar="TIER", help="name of the model (default: the checkpoint's)")
    parser.add_argument("--input", choices=("features", "waveform"), default="features", help="what the file takes")
    scheme = parser.add_argument_group("quantisation")
    scheme.add_argument("--activations", choices=("uint8", "int8"), default="uint8", help="U8S8 (default) or S8S8")
    scheme.add_argument("--reduce-range", action="store_true", help="7-bit weights, for x86 without VNNI")
    scheme.add_argument("--ranges", choices=RANGES, default=Scheme().ranges, help="how activations' ranges are found")
    scheme.add_argument(
        "--correction", choices=CORRECTIONS, default=Scheme().correction, help="what makes up for rounding"
    )
    scheme.add_argument(
        "--equalisation",
        type=float,
        default=0.0,
        metavar="0..1",
        help="strength of the evening of channels (default: 0)",
    )
    scheme.add_argument("--fit-clips", type=int, default=Options().fit_clips, metavar="N")
    scheme.add_argument("--correct-clips", type=int, default=Options().correct_clips, metavar="N")
    scheme.add_argument("--eer-clips", type=int, default=Options().eer_clips, metavar="N", help="0 leaves the EER out")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of the fit (the timing always has one)")
    parser.add_argument(
        "--keep-going", action="store_true", help="write the file even if a gate fails; the card says which"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the chain; exit status 0, or 1 if a gate failed."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    again = arguments.checkpoint.suffix == ".onnx"
    if again and not arguments.calibrate:
        parser.error("an .onnx file is only calibrated anew: expected --calibrate")
    for option in EXPORTED_ONLY if again else ():
        if getattr(arguments, option) != parser.get_default(option):
            given = option.replace("_", "-")
            parser.error(f"an .onnx file is only calibrated anew: expected --calibrate without --{given}")
    if not again and not arguments.speech:
        parser.error("expected --speech with a checkpoint: ranges and weights are fitted on it")
    for option in ("terms", "noise", "moods"):
        if getattr(arguments, option) and not arguments.calibrate:
            parser.error(f"--{option} belongs to a calibration: expected --calibrate")
    if "mood_shift" in (arguments.terms or ()) and not arguments.moods:
        parser.error("--terms mood_shift needs to know moods: expected --moods CORPUS")
    if len(set(arguments.terms or ())) < len(arguments.terms or ()):
        parser.error(f"expected --terms without repeats, got {' '.join(arguments.terms)}")
    torch.set_num_threads(arguments.threads)
    started = time.monotonic()
    options = Options(
        scheme=Scheme(
            arguments.activations,
            7 if arguments.reduce_range else 8,
            arguments.ranges,
            arguments.correction,
            arguments.equalisation,
        ),
        flavour=arguments.input,
        fit_clips=arguments.fit_clips,
        correct_clips=arguments.correct_clips,
        eer_clips=arguments.eer_clips,
        require=not arguments.keep_going,
    )

    def report(line: str) -> None:
        print(line, flush=True)

    try:
        if again:
            recalibrate(
                arguments.checkpoint, arguments.output, arguments.calibrate, report, arguments.terms, arguments.noise,
                arguments.moods,
            )  # fmt: skip
        else:
            export_model(
                arguments.checkpoint, arguments.output, arguments.speech, options, arguments.calibrate,
                arguments.name, report, Progress, arguments.terms, arguments.noise, arguments.moods,
            )  # fmt: skip
    except GateFailed as error:
        print(f"export stopped: {error}", file=sys.stderr)
        return EXIT_GATE
    print(f"done in {time_left(time.monotonic() - started)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
