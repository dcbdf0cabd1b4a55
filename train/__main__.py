"""The training's commands: ``python -m train corpora|prepare|teach|fit|evaluate|calibration|ablate``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from emoinv_edge.errors import EmoinvError

from .commands import calibration, evaluate
from .steps import add_command, add_steps


def add_ablate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        commands,
        "ablate",
        "The paper's table: each part of the method added in turn, and the controls.",
        """Speakers are split into training and development by the hash of their names. All arms start from the same
weights, learn for the same steps, and share the frozen layers below the last stage. A second call with the same
setting goes on where the first stopped; OUT/results.csv and OUT/table.md fill as the runs end.

examples:
  python -m train ablate --start resnet34-lm.onnx --prepared prepared --corpora ased nemo baved -o runs/ablation
  python -m train ablate --start resnet34-lm.onnx --prepared prepared --corpora ased --arms aam +cosine -o runs/a
  python -m train ablate --start resnet34-lm.onnx --prepared prepared --corpora ased --ordinary malayalam -o runs/b""",
    )
    parser.add_argument("--start", type=Path, required=True, help="the public ResNet34-LM (.onnx), or a checkpoint")
    parser.add_argument("--prepared", type=Path, required=True, help="the prepared root; taught (`train teach`)")
    parser.add_argument("--corpora", nargs="+", required=True, metavar="CORPUS", help="prepared emotional corpora")
    parser.add_argument("--ordinary", nargs="+", default=[], metavar="CORPUS", help="ordinary speech that has morphs")
    parser.add_argument(
        "--noise", type=Path, nargs="*", default=[], metavar="FOLDER", help="noise recordings, for the arm channels"
    )
    parser.add_argument("--rooms", type=int, default=60, help="simulated rooms of that arm (60)")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="only these (all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="(1 2 3)")
    parser.add_argument("--steps", type=int, default=300, help="of every arm (300)")
    parser.add_argument("--pairs", type=int, default=16, help="of a batch (16)")
    parser.add_argument("--pool-batches", type=int, default=150, help="different batches of views (150)")
    parser.add_argument("--rate", type=float, default=2e-4, help="peak learning rate (2e-4)")
    parser.add_argument("--pair-weight", type=float, help="lambda of the cosine loss, in the arms that have it")
    parser.add_argument("--threads", type=int, help="of torch (all cores)")
    parser.set_defaults(run=run_ablate)


def run_ablate(arguments: argparse.Namespace) -> int:
    import torch

    from .ablation import ARMS, Budget, ablate, format_table
    from .noise_and_rooms import read_noises, simulate_rooms
    from .recipes import open_sources
    from .steps import _start

    known = {arm.name: arm for arm in ARMS}
    unknown = sorted(set(arguments.arms or ()) - known.keys())
    if unknown:
        raise ValueError(f"no arm {', '.join(unknown)}; there are {', '.join(known)}")
    if not arguments.start.is_file():
        raise ValueError(f"{arguments.start}: no such file; give a checkpoint or the published ResNet34-LM .onnx")
    arms = [known[name] for name in arguments.arms] if arguments.arms else list(ARMS)
    if arguments.pair_weight is not None:
        arms = [
            dataclasses.replace(arm, recipe=dataclasses.replace(arm.recipe, pair_weight=arguments.pair_weight))
            if arm.recipe.pair_weight
            else arm
            for arm in arms
        ]
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    encoder, spec = _start(arguments.start)
    emotional, _ = open_sources(arguments.prepared, dict.fromkeys(arguments.corpora, 1.0), "research")
    ordinary, morphs = open_sources(arguments.prepared, dict.fromkeys(arguments.ordinary, 1.0), "research")
    noises = read_noises(arguments.noise) if arguments.noise else []
    budget = Budget(arguments.steps, arguments.pairs, min(arguments.pool_batches, arguments.steps), arguments.rate)
    rows = ablate(
        encoder, spec, [(source.clips, source.embeddings) for source in emotional], arguments.out, arms,
        arguments.seeds, budget, [(source.clips, source.embeddings) for source in ordinary], morphs,
        noises, simulate_rooms(arguments.rooms, 0) if noises else [],
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )  # fmt: skip
    table = format_table(rows, arms)
    (arguments.out / "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="python -m train",
        description="Train, distil and judge speaker encoders; needs the extra: pip install -e '.[train]'.",
        epilog="Each command has --help with examples. The usual order: corpora, prepare, teach, fit, evaluate.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_steps(commands)
    evaluate.add(commands)
    calibration.add(commands)
    add_ablate(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it worked, 1 for broken input (said in one line), 2 for wrong usage."""
    arguments = build_parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (EmoinvError, ValueError, OSError) as error:
        print(f"python -m train {arguments.command}: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in {"train", "emoinv_edge"}:
            raise
        print(
            f"python -m train {arguments.command}: the package {error.name} is missing; "
            "install what training needs with: pip install -e '.[train]'",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
