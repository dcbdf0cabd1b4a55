"""The commands that make a model, in order: corpora, prepare, revoice, teach, fuse, morph, fit."""

from __future__ import annotations

import argparse
import functools
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .prepare import PreparedSet

__all__ = ["add_command", "add_steps"]

Commands = argparse._SubParsersAction


def add_command(commands: Commands, name: str, summary: str, text: str) -> argparse.ArgumentParser:
    """A parser of one command whose help keeps its examples as written."""
    return commands.add_parser(
        name, help=summary, description=f"{summary}\n\n{text}", formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_steps(commands: Commands) -> None:
    """Add the commands to `python -m train`."""
    parser = add_command(
        commands,
        "corpora",
        "The corpora that have a recipe, or what one unpacked folder holds.",
        """examples:
  python -m train corpora
  python -m train corpora nemo downloads/nEMO""",
    )
    parser.add_argument("corpus", nargs="?", help="a corpus of the list")
    parser.add_argument("folder", nargs="?", type=Path, help="where it is unpacked")
    parser.set_defaults(run=run_corpora)

    parser = add_command(
        commands,
        "prepare",
        "Decode, trim and store a corpus as 16 kHz int16 with a manifest.",
        """A clip that cannot be used is listed in skipped.csv with its reason. Folders of one corpus are joined.

examples:
  python -m train prepare nemo downloads/nEMO -o prepared
  python -m train prepare librispeech downloads/part1 downloads/part2 -o prepared
  python -m train prepare mine --csv my-clips.csv -o prepared
  torchrun --nproc-per-node 8 -m train prepare voxceleb voxceleb2 -o prepared --shard-hours 4""",
    )
    parser.add_argument("corpus", help="its name: a corpus of `python -m train corpora`, or yours with --csv")
    parser.add_argument("folders", type=Path, nargs="*", metavar="FOLDER", help="where it is unpacked")
    parser.add_argument("--csv", type=Path, help="a list of your own: path, speaker, [gender, emotion, sentence]")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the prepared root; a folder is made in it")
    parser.add_argument("--per-speaker", type=int, help="at most so many clips of a speaker, spread over them (all)")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode (2)")
    parser.add_argument(
        "--shard-hours", type=float, help="for a corpus like VoxCeleb: tar shards of so many hours (train.shards)"
    )
    parser.set_defaults(run=run_prepare)

    parser = add_command(
        commands,
        "revoice",
        "Make further voices of prepared sets: the same clips faster or slower, as other speakers.",
        """The copies lie beside the set, in a set named CORPUS+voices. Speakers held out of training get none.

examples:
  python -m train revoice prepared/malayalam prepared/librispeech""",
    )
    parser.add_argument("sets", type=Path, nargs="+", metavar="SET", help="prepared sets")
    parser.add_argument("--per-voice", type=int, help="clips of each voice (as the recipe says, else 6)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (0)")
    parser.set_defaults(run=run_revoice)

    parser = add_command(
        commands,
        "teach",
        "Embed every clip of prepared sets by the initial encoder, once.",
        """The embeddings are kept as public.npy beside each set. With --beside, other teachers embed the sets too (kept
in a folder teachers/), and what their mean score reaches is printed: the ceiling of distilling them together.

examples:
  python -m train teach resnet34-lm.onnx prepared/*
  python -m train teach resnet34-lm.onnx prepared/nemo --beside ecapa.onnx
  torchrun --nproc-per-node 8 -m train teach resnet34-lm.onnx prepared/voxceleb""",
    )
    parser.add_argument("start", type=Path, help="the public ResNet34-LM (.onnx), or a checkpoint")
    parser.add_argument("sets", type=Path, nargs="+", metavar="SET", help="prepared sets")
    parser.add_argument("--beside", type=Path, nargs="+", default=[], metavar="TEACHER", help="other .onnx or .pt")
    parser.set_defaults(run=run_teach)

    parser = add_command(
        commands,
        "fuse",
        "Join the embeddings of several teachers into one target of the initial encoder's size.",
        """The sets must have been taught by all of them (`teach --beside`); the targets are kept as fused.npy beside
each set. All sets that one run learns from must be fused together, and no others: the projection is fitted on them.

examples:
  python -m train fuse prepared/* --beside eres2net.onnx campplus.onnx""",
    )
    parser.add_argument("sets", type=Path, nargs="+", metavar="SET", help="prepared sets")
    parser.add_argument("--beside", type=Path, nargs="+", required=True, metavar="TEACHER", help="other .onnx or .pt")
    parser.set_defaults(run=run_fuse)

    parser = add_command(
        commands,
        "morph",
        "Make prosody morphs of the open corpora with the WORLD vocoder.",
        """examples:
  python -m train morph prepared/malayalam prepared/librispeech""",
    )
    parser.add_argument("sets", type=Path, nargs="+", metavar="SET", help="prepared sets")
    parser.add_argument("--per-speaker", type=int, help="clips of each speaker (as the recipe says, else 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the shifts (0)")
    parser.add_argument("--workers", type=int, default=2, help="processes (2)")
    parser.set_defaults(run=run_morph)

    parser = add_command(
        commands,
        "fit",
        "Fine-tune an encoder on parallel pairs (base), or compress base (small).",
        """`pairs` fine-tunes a compressed encoder on parallel pairs, its targets by --teacher. `research` goes on from
base with corpora whose licences forbid shipping what comes out.
The run goes on where it stopped if the output folder holds one. Several GPUs or hosts: start with torchrun.

examples:
  python -m train fit base --start resnet34-lm.onnx --prepared prepared --noise sounds -o runs/base
  python -m train fit small --start runs/base/best.pt --teacher base.onnx --prepared prepared -o runs/small
  python -m train fit small --start runs/base/best.pt --prepared prepared --device cuda --batch 256 -o runs/small
  python -m train fit small --start runs/base/best.pt --prepared prepared --go-on-from small.pt -o runs/further
  python -m train fit pairs --start small.pt --teacher base.onnx --prepared prepared -o runs/pairs
  python -m train fit research --start runs/base/best.pt --prepared prepared -o runs/research
  torchrun --nproc-per-node 4 -m train fit base --start resnet34-lm.onnx --prepared prepared -o runs/base""",
    )
    parser.add_argument("tier", choices=("base", "small", "pairs", "research"))
    parser.add_argument("--start", type=Path, required=True, help="the public ResNet34-LM (.onnx), or a checkpoint")
    parser.add_argument("--prepared", type=Path, required=True, help="the prepared root")
    parser.add_argument(
        "--teacher",
        type=Path,
        metavar="FILE",
        help="small: the encoder to start from as an int8 file, which teaches faster; pairs: who gives the targets",
    )
    parser.add_argument("--go-on-from", type=Path, metavar="FILE", help="small: a checkpoint of it, instead of a cut")
    parser.add_argument("--steps", type=int, help="small: of the compression (as the recipe says)")
    parser.add_argument("--rate", type=float, help="small: Muon's peak learning rate (as the recipe says)")
    parser.add_argument("--batch", type=int, help="small: crops of a step; on a GPU 256 (32)")
    parser.add_argument("--noise", type=Path, nargs="*", default=[], metavar="FOLDER", help="noise recordings")
    parser.add_argument("--rooms", type=int, default=150, help="simulated rooms (150)")
    parser.add_argument(
        "--judge", nargs="*", default=[], metavar="CORPUS", help="prepared sets for development figures"
    )
    parser.add_argument("--threads", type=int, help="of torch (all cores)")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda (cpu)")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the run")
    parser.set_defaults(run=run_fit)


# The options that only these tiers have.
_OF_TIER = {"small": ("teacher", "go_on_from", "steps", "rate", "batch"), "pairs": ("teacher",)}


def run_corpora(arguments: argparse.Namespace) -> int:
    from .corpora import CORPORA, clips_of

    if arguments.corpus is None:
        for corpus in CORPORA.values():
            layout = (corpus.clips.__doc__ or "").split("\n")[0]
            print(f"{corpus.name:16} {corpus.use:12} {corpus.licence:46} {layout}")
        return 0
    if arguments.folder is None:
        raise ValueError("expected the folder that holds the corpus after its name")
    clips = clips_of(arguments.corpus, arguments.folder)
    emotions = Counter(clip.emotion or "unknown" for clip in clips).most_common(8)
    speakers = len({clip.speaker for clip in clips if clip.speaker})
    print(f"{len(clips)} clips, {speakers} speakers; " + ", ".join(f"{name} {count}" for name, count in emotions))
    return 0


def run_prepare(arguments: argparse.Namespace) -> int:
    from .corpora import clips_of, read_clip_csv
    from .prepare import prepare, thin_speakers

    if bool(arguments.csv) == bool(arguments.folders):
        raise ValueError("expected either the folders of a corpus or --csv FILE")
    if arguments.csv:
        clips = list(read_clip_csv(arguments.csv))
    else:
        clips = [clip for folder in arguments.folders for clip in clips_of(arguments.corpus, folder)]
    if arguments.per_speaker:
        clips = thin_speakers(clips, arguments.per_speaker)
    out = arguments.out / arguments.corpus
    shown = Progress(f"prepare {arguments.corpus}")
    if arguments.shard_hours is not None:
        from .distributed import process_group
        from .shards import write_shards

        with process_group():
            kept, skipped = write_shards(
                clips, out, arguments.shard_hours, arguments.workers, lambda done: shown(done, len(clips))
            )
    else:
        kept, skipped = prepare(clips, out, arguments.workers, lambda done: shown(done, len(clips)))
    print(f"{out}: {kept} clips" + (f", {skipped} skipped (see {out / 'skipped.csv'})" if skipped else ""))
    return 0


def _start(path: Path):  # type: ignore[no-untyped-def]
    """The encoder to start from, and its spec."""
    from emoinv_edge.spec import EncoderSpec

    from .model import load_checkpoint, load_public_weights

    if path.suffix == ".onnx":
        return load_public_weights(path), EncoderSpec(name="base")
    encoder, spec, _ = load_checkpoint(path)
    return encoder, spec


def _provenance(*paths: Path) -> dict[str, Any]:
    """What these checkpoints were made of, each thing once; of the public weights nothing is known."""
    from .model import load_checkpoint
    from .recipes import credited

    return credited(*(load_checkpoint(path)[2].get("provenance", {}) for path in paths if path.suffix != ".onnx"))


def _show(shown: Progress, total: int, done: int) -> None:
    shown(done, total)


def run_teach(arguments: argparse.Namespace) -> int:
    import numpy as np

    from .distributed import process_group, rank, share
    from .prepare import PreparedSet
    from .recipes import teach
    from .teachers import open_teacher
    from .teachers import teach as teach_beside

    encoder, spec = _start(arguments.start)
    others = [open_teacher(path) for path in arguments.beside]
    with process_group():
        for folder in arguments.sets:
            prepared = PreparedSet(folder)
            shown, total = Progress(f"teach {folder.name}"), len(share(len(prepared.clips)))
            teach(encoder, spec, folder, functools.partial(_show, shown, total))
            found = {
                other.name: teach_beside(other, prepared, folder / "teachers", Progress(f"{other.name} {folder.name}"))
                for other in others
            }
            if others and rank() == 0:
                _print_ceiling(prepared, {arguments.start.stem: np.load(folder / "public.npy"), **found})
    return 0


def _print_ceiling(prepared: PreparedSet, embeddings: dict[str, NDArray[np.float32]]) -> None:
    """Error rates of each teacher, and of the mean of their scores."""
    from .evaluation.protocols import PROTOCOLS, evaluate_embeddings
    from .teachers import fused_similarity

    for name, each in {**embeddings, "together": fused_similarity(*embeddings.values())}.items():
        figures = evaluate_embeddings(each, prepared, detail=False)
        rates = ", ".join(f"{p} {100 * figures[p]['eer']:.2f} %" for p in PROTOCOLS if p in figures)
        print(f"{prepared.folder.name}, {name}: EER {rates or 'not to be had'}")


def run_revoice(arguments: argparse.Namespace) -> int:
    from .prepare import PreparedSet, held_out_speakers
    from .recipes import CLIPS_PER_VOICE
    from .speed_voices import revoice

    for folder in arguments.sets:
        held_out = held_out_speakers(PreparedSet(folder).clips, folder.name)
        per_voice = arguments.per_voice or CLIPS_PER_VOICE.get(folder.name, 6)
        made = revoice(folder, per_voice, held_out, arguments.seed, Progress(f"revoice {folder.name}"))
        print(f"{folder}+voices: {made} clips")
    return 0


def run_fuse(arguments: argparse.Namespace) -> int:
    from .fusion import fuse
    from .teachers import open_teacher

    fuse(arguments.sets, [open_teacher(path) for path in arguments.beside])
    print(f"{len(arguments.sets)} sets: fused.npy")
    return 0


def run_morph(arguments: argparse.Namespace) -> int:
    from .recipes import MORPHS_PER_SPEAKER, morph

    for folder in arguments.sets:
        per_speaker = arguments.per_speaker or MORPHS_PER_SPEAKER.get(folder.name, 20)
        made = morph(folder, per_speaker, arguments.seed, arguments.workers, Progress(f"morph {folder.name}"))
        print(f"{folder / 'morphs'}: {made} morphs")
    return 0


def run_fit(arguments: argparse.Namespace) -> int:
    import dataclasses

    import torch

    from .compress import StageTeacher
    from .distributed import process_group
    from .noise_and_rooms import read_noises, simulate_rooms
    from .recipes import (
        BASE_PAIRS,
        RESEARCH_RUN,
        SMALL_HINTS,
        SMALL_SHAPE,
        SMALL_STAGES,
        Judge,
        fit_base,
        fit_pairs,
        fit_run,
        fit_small,
    )
    from .teachers import open_teacher

    known = _OF_TIER.get(arguments.tier, ())
    foreign = [name for name in _OF_TIER["small"] if name not in known and getattr(arguments, name) is not None]
    if foreign:
        options = ", ".join("--" + name.replace("_", "-") for name in foreign)
        raise ValueError(f"{options}: expected with `fit small` only; the recipe of {arguments.tier} says its own")
    if arguments.tier == "pairs" and arguments.teacher is None:
        raise ValueError("expected --teacher: who gives the targets, as base.onnx or base.pt")
    for name in ("steps", "rate", "batch"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise ValueError(f"expected --{name} above 0, got {value}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    encoder, spec = _start(arguments.start)
    noises = read_noises(arguments.noise) if arguments.noise else []
    rooms = simulate_rooms(arguments.rooms, 0) if arguments.rooms else []
    judge = Judge(arguments.prepared, spec, dict.fromkeys(arguments.judge, 600)) if arguments.judge else None
    shown = Progress(f"fit {arguments.tier}")
    options = {"device": arguments.device, "judge": judge}
    with process_group():
        if arguments.tier == "base":
            fit_base(encoder, spec, arguments.prepared, arguments.out, noises, rooms, progress=shown, **options)
        elif arguments.tier == "pairs":
            fit_pairs(
                encoder, spec, arguments.prepared, arguments.out, open_teacher(arguments.teacher), noises, rooms,
                _provenance(arguments.start), progress=shown, **options,
            )  # fmt: skip
        elif arguments.tier == "research":
            fit_run(
                encoder, spec, arguments.prepared, arguments.out, RESEARCH_RUN, noises, rooms, BASE_PAIRS,
                use="research", progress=shown, **options,
            )  # fmt: skip
        else:
            # An encoder that was taught before does not need the stages any more.
            further = {"start": _start(arguments.go_on_from)[0], "hints_until": 0.0} if arguments.go_on_from else {}
            hints = () if arguments.go_on_from else SMALL_HINTS
            schedule = dataclasses.replace(
                SMALL_STAGES, steps=arguments.steps or SMALL_STAGES.steps, rate=arguments.rate or SMALL_STAGES.rate
            )
            fit_small(
                encoder,
                dataclasses.replace(spec, name="small"),
                arguments.prepared,
                arguments.out,
                SMALL_SHAPE,
                schedule,
                arguments.batch or 32,
                noises=noises,
                rooms=rooms,
                teacher=StageTeacher(arguments.teacher, hints) if arguments.teacher else None,
                provenance=_provenance(arguments.start, *filter(None, [arguments.go_on_from])),
                progress=lambda step, _: shown(step, schedule.steps),
                **further,
                **options,
            )
    print(f"{arguments.out / 'best.pt'}: export it with `python -m export`", file=sys.stderr)
    return 0
