"""Several recordings at once, one stream and one thread each, on one shared encoder.

`python examples/many_streams.py ana kitchen.wav hall.wav door.wav`
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from emoinv_edge import Decision, Encoder, ProfileStore, Verifier, read_audio


def listen(verifier: Verifier, path: Path) -> list[Decision]:
    """The final decisions on one recording, fed in chunks of 20 ms as a microphone would."""
    rate = verifier.encoder.spec.sample_rate
    waveform, _ = read_audio(path, rate)
    stream = verifier.stream(rate)  # its own state; encoder and profiles are shared
    found: list[Decision] = []
    for start in range(0, len(waveform), rate // 50):
        found += stream.process(waveform[start : start + rate // 50])
    return [decision for decision in found + stream.flush() if decision.final]


def listen_to_all(verifier: Verifier, paths: list[Path], num_threads: int = 4) -> dict[Path, list[Decision]]:
    """The final decisions on each recording."""
    with ThreadPoolExecutor(num_threads) as pool:
        return dict(zip(paths, pool.map(lambda path: listen(verifier, path), paths), strict=True))


if __name__ == "__main__":
    name, *files = sys.argv[1:]
    encoder = Encoder.default()  # one thread an inference: the streams share the cores among themselves
    owner = ProfileStore().verifier(name, encoder)
    for path, decisions in listen_to_all(owner, [Path(file) for file in files]).items():
        for decision in decisions:
            seconds = decision.start / encoder.spec.sample_rate
            print(f"{path}  {seconds:7.2f} s  {decision.verdict.value}  {decision.reason}")
