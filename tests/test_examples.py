"""The examples run, and do what they say."""

from __future__ import annotations

import asyncio
import configparser
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from emoinv_edge.cli import build_parser
from emoinv_edge.decision import Verdict
from emoinv_edge.encoder import Encoder
from emoinv_edge.errors import MicrophoneError
from emoinv_edge.microphone import Gap
from emoinv_edge.store import PLAINTEXT, ProfileStore
from emoinv_edge.verifier import Verifier
from tests.builders import ANA_HZ, RATE, calibrated_encoder, enrolled, noise, synthesise
from tests.shell import FakeMicrophone

EXAMPLES = Path(__file__).parent.parent / "examples"
STRANGER_HZ = 150.0


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(name).stem.replace("-", "_"), EXAMPLES / name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def speech(f0_hz: float, seed: int = 100) -> NDArray[np.float32]:
    return np.concatenate([noise(1.0, 1), synthesise(3.0, seed, f0_hz), noise(1.0, 2)])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return calibrated_encoder(tmp_path_factory.mktemp("examples"))


@pytest.fixture(scope="module")
def store(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> ProfileStore:
    store = ProfileStore(tmp_path_factory.mktemp("store") / "profiles.db", PLAINTEXT)
    store.put(enrolled(encoder, "ana", ANA_HZ, takes=3, seconds=4.0))
    return store


def pieces(waveform: NDArray[np.float32]) -> list[Any]:
    return [waveform[at : at + 320] for at in range(0, len(waveform), 320)]


def test_unlock_takes_twenty_lines() -> None:
    source = (EXAMPLES / "unlock.py").read_text().split('"""', 2)[2]
    lines = [line for line in source.splitlines() if line.strip()]
    assert len(lines) <= 20


def test_unlock_opens_for_the_owner_and_for_nobody_else(
    encoder: Encoder, store: ProfileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlock = load("unlock.py")
    monkeypatch.setattr(unlock, "Microphone", FakeMicrophone)
    end = MicrophoneError("the recording is over")
    FakeMicrophone.items = [*pieces(speech(STRANGER_HZ)), Gap(100, "lost"), *pieces(speech(ANA_HZ)), end]
    unlock.wait_for("ana", store, encoder)
    FakeMicrophone.items = [*pieces(speech(STRANGER_HZ)), end]
    with pytest.raises(MicrophoneError, match="is over"):
        unlock.wait_for("ana", store, encoder)


def test_asyncio_yields_decisions_and_the_loop_goes_on(encoder: Encoder, store: ProfileStore) -> None:
    example = load("asyncio_listen.py")
    verifier = Verifier(encoder, store.get("ana"))

    async def main() -> tuple[list[Any], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0)  # one turn of the loop, however fast the machine
                ticks += 1

        task = asyncio.create_task(tick())
        found = [decision async for decision in example.decisions(verifier, pieces(speech(ANA_HZ)))]
        task.cancel()
        return found, ticks

    found, ticks = asyncio.run(main())
    assert [decision.verdict for decision in found if decision.final][-1] is Verdict.ACCEPT
    assert ticks > 5


def test_asyncio_hands_on_what_goes_wrong_and_can_be_left_early(encoder: Encoder, store: ProfileStore) -> None:
    example = load("asyncio_listen.py")
    verifier = Verifier(encoder, store.get("ana"))

    def unplugged() -> Iterator[Any]:
        yield from pieces(noise(0.5))
        raise MicrophoneError("was it unplugged?")

    async def fail() -> None:
        async for _ in example.decisions(verifier, unplugged()):
            pass

    async def leave() -> Any:
        stream = example.decisions(verifier, pieces(np.concatenate([speech(ANA_HZ)] * 3)))
        first = await anext(stream)
        await stream.aclose()
        return first

    with pytest.raises(MicrophoneError, match="unplugged"):
        asyncio.run(fail())
    assert asyncio.run(leave()) is not None


def test_many_streams_share_one_encoder(encoder: Encoder, store: ProfileStore, tmp_path: Path) -> None:
    example = load("many_streams.py")
    verifier = Verifier(encoder, store.get("ana"))
    expected = {}
    for index in range(6):
        path = tmp_path / f"{index}.wav"
        soundfile.write(path, speech(ANA_HZ if index % 2 else STRANGER_HZ, 100 + index // 4), RATE)
        expected[path] = Verdict.ACCEPT if index % 2 else Verdict.REJECT
    found = example.listen_to_all(verifier, list(expected), num_threads=3)
    assert {path: decisions[-1].verdict for path, decisions in found.items()} == expected


def test_the_unit_starts_commands_that_exist() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(EXAMPLES / "systemd" / "emoinv-listen.service")
    command = unit["Service"]["ExecStart"]
    words = command.split("'")[1].split("|")[0].split()
    args = build_parser().parse_args(words[1:])
    assert words[0].endswith("/emoinv") and args.json and args.retry and args.names == ["ana"]
    assert unit["Service"]["SuccessExitStatus"] == "130"


def test_events_are_acted_upon() -> None:
    lines = [
        {"event": "start"},
        {"event": "decision", "final": False, "verdict": "accept", "speaker": "ana", "start_s": 1.0, "score": 3.0},
        {"event": "decision", "final": True, "verdict": "reject", "speaker": "ana", "start_s": 2.0, "score": -3.0},
        {"event": "decision", "final": True, "verdict": "accept", "speaker": "ana", "start_s": 5.0, "score": 3.0},
        {"event": "gap", "reason": "dropped"},
        {"error": {"message": "unplugged"}},
        {"event": "end"},
    ]
    text = "\n".join(json.dumps(line) for line in lines)
    script = EXAMPLES / "systemd" / "on-event.py"
    done = subprocess.run([sys.executable, str(script)], input=text, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "ana spoke at 5.0 s (LLR 3.0)",
        "audio was lost: dropped",
        "listening failed: unplugged",
    ]
