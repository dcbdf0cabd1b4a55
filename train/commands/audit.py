"""``python -m train audit``: whether the labels of prepared sets are true."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import Commands, add_command


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "audit",
        "Find ids that are one person, ids that hold several, and copies of one recording.",
        """A few clips of each id are embedded by two encoders or more that have no part in the training; what all of
them find is corrected, what some find is listed as unknown. Prints a Markdown table; corrections are ids and numbers.

examples:
  python -m train audit prepared/baved prepared/malayalam --by campplus.onnx eres2net.onnx
  python -m train audit prepared/baved --by campplus.onnx eres2net.onnx -o label_corrections.json""",
    )
    parser.add_argument("sets", type=Path, nargs="+", metavar="SET", help="prepared sets, one corpus each")
    parser.add_argument(
        "--by", type=Path, nargs="+", required=True, metavar="TEACHER",
        help="two encoders or more, .onnx or .pt; a foreign front end lies beside an .onnx file as NAME.json",
    )  # fmt: skip
    parser.add_argument("--per-id", type=int, default=6, help="clips of each id that are embedded (6)")
    parser.add_argument("-o", "--out", type=Path, help="the JSON file that the corrections are added to")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Audit the sets, print the table and keep the corrections."""
    from ..audit import audit, format_audits, write_corrections
    from ..prepare import PreparedSet
    from ..progress import Progress
    from ..teachers import open_teacher

    if arguments.per_id < 2:
        raise ValueError(f"expected --per-id of 2 or more, got {arguments.per_id}")
    encoders = {path.stem: open_teacher(path).embed for path in arguments.by}
    if len(encoders) < len(arguments.by):
        raise ValueError("expected --by files of different names: the table is headed by them")
    sets = [PreparedSet(folder) for folder in arguments.sets]
    shown: dict[str, Progress] = {}

    def report(corpus: str, done: int, total: int) -> None:
        if corpus not in shown:  # its clock starts with its first clip
            shown[corpus] = Progress(f"audit {corpus}")
        shown[corpus](done, total)

    found = audit(sets, encoders, arguments.per_id, report)
    if arguments.out:
        write_corrections(arguments.out, found)
    print(format_audits(found))
    return 0
