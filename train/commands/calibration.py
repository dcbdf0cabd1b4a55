"""``python -m train calibration``: what a model's calibration is worth on corpora that it was not fitted on."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from emoinv_edge.encoder import Encoder

from ..calibration.channels import CorpusChannels
from ..calibration.speech import noises_of
from ..calibration.study import format_study, study
from ..calibration.weights import GROUPS
from ..prepare import PreparedSet
from . import add_command

__all__ = ["add", "run"]


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `python -m train`."""
    parser = add_command(
        commands,
        "calibration",
        "What a model's calibration is worth on corpora that it was not fitted on.",
        """Fits the same terms with each corpus left out, judges them on it, clean and in noise, ranks and at one
threshold for all, and rehearses enrolment and guarded adaptation with the model's own calibration. Prints
the tables in Markdown. The sets are those that `python -m export calibrate` takes.

examples:
  python -m train calibration emoinv_edge/models/base.onnx prepared/ased prepared/nemo --noise sounds
  python -m train calibration my.onnx prepared/ased prepared/nemo --terms f0 norm --sessions 0 --json""",
    )
    parser.add_argument("model", type=Path, help="an .onnx file with a calibration")
    parser.add_argument("sets", type=Path, nargs="+", metavar="SET", help="prepared sets, one corpus each")
    parser.add_argument("--noise", type=Path, nargs="+", default=[], metavar="FOLDER", help="beside pink noise")
    parser.add_argument("--terms", nargs="+", metavar="TERM", help="beside the cosine (those of the model)")
    parser.add_argument("--sessions", type=int, default=1000, help="of adaptation, an owner; 0 leaves it out (1000)")
    parser.add_argument("--tries", type=int, default=60, help="of joined recordings; 0 leaves them out (60)")
    parser.add_argument(
        "--channels", action="store_true", help="telephones, codecs and rooms too, each corpus left out"
    )
    parser.add_argument(
        "--enrolment", nargs="+", default=[], metavar="CORPUS", help="what enrolment is worth on these, each left out"
    )
    parser.add_argument("--json", action="store_true", help="print every figure as JSON instead of the tables")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Judge the calibration, and print what was found."""
    unknown = sorted(set(arguments.terms or ()) - GROUPS.keys())
    if unknown:
        raise ValueError(f"no term {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    if min(arguments.sessions, arguments.tries) < 0:
        raise ValueError("expected --sessions and --tries of 0 or more")
    encoder = Encoder(arguments.model)
    found = study(
        encoder,
        [PreparedSet(path) for path in arguments.sets],
        noises_of(arguments.noise, encoder.spec.sample_rate),
        arguments.terms,
        arguments.tries,
        arguments.sessions,
        report=lambda line: print(line, file=sys.stderr, flush=True),
        channels=CorpusChannels.simulated(len(arguments.sets)) if arguments.channels else None,
        enrolment=arguments.enrolment,
    )
    print(json.dumps(found, indent=1) if arguments.json else format_study(found))
    return 0
