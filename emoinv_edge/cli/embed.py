"""``emoinv embed``: the embeddings of recordings, for a back end of your own."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import AudioError, EmoinvError, OutOfMemoryError
from ..files import write_atomically
from .options import add_command, add_shared, open_encoder
from .recordings import add_audio, add_recordings, open_recording
from .terminal import EXIT_ACCEPT, EXIT_ERROR, EXIT_NO_DECISION, print_error, print_json, track

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..encoder import Encoder

__all__ = ["add_parser", "run"]

MOST_WORKERS = 256


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One recording's embedding, or why there is none."""

    file: str
    channel: int | None
    vector: NDArray[np.float32] | None = None
    norm: float = 0.0
    net_speech_s: float = 0.0
    snr_db: float = 0.0
    problem: str = ""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of ``emoinv embed``."""
    parser = add_command(
        subparsers,
        "embed",
        "Write the embeddings of recordings to a file, for a back end of your own; nothing is decided.\n"
        "Exit status 0: all of them; 2: some could not be used; 3: none, or an error.",
        "emoinv embed *.wav -o embeddings.npz --workers 4",
    )
    add_recordings(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=parse_output,
        required=True,
        metavar="FILE",
        help=".npz (files, channels, embeddings, norms, net_speech_s, snr_db, model, fingerprint) or .csv",
    )
    parser.add_argument(
        "--workers", type=parse_workers, default=1, metavar="N", help="processes that work at once (default: 1)"
    )
    add_audio(parser, each=True)
    add_shared(parser, run)


def parse_output(text: str) -> Path:
    """A path that ends in .npz or .csv."""
    path = Path(text)
    if path.suffix.lower() not in (".npz", ".csv"):
        raise argparse.ArgumentTypeError(f"expected a file that ends in .npz or .csv, got {text!r}")
    return path


def parse_workers(text: str) -> int:
    """A number of processes."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MOST_WORKERS):
        raise argparse.ArgumentTypeError(f"expected a number from 1 to {MOST_WORKERS}, got {text!r}")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Embed every recording, in the order given, and write the file."""
    encoder = open_encoder(args)
    if args.workers > 1 and Path("-") in args.files:
        raise AudioError("standard input cannot be shared between processes; leave --workers out, or name a file")
    rows = []
    for found in track_files(args, encoder):
        for row in found:
            rows.append(row)
            if row.problem:
                print_error(f"left out: {row.problem}")
    usable = [row for row in rows if row.vector is not None]
    if not usable:
        raise EmoinvError(f"none of {len(rows)} recordings could be used, and nothing was written; see why above")
    written = npz_of(usable, encoder) if args.output.suffix.lower() == ".npz" else csv_of(usable)
    write_atomically(args.output, written)  # its owner's alone: embeddings are biometric data
    if args.json:
        left_out = [{"file": row.file, "channel": row.channel, "message": row.problem} for row in rows if row.problem]
        print_json({"output": str(args.output), "embeddings": len(usable), "left_out": left_out})
    else:
        print_error(f"{len(usable)} embeddings of {encoder.spec.embedding_dim} numbers are in {args.output}")
    if len(usable) == len(rows):
        return EXIT_ACCEPT
    return EXIT_NO_DECISION if usable else EXIT_ERROR


def track_files(args: argparse.Namespace, encoder: Encoder) -> Iterator[list[Row]]:
    """The rows of each file, under a progress bar; with several workers, from as many processes."""
    jobs = [(path, args.channel, args.max_duration) for path in args.files]
    if args.workers == 1:
        for job in track(jobs, "embedding", show=not args.json):
            yield embed_file(encoder, *job)
        return
    context = multiprocessing.get_context("spawn")  # the same on every system
    workers = min(args.workers, len(jobs))
    with ProcessPoolExecutor(workers, context, initializer=open_in_worker, initargs=(encoder,)) as pool:
        futures = [pool.submit(embed_in_worker, *job) for job in jobs]
        for future in track(futures, "embedding", show=not args.json):
            yield future.result()


_worker: dict[str, Encoder] = {}


def open_in_worker(encoder: Encoder) -> None:
    """Keep the encoder, which was unpickled and so opened anew, for the files that this process gets."""
    _worker["encoder"] = encoder


def embed_in_worker(path: Path, channel: int | Literal["mix", "each"], max_duration_s: float) -> list[Row]:
    """`embed_file` in a worker."""
    return embed_file(_worker["encoder"], path, channel, max_duration_s)


def embed_file(encoder: Encoder, path: Path, channel: int | Literal["mix", "each"], max_duration_s: float) -> list[Row]:
    """A row for one file, or for each of its channels."""
    from ..utterance import hear_blocks

    rows = []
    for recording in open_recording(path, encoder.spec.sample_rate, channel, max_duration_s):
        try:
            heard = hear_blocks(encoder, recording.blocks)
        except (AudioError, OutOfMemoryError) as error:
            rows.append(Row(recording.file, recording.channel, problem=str(error)))
            continue
        if heard.embedding is None or heard.quality is None:
            reason = "" if heard.refusal is None else heard.refusal.message
            rows.append(Row(recording.file, recording.channel, problem=f"{recording.label}: {reason}"))
            continue
        quality, embedding = heard.quality, heard.embedding
        measured = (embedding.norm, quality.net_speech_s, quality.snr_db)
        rows.append(Row(recording.file, recording.channel, embedding.vector, *measured))
    return rows


def npz_of(rows: list[Row], encoder: Encoder) -> bytes:
    """The rows as a NumPy archive without pickles; channel 0 is the mean of all."""
    import numpy as np

    columns: dict[str, Any] = {
        "files": np.array([row.file for row in rows]),
        "channels": np.array([row.channel or 0 for row in rows], np.int32),
        "embeddings": np.stack([row.vector for row in rows if row.vector is not None]),
        "norms": np.array([row.norm for row in rows], np.float32),
        "net_speech_s": np.array([row.net_speech_s for row in rows], np.float32),
        "snr_db": np.array([row.snr_db for row in rows], np.float32),
        "model": np.array(encoder.spec.name),
        "fingerprint": np.array(encoder.fingerprint),
    }
    content = io.BytesIO()
    np.savez(content, **columns)
    return content.getvalue()


def csv_of(rows: list[Row]) -> str:
    """The rows as a table, one column a number of the embedding."""
    content = io.StringIO(newline="")
    writer = csv.writer(content)
    vectors = [row.vector for row in rows if row.vector is not None]
    writer.writerow(["file", "channel", "norm", "net_speech_s", "snr_db", *(f"e{k}" for k in range(len(vectors[0])))])
    for row, vector in zip(rows, vectors, strict=True):
        writer.writerow([row.file, row.channel or 0, row.norm, row.net_speech_s, row.snr_db, *vector.tolist()])
    return content.getvalue()
