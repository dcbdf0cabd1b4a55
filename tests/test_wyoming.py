"""A Wyoming service between an assistant and its speech-to-text: nothing passes but what was decided."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("wyoming", reason="needs the extra wyoming: pip install 'emoinv-edge[wyoming]'")

from wyoming.asr import Transcribe, Transcript, TranscriptChunk, TranscriptStart
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import AsrModel, AsrProgram, Attribution, Describe, Info
from wyoming.ping import Ping, Pong
from wyoming.server import AsyncEventHandler, AsyncTcpServer
from wyoming.user_event import UserEvent

from emoinv_edge.cli.wyoming import StoredSpeakers
from emoinv_edge.decision import Decision, Verdict
from emoinv_edge.errors import EmoinvError, StoreError
from emoinv_edge.store import PLAINTEXT, ProfileStore
from emoinv_edge.wyoming import Connection, Service
from tests.builders import ANA_HZ, NOW, calibrated_encoder, enrolled, synthesise
from tests.shell import Shell

RATE = 16000
WORDS = "open the door"
OWNER, STRANGER, NOISE = 1000, 2000, 3000  # what the samples of an utterance are, for the judge below


def judge(waveform: NDArray[Any], sample_rate: int) -> Decision:
    """Accepts "ana" where every sample is OWNER."""
    assert waveform.ndim == 2
    assert sample_rate == RATE
    sample = int(waveform.flat[0])
    verdict = {OWNER: Verdict.ACCEPT, STRANGER: Verdict.REJECT}.get(sample, Verdict.NO_DECISION)
    llr = {OWNER: 5.0, STRANGER: -4.0}.get(sample)
    return Decision(verdict, llr, "a reason", 3.0, 0.01, "ana", None, None, 0, len(waveform), True)


class Recogniser(AsyncEventHandler):
    """A speech-to-text that answers each utterance with the same words."""

    chunks = 0

    async def handle_event(self, event: Event) -> bool:
        if Describe.is_type(event.type):
            by = Attribution("tests", "")
            model = AsrModel("m", by, True, "", "1", ["de", "en"])
            program = AsrProgram("recogniser", by, True, "", "1", [model], supports_transcript_streaming=True)
            await self.write_event(Info(asr=[program]).event())
        elif Ping.is_type(event.type):
            await self.write_event(Pong(text="from upstream").event())
        elif AudioChunk.is_type(event.type):
            Recogniser.chunks += 1
        elif AudioStop.is_type(event.type):
            await self.write_event(TranscriptStart().event())
            await self.write_event(TranscriptChunk(WORDS).event())
            await self.write_event(Transcript(WORDS, context={"kept": 1}, language="en").event())
        return True


class Deaf(AsyncEventHandler):
    """A speech-to-text that never answers."""

    async def handle_event(self, event: Event) -> bool:
        return True


class Garbled(AsyncEventHandler):
    """A speech-to-text that does not speak Wyoming."""

    async def handle_event(self, event: Event) -> bool:
        self.writer.write(b'{"type": "transcript", "data": {"text": ["no"')
        self.writer.write(b"\n")
        await self.writer.drain()
        return False


@contextlib.asynccontextmanager
async def served(handler: Callable[[Any, Any], AsyncEventHandler]) -> AsyncIterator[int]:
    """The port of a server on loopback."""
    server = AsyncTcpServer("127.0.0.1", 0)
    sockets = await asyncio.start_server(
        lambda reader, writer: server._handler_callback(handler, reader, writer),  # the port is only known here
        "127.0.0.1",
        0,
    )
    try:
        yield sockets.sockets[0].getsockname()[1]
    finally:
        sockets.close()
        await server.stop()


def run(
    work: Callable[[AsyncTcpClient], Awaitable[None]],
    upstream: type[AsyncEventHandler] | None = Recogniser,
    **options: Any,
) -> Service:
    """Let a client of the real library talk to the service."""
    services: list[Service] = []

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            uri = options.pop("uri", None)
            if upstream is not None:
                uri = f"tcp://127.0.0.1:{await stack.enter_async_context(served(upstream))}"
            service = Service(options.pop("judge", judge), upstream=uri, **options)
            services.append(service)
            port = await stack.enter_async_context(served(lambda *streams: Connection(service, *streams)))
            client = AsyncTcpClient("127.0.0.1", port, read_timeout=10.0)
            async with client:
                await work(client)
            await asyncio.sleep(0.05)

    asyncio.run(asyncio.wait_for(main(), 30.0))
    return services[0]


async def speak(client: AsyncTcpClient, sample: int, seconds: float = 1.0, channels: int = 1) -> None:
    audio = np.full(round(seconds * RATE) * channels, sample, "<i2").tobytes()
    await client.write_event(Transcribe().event())
    await client.write_event(AudioStart(RATE, 2, channels).event())
    for start in range(0, len(audio), 2048):
        await client.write_event(AudioChunk(RATE, 2, channels, audio[start : start + 2048]).event())
    await client.write_event(AudioStop().event())


async def events_to_transcript(client: AsyncTcpClient) -> list[Event]:
    found: list[Event] = []
    while not found or not Transcript.is_type(found[-1].type):
        event = await client.read_event()
        assert event is not None, f"the service left after {[each.type for each in found]}"
        found.append(event)
    return found


async def transcript_of(client: AsyncTcpClient, sample: int) -> Transcript:
    await speak(client, sample)
    return Transcript.from_event((await events_to_transcript(client))[-1])


def test_a_required_speaker_is_understood_and_nobody_else() -> None:
    async def work(client: AsyncTcpClient) -> None:
        for sample, text in ((OWNER, WORDS), (STRANGER, ""), (NOISE, ""), (OWNER, WORDS)):
            assert (await transcript_of(client, sample)).text == text

    run(work, require=True)


def test_the_reason_of_a_refusal_comes_as_a_user_event() -> None:
    async def work(client: AsyncTcpClient) -> None:
        await speak(client, STRANGER)
        events = await events_to_transcript(client)
        assert [event.type for event in events] == ["user-event", "transcript"]
        refused = UserEvent.from_event(events[0])
        assert refused.name == "speaker-refused"
        assert refused.data == {"name": None, "verdict": "reject", "llr": -4.0, "reason": "a reason"}

    run(work, require=True)


def test_no_part_of_a_transcript_goes_out_before_the_decision() -> None:
    async def work(client: AsyncTcpClient) -> None:
        await client.write_event(Describe().event())
        event = await client.read_event()
        assert event is not None
        assert not any(program.supports_transcript_streaming for program in Info.from_event(event).asr)
        await speak(client, STRANGER)
        assert WORDS not in json.dumps([event.data for event in await events_to_transcript(client)])

    run(work, require=True)


def test_an_annotated_transcript_names_the_speaker_and_keeps_what_it_had() -> None:
    async def work(client: AsyncTcpClient) -> None:
        owner = await transcript_of(client, OWNER)
        assert owner.text == WORDS
        assert owner.language == "en"
        speaker = {"name": "ana", "verdict": "accept", "llr": 5.0, "reason": "a reason"}
        assert owner.context == {"kept": 1, "speaker": speaker}
        stranger = await transcript_of(client, STRANGER)
        assert stranger.text == WORDS
        assert stranger.context is not None
        assert stranger.context["speaker"]["name"] is None

    run(work)


def test_a_prefix_is_put_before_the_words_of_an_accepted_speaker_only() -> None:
    async def work(client: AsyncTcpClient) -> None:
        assert (await transcript_of(client, OWNER)).text == f"ana: {WORDS}"
        assert (await transcript_of(client, STRANGER)).text == WORDS

    run(work, prefix=True)


def test_without_an_upstream_the_transcript_is_the_name() -> None:
    async def work(client: AsyncTcpClient) -> None:
        assert (await transcript_of(client, OWNER)).text == "ana"
        assert (await transcript_of(client, STRANGER)).text == ""
        await client.write_event(Ping(text="hello").event())
        event = await client.read_event()
        assert event is not None
        assert Pong.from_event(event).text == "hello"
        await client.write_event(Describe().event())
        event = await client.read_event()
        assert event is not None
        assert [program.name for program in Info.from_event(event).asr] == ["emoinv-edge"]

    run(work, upstream=None)


def test_the_upstream_is_described_with_the_service_beside_it() -> None:
    async def work(client: AsyncTcpClient) -> None:
        await client.write_event(Describe().event())
        event = await client.read_event()
        assert event is not None
        programs = Info.from_event(event).asr
        assert [program.name for program in programs] == ["recogniser", "emoinv-edge"]
        assert programs[1].models[0].languages == ["de", "en"]
        await client.write_event(Ping().event())
        event = await client.read_event()
        assert event is not None
        assert Pong.from_event(event).text == "from upstream"

    run(work)


def test_every_chunk_reaches_the_upstream() -> None:
    async def work(client: AsyncTcpClient) -> None:
        before = Recogniser.chunks
        await transcript_of(client, OWNER)
        assert Recogniser.chunks - before == 16

    run(work)


def test_two_channels_are_judged_as_two_channels() -> None:
    shapes = []

    def looking(waveform: NDArray[Any], sample_rate: int) -> Decision:
        shapes.append(waveform.shape)
        return judge(waveform, sample_rate)

    async def work(client: AsyncTcpClient) -> None:
        await speak(client, OWNER, channels=2)
        await events_to_transcript(client)

    run(work, judge=looking)
    assert shapes == [(RATE, 2)]


def test_of_an_endless_utterance_a_minute_is_kept() -> None:
    lengths = []

    def looking(waveform: NDArray[Any], sample_rate: int) -> Decision:
        lengths.append(len(waveform))
        return judge(waveform, sample_rate)

    async def work(client: AsyncTcpClient) -> None:
        await speak(client, OWNER, seconds=70.0)
        await events_to_transcript(client)

    run(work, judge=looking)
    assert lengths == [60 * RATE]


@pytest.mark.parametrize("error", [StoreError("locked"), ValueError("odd"), OSError("no disk")])
def test_a_judge_that_fails_accepts_nobody(error: Exception) -> None:
    def failing(waveform: NDArray[Any], sample_rate: int) -> Decision:
        raise error

    async def work(client: AsyncTcpClient) -> None:
        transcript = await transcript_of(client, OWNER)
        assert transcript.text == ""
        assert transcript.context is not None
        assert transcript.context["speaker"]["verdict"] == "no_decision"

    run(work, judge=failing, require=True)


def test_an_utterance_without_audio_accepts_nobody() -> None:
    async def work(client: AsyncTcpClient) -> None:
        await client.write_event(AudioStop().event())
        assert Transcript.from_event((await events_to_transcript(client))[-1]).text == ""
        await client.write_event(AudioStart(RATE, 2, 1).event())
        await client.write_event(AudioStop().event())
        assert Transcript.from_event((await events_to_transcript(client))[-1]).text == ""

    run(work, require=True)


def test_what_was_accepted_once_does_not_accept_the_next_utterance() -> None:
    async def work(client: AsyncTcpClient) -> None:
        assert (await transcript_of(client, OWNER)).text == WORDS
        await client.write_event(AudioStop().event())  # without a word
        assert Transcript.from_event((await events_to_transcript(client))[-1]).text == ""

    run(work, require=True)


def test_a_dead_upstream_is_an_error_and_an_empty_transcript() -> None:
    async def work(client: AsyncTcpClient) -> None:
        await speak(client, OWNER)
        events = await events_to_transcript(client)
        assert Error.is_type(events[0].type)
        assert "does not answer" in Error.from_event(events[0]).text
        assert Transcript.from_event(events[-1]).text == ""

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run(work, upstream=None, require=True, uri=f"tcp://127.0.0.1:{port}")


@pytest.mark.parametrize("upstream", [Deaf, Garbled])
def test_an_upstream_that_never_answers_rightly_is_an_error_and_an_empty_transcript(
    upstream: type[AsyncEventHandler],
) -> None:
    async def work(client: AsyncTcpClient) -> None:
        await speak(client, OWNER)
        events = await events_to_transcript(client)
        assert any(Error.is_type(event.type) for event in events)
        assert Transcript.from_event(events[-1]).text == ""

    run(work, upstream=upstream, require=True, answer_timeout_s=0.5)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\xff\xfe garbage\n",
        b"[]\n",
        b'"text"\n',
        b"{}\n",
        b'{"type": "audio-start", "data": {}}\n',
        b'{"type": "audio-start", "data": {"rate": 0, "width": 2, "channels": 1}}\n',
        b'{"type": "audio-start", "data": {"rate": 16000, "width": 3, "channels": 1}}\n',
        b'{"type": "audio-start", "data": {"rate": "x", "width": 2, "channels": 1}}\n',
        b'{"type": "audio-chunk", "data": {"rate": 16000, "width": 2, "channels": 99}}\n',
        b'{"type": "ping", "data_length": "many"}\n',
        b'{"type": "ping", "data_length": 99999999999}\n',
        b'{"type": "audio-chunk", "payload_length": 99999999999}\n',
        b"[" * 60000 + b"\n",
        b"x" * 300000,
    ],
)
def test_garbage_ends_one_connection_with_a_clear_log_and_no_other(
    garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(client: AsyncTcpClient) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        writer.write(garbage)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
            assert b"transcript" not in await asyncio.wait_for(reader.read(), 10.0)
        writer.close()
        assert (await transcript_of(client, OWNER)).text == WORDS

    with caplog.at_level(logging.INFO):
        service = run(work, require=True)
    assert service.num_clients == 0
    assert "Traceback" not in caplog.text
    assert "never retrieved" not in caplog.text


def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind() -> None:
    async def work(client: AsyncTcpClient) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", client.port)
        writer.write(b'{"type": "audio-start", "data": {"rate": 16000, "width": 2, "channels": 1}}\n')
        writer.write(b'{"type": "audio-chunk", "payload_length": 4096}\n')
        await writer.drain()
        writer.close()
        assert (await transcript_of(client, OWNER)).text == WORDS

    assert run(work).num_clients == 0


def test_audio_whose_format_changes_is_not_judged() -> None:
    async def work(client: AsyncTcpClient) -> None:
        await client.write_event(AudioStart(RATE, 2, 1).event())
        await client.write_event(AudioChunk(8000, 2, 1, b"\x00" * 320).event())
        assert await client.read_event() is None

    run(work)


def test_many_satellites_at_once_get_their_own_answers() -> None:
    async def work(client: AsyncTcpClient) -> None:
        async def one(number: int) -> None:
            async with AsyncTcpClient("127.0.0.1", client.port, read_timeout=10.0) as satellite:
                for sample in (OWNER, STRANGER) if number % 2 else (STRANGER, OWNER):
                    assert (await transcript_of(satellite, sample)).text == (WORDS if sample == OWNER else "")

        await asyncio.gather(*(one(number) for number in range(20)))

    run(work, require=True)


def test_a_full_house_refuses_the_next_client() -> None:
    async def work(client: AsyncTcpClient) -> None:
        waiting = [await asyncio.open_connection("127.0.0.1", client.port) for _ in range(63)]
        await asyncio.sleep(0.1)
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        assert await asyncio.wait_for(reader.read(), 10.0) == b""
        for _, each in [*waiting, (reader, writer)]:
            each.close()

    run(work)


class Takes:
    """An enrolment that wants two utterances."""

    def __init__(self) -> None:
        self.heard: list[int] = []

    @property
    def done(self) -> bool:
        return len(self.heard) == 2

    def take(self, waveform: NDArray[Any], sample_rate: int) -> str:
        self.heard.append(len(waveform))
        return f"{len(self.heard)} of 2"


def test_the_next_utterances_of_a_satellite_enrol_and_then_are_judged() -> None:
    enrolment = Takes()

    async def work(client: AsyncTcpClient) -> None:
        before = Recogniser.chunks
        for number in (1, 2):
            await speak(client, STRANGER)
            events = await events_to_transcript(client)
            assert UserEvent.from_event(events[0]).data == {"message": f"{number} of 2"}
            assert Transcript.from_event(events[-1]).text == ""
        assert Recogniser.chunks == before  # an enrolment is nobody's command
        assert (await transcript_of(client, OWNER)).text == WORDS

    run(work, require=True, enrolment=enrolment)
    assert enrolment.heard == [RATE, RATE]


def test_the_log_of_the_command_shows_prompts_and_decisions(with_ana: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    async def one_utterance(service: Service, uri: str) -> None:
        async with contextlib.AsyncExitStack() as stack:
            port = await stack.enter_async_context(served(lambda *streams: Connection(service, *streams)))
            client = AsyncTcpClient("127.0.0.1", port, read_timeout=10.0)
            await transcript_of(await stack.enter_async_context(client), NOISE)

    monkeypatch.setattr("emoinv_edge.wyoming.serve", one_utterance)
    assert with_ana("wyoming") == 0
    assert "listening at" in with_ana.err
    assert "no_decision" in with_ana.err
    assert with_ana("wyoming", "--enrol", "bob") == 0
    assert with_ana.err.count("Say a few sentences") == 2  # at the start, and after what was no speech


def test_the_stored_speakers_of_the_moment_judge_and_one_that_expired_stops_nobody(tmp_path: Path) -> None:
    encoder = calibrated_encoder(tmp_path)
    store = ProfileStore(tmp_path / "profiles.db", PLAINTEXT)
    ana = enrolled(encoder, "ana", ANA_HZ, takes=3, seconds=4.0)
    store.put(ana)
    store.put(dataclasses.replace(ana, name="bob", expires=NOW, created=NOW))
    anyone = StoredSpeakers(encoder, store, argparse.Namespace(require=None, far=0.01, extrapolate=False))
    only_bob = StoredSpeakers(encoder, store, argparse.Namespace(require=("bob",), far=0.01, extrapolate=False))
    heard = synthesise(4.0, 7, ANA_HZ)
    assert anyone(heard, RATE).accepted and anyone(heard, RATE).speaker == "ana"
    with pytest.raises(EmoinvError):
        only_bob(heard, RATE)
    store.remove("ana")
    with pytest.raises(EmoinvError):
        anyone(heard, RATE)
