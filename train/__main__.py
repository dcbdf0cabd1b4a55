"""The training's commands: ``python -m train corpora|prepare|teach|fit|evaluate|ablate``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from emoinv_edge.errors import EmoinvError

from .steps import add_steps


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str, text: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name, help=summary, description=f"{summary}\n\n{text}", formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "evaluate",
        "Error rates of a model on sets of speech.",
        """A set is a folder with manifest.csv: audio files (path, speaker, gender, emotion, seconds) or one made by
`python -m train prepare`. Four protocols, by cosine: neutral, same, pairs (different emotions) and enrol
(four neutral clips against every other emotion). 95 % intervals by bootstrap over the speakers. Where the
model carries a calibration, its log-likelihood ratios are judged as the runtime makes them too.

examples:
  python -m train evaluate emoinv_edge/models/base.onnx ../shared/eval/ravdess ../shared/eval/librispeech
  python -m train evaluate runs/base/best.pt prepared/nemo --json > figures.json
  python -m train evaluate emoinv_edge/models/base.onnx ../shared/eval/ravdess --report report.html""",
    )
    parser.add_argument("model", type=Path, help="an .onnx file, or a checkpoint of `python -m train fit`")
    parser.add_argument("sets", type=Path, nargs="+", metavar="SET", help="a folder with manifest.csv")
    parser.add_argument("--json", action="store_true", help="print every figure as JSON instead of the table")
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="write a self-contained page with figures")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap; 0 for no intervals (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (0)")
    parser.add_argument("--threads", type=int, default=1, help="threads of one inference (1)")
    parser.add_argument("--max-clips", type=int, default=None, help="thin a larger set evenly to so many clips (6000)")
    parser.add_argument("--cache", type=Path, help="folder for embeddings (the user's cache folder)")
    parser.add_argument("--no-cache", action="store_true", help="neither read nor write embeddings")
    parser.add_argument("--no-llr", action="store_true", help="leave the log-likelihood ratios out")
    parser.set_defaults(run=run_evaluate)


def run_evaluate(arguments: argparse.Namespace) -> int:
    from .evaluate import evaluate_model, format_table
    from .progress import Progress

    if arguments.resamples < 0:
        raise ValueError(f"expected --resamples of 0 or more, got {arguments.resamples}")
    results = evaluate_model(
        arguments.model,
        arguments.sets,
        resamples=arguments.resamples,
        seed=arguments.seed,
        num_threads=arguments.threads,
        max_clips=arguments.max_clips,
        cache_folder=arguments.cache,
        use_cache=not arguments.no_cache,
        llr=not arguments.no_llr,
        progress=lambda name: Progress(f"embed {name}"),
    )
    if results is None:  # another rank prints
        return 0
    if arguments.report is not None:
        from .report import write_report

        write_report(arguments.report, results)
        print(f"wrote {arguments.report}", file=sys.stderr)
    print(json.dumps(results, indent=1, sort_keys=True) if arguments.json else format_table(results["sets"]))
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
    add_evaluate(commands)
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
