"""``python -m train fit small``: base compressed."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import Commands
from .options import add_fit, finish, read_setting


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_fit(
        commands,
        "small",
        "Compress base: cut, then distilled stage by stage.",
        """examples:
  python -m train fit small --start runs/base/best.pt --teacher base.onnx --prepared prepared -o runs/small
  python -m train fit small --start runs/base/best.pt --prepared prepared --device cuda --batch 256 -o runs/small
  python -m train fit small --start runs/base/best.pt --prepared prepared --go-on-from small.pt -o runs/further""",
        "base, a checkpoint",
    )
    parser.add_argument("--teacher", type=Path, metavar="FILE", help="the start as an int8 file, which is faster")
    parser.add_argument("--go-on-from", type=Path, metavar="FILE", help="a checkpoint of small, instead of a cut")
    parser.add_argument("--steps", type=int, help="(as in the recipe)")
    parser.add_argument("--rate", type=float, help="Muon's peak learning rate (as in the recipe)")
    parser.add_argument("--batch", type=int, default=32, help="crops of a step; on a GPU 256 (32)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train it."""
    import dataclasses

    from ...compress import StageTeacher
    from ...distributed import process_group
    from ...model import load_start
    from ...recipes import SMALL_HINTS, SMALL_SHAPE, SMALL_STAGES, credited, fit_small

    changes = {name: getattr(arguments, name) for name in ("steps", "rate") if getattr(arguments, name) is not None}
    for name, value in {**changes, "batch": arguments.batch}.items():
        if not value > 0:
            raise ValueError(f"expected --{name} above 0, got {value}")
    given = read_setting(arguments)
    begun, made_of, options = None, given.provenance, given.options
    hints: tuple[int, ...] = SMALL_HINTS
    if arguments.go_on_from:  # an encoder that was distilled before does not need the stages any more
        begun, _, known = load_start(arguments.go_on_from)
        made_of, hints, options = credited(made_of, known), (), options | {"hints_until": 0.0}
    with process_group():
        fit_small(
            given.encoder, dataclasses.replace(given.spec, name="small"), arguments.prepared, arguments.out,
            SMALL_SHAPE, dataclasses.replace(SMALL_STAGES, **changes), arguments.batch, noises=given.noises,
            rooms=given.rooms, teacher=StageTeacher(arguments.teacher, hints) if arguments.teacher else None,
            start=begun, provenance=made_of, **options,
        )  # fmt: skip
    return finish(arguments)
