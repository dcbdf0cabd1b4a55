"""`emoinv wyoming` with a real satellite: wyoming-satellite in a process of its own, whose microphone plays demo clips.

Runs where ``EMOINV_SATELLITE_PYTHON`` names a Python that has wyoming-satellite, which wants an older ``wyoming``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("wyoming", reason="needs the extra wyoming: pip install 'emoinv-edge[wyoming]'")

from wyoming.asr import Transcribe
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.satellite import RunSatellite

from tests.test_wyoming import RATE, WORDS, Recogniser, events_to_transcript, served

CLIPS = Path(__file__).resolve().parents[1] / "emoinv_edge" / "demo" / "clips"
CHUNK = 1024  # samples, as the satellite reads its microphone
QUIET = 11  # chunks without a sound end an utterance: 0.7 s, as in Home Assistant
# The microphone plays the file that lies in the room, once, and silence else, no faster than sound is.
MICROPHONE = f"""
import os, sys, time
sound, due = b"", time.monotonic()
while True:
    if not sound and os.path.exists(sys.argv[1]):
        sound = open(sys.argv[1], "rb").read()
        os.remove(sys.argv[1])
    os.write(1, sound[:{2 * CHUNK}].ljust({2 * CHUNK}, bytes(1)))
    sound, due = sound[{2 * CHUNK}:], due + {CHUNK / RATE}
    time.sleep(max(0.0, due - time.monotonic()))
"""
HEARD = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read() + '\\n')"  # a line for each transcript


@contextlib.contextmanager
def started(log: Path, *command: str) -> Iterator[int]:
    """The port at which this command listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = (*command, "--uri", f"tcp://127.0.0.1:{port}")
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            for _ in range(600):
                time.sleep(0.1)
                with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port)):
                    break
            assert process.poll() is None, log.read_text()
            yield port
        finally:
            process.terminate()


async def said_to(satellite: AsyncTcpClient, clip: str, service: int, folder: Path) -> str:
    """The transcript that comes back to the satellite of a clip, with Home Assistant's part played here."""
    sound = np.rint(soundfile.read(CLIPS / f"{clip}.ogg")[0] * 32767).astype("<i2")
    before = (folder / "heard").read_text()
    (folder / "staged").write_bytes(sound.tobytes())
    (folder / "staged").rename(folder / "room")
    began, quiet = time.monotonic(), -10 * QUIET  # it may take a while until the clip begins
    async with AsyncTcpClient("127.0.0.1", service, read_timeout=60.0) as recogniser:
        for beginning in (Transcribe(language="en"), AudioStart(RATE, 2, 1)):
            await recogniser.write_event(beginning.event())
        while quiet < QUIET:
            event = await satellite.read_event()
            audio = AudioChunk.from_event(event).audio
            assert len(audio) == 2 * CHUNK
            quiet = 0 if any(audio) else quiet + 1
            await recogniser.write_event(event)
        assert time.monotonic() - began > len(sound) / RATE
        await recogniser.write_event(AudioStop().event())
        await satellite.write_event((await events_to_transcript(recogniser))[-1])
    while (after := (folder / "heard").read_text()) == before:
        await satellite.read_event()  # it streams on
    return after[len(before) :].strip()


def test_who_enrols_through_a_real_satellite_is_named_and_another_speaker_is_not_understood(tmp_path: Path) -> None:
    python = shutil.which(os.environ.get("EMOINV_SATELLITE_PYTHON", ""))
    if python is None or subprocess.run([python, "-m", "wyoming_satellite", "--help"], capture_output=True).returncode:
        pytest.skip("EMOINV_SATELLITE_PYTHON names no Python with wyoming-satellite: pip install wyoming-satellite")
    satellite = [python, "-m", "wyoming_satellite", "--no-zeroconf"]
    for option, code, name in (("--mic-command", MICROPHONE, "room"), ("--transcript-command", HEARD, "heard")):
        satellite += [option, shlex.join([sys.executable, "-c", code, str(tmp_path / name)])]
    emoinv = [sys.executable, "-m", "emoinv_edge", "wyoming", "--enrol", "awb", "--require", "awb", "--prefix"]
    emoinv += ["--store", str(tmp_path / "profiles.db"), "--upstream"]
    (tmp_path / "heard").touch()

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            emoinv.append(f"tcp://127.0.0.1:{await stack.enter_async_context(served(Recogniser))}")
            service = stack.enter_context(started(tmp_path / "service.log", *emoinv))
            port = stack.enter_context(started(tmp_path / "satellite.log", *satellite))
            client = await stack.enter_async_context(AsyncTcpClient("127.0.0.1", port, read_timeout=10.0))
            await client.write_event(RunSatellite().event())
            assert (await client.read_event()).type == "run-pipeline"
            clips = ["awb/neutral-1", "awb/neutral-2", "awb/neutral-3", "awb/neutral-4"]
            clips += ["awb/excited-1", "slt/neutral-1", "rms/excited-1", "awb/tired-1"]
            heard = [await said_to(client, clip, service, tmp_path) for clip in clips]
            assert heard == [""] * 4 + [f"awb: {WORDS}", "", "", f"awb: {WORDS}"]

    asyncio.run(asyncio.wait_for(main(), 300.0))
    log = (tmp_path / "service.log").read_text()
    assert (log.count("awb is enrolled"), log.count(": accept awb"), log.count(": reject")) == (1, 2, 2), log
