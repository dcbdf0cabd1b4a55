"""``python -m train teach``: the embeddings of prepared sets by the initial encoder and by other teachers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from . import Commands, add_command

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..prepare import PreparedSet


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "teach",
        "Embed every clip of prepared sets by the initial encoder, once.",
        """The embeddings are kept as public.npy beside each set. With --beside, other teachers embed the sets too (kept
in a folder teachers/), and the EER of their mean score is printed: the ceiling of distilling them together.

examples:
  python -m train teach resnet34-lm.onnx prepared/*
  python -m train teach resnet34-lm.onnx prepared/nemo --beside ecapa.onnx
  torchrun --nproc-per-node 8 -m train teach resnet34-lm.onnx prepared/librispeech""",
    )
    parser.add_argument("start", type=Path, help="the public ResNet34-LM (.onnx), or a checkpoint")
    parser.add_argument("sets", type=Path, nargs="+", metavar="SET", help="prepared sets")
    parser.add_argument("--beside", type=Path, nargs="+", default=[], metavar="TEACHER", help="other .onnx or .pt")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Embed each set by each teacher."""
    import numpy as np

    from ..distributed import process_group, rank
    from ..model import load_start
    from ..prepare import PreparedSet
    from ..progress import Progress
    from ..teachers import embed_initial, open_teacher, teach

    encoder, spec, _ = load_start(arguments.start)
    others = [open_teacher(path) for path in arguments.beside]
    with process_group():
        for folder in arguments.sets:
            prepared = PreparedSet(folder)
            embed_initial(encoder, spec, folder, Progress(f"teach {folder.name}"))
            found = {
                other.name: teach(other, prepared, folder / "teachers", Progress(f"{other.name} {folder.name}"))
                for other in others
            }
            if others and rank() == 0:
                found = {arguments.start.stem: np.load(folder / "public.npy")} | found
                _print_ceiling(prepared, {name: rows for name, rows in found.items() if rows is not None})
    return 0


def _print_ceiling(prepared: PreparedSet, embeddings: dict[str, NDArray[np.float32]]) -> None:
    """Error rates of each teacher, and of the mean of their scores."""
    from ..evaluation.protocols import PROTOCOLS, evaluate_embeddings
    from ..teachers import fused_similarity

    for name, each in {**embeddings, "together": fused_similarity(*embeddings.values())}.items():
        figures = evaluate_embeddings(each, prepared, detail=False)
        rates = ", ".join(f"{p} {100 * figures[p]['eer']:.2f} %" for p in PROTOCOLS if p in figures)
        print(f"{prepared.folder.name}, {name}: EER {rates or 'not to be had'}")
