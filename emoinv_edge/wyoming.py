"""A Wyoming service that knows who spoke, between a voice assistant and its speech-to-text.

It passes everything on to the speech-to-text behind it, and judges the same audio meanwhile. The transcript
then goes to the assistant only if an enrolled speaker was accepted, or with the name of the speaker beside it.
Whatever goes wrong on the way (no speech, a dead upstream, a broken client) never becomes an accept.

The protocol has no authentication: whoever reaches the port can send audio.

References
----------
The Wyoming protocol of the Home Assistant voice projects, https://github.com/OHF-Voice/wyoming
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import urlparse

import numpy as np
from numpy.typing import NDArray
from wyoming.asr import Transcribe, Transcript, TranscriptChunk, TranscriptStart, TranscriptStop
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncClient
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import AsrModel, AsrProgram, Attribution, Describe, Info
from wyoming.ping import Ping, Pong
from wyoming.server import AsyncEventHandler, AsyncServer
from wyoming.user_event import UserEvent

from . import __version__
from .decision import Decision
from .errors import EmoinvError

__all__ = ["Connection", "Enrolment", "Service", "is_loopback", "serve"]

LOG = logging.getLogger("emoinv_edge.wyoming")

NAME = "emoinv-edge"
LONGEST_S = 60.0  # of one utterance that is judged; what comes later is passed on, and not kept
LARGEST_EVENT = 1 << 20  # bytes of an event's data or payload: 30 s of 16 kHz audio
CONNECT_TIMEOUT_S = 5.0
STALL_TIMEOUT_S = 10.0  # of an upstream that takes no more audio
IDLE_TIMEOUT_S = 600.0
MOST_CLIENTS = 64
PARTS = (TranscriptStart, TranscriptChunk, TranscriptStop)
DTYPES = {2: "<i2", 4: "<i4"}


class Enrolment(Protocol):
    """Takes the next utterances for a profile, until there is enough."""

    @property
    def done(self) -> bool:
        """Whether the profile is stored."""

    def take(self, waveform: NDArray[Any], sample_rate: int) -> str:
        """Take one utterance; what became of it and what to say next, in a sentence."""


class Service:
    """What all connections share.

    Parameters
    ----------
    judge : callable
        Decides on one utterance, ``(waveform, sample_rate) -> Decision``; called in a thread, one at a time.
    upstream : str, optional
        URI of the speech-to-text, ``tcp://HOST:PORT`` or ``unix://PATH``. Without it the transcript is the
        accepted speaker's name alone.
    require : bool
        Pass a transcript only if the decision is an accept; else an empty one.
    prefix : bool
        Put the accepted speaker's name in front of the text.
    enrolment : Enrolment, optional
        Takes utterances until it is done; they get an empty transcript.
    answer_timeout_s : float
        How long the upstream may take for a transcript after the audio's end.
    """

    def __init__(
        self,
        judge: Callable[[NDArray[Any], int], Decision],
        *,
        upstream: str | None = None,
        require: bool = False,
        prefix: bool = False,
        enrolment: Enrolment | None = None,
        answer_timeout_s: float = 60.0,
    ) -> None:
        self.judge = judge
        self.upstream = upstream
        self.require = require
        self.prefix = prefix
        self.enrolment = enrolment
        self.answer_timeout_s = answer_timeout_s
        self.num_clients = 0
        self._one_at_a_time = asyncio.Semaphore(1)

    @property
    def enrolling(self) -> bool:
        """Whether the next utterance is one of an enrolment."""
        return self.enrolment is not None and not self.enrolment.done

    async def decide(self, waveform: NDArray[Any], sample_rate: int) -> Decision | str:
        """The decision on one utterance; a reason where there is none."""
        if not len(waveform):
            return "no audio came before the end"
        try:
            async with self._one_at_a_time:
                return await asyncio.to_thread(self.judge, waveform, sample_rate)
        except (EmoinvError, TypeError, ValueError, OSError) as error:
            return str(error)

    async def enrol(self, waveform: NDArray[Any], sample_rate: int) -> str:
        """What became of an utterance of the enrolment."""
        assert self.enrolment is not None  # `enrolling` was asked
        if not len(waveform):
            return "no audio came before the end"
        try:
            async with self._one_at_a_time:
                return await asyncio.to_thread(self.enrolment.take, waveform, sample_rate)
        except (EmoinvError, TypeError, ValueError, OSError) as error:
            return str(error)

    def info(self, of_upstream: Info | None = None) -> Info:
        """What the service describes of itself, beside what the upstream describes."""
        attribution = Attribution(NAME, "https://pypi.org/project/emoinv-edge")
        programs = of_upstream.asr if of_upstream is not None else []
        languages = sorted({code for program in programs for model in program.models for code in model.languages})
        own = AsrProgram(
            name=NAME,
            attribution=attribution,
            installed=True,
            description="Knows who spoke",
            version=__version__,
            models=[AsrModel(NAME, attribution, True, "Speaker verification", __version__, languages or ["en"])],
        )
        if of_upstream is None:
            return Info(asr=[own])
        if self.require:  # parts of a transcript would go out before the decision
            for program in programs:
                program.supports_transcript_streaming = False
        of_upstream.asr.append(own)
        return of_upstream


class _Bounded:
    """A reader that refuses events larger than `LARGEST_EVENT`, so that nobody can fill the memory."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    async def readline(self) -> bytes:
        return await asyncio.wait_for(self._reader.readline(), IDLE_TIMEOUT_S)

    async def readexactly(self, count: int) -> bytes:
        if count > LARGEST_EVENT:
            raise ValueError(f"an event of {count} bytes")
        return await asyncio.wait_for(self._reader.readexactly(count), STALL_TIMEOUT_S)

    def feed_eof(self) -> None:
        self._reader.feed_eof()


class _Utterance:
    """The audio of one utterance, as it comes."""

    def __init__(self, rate: int, width: int, channels: int) -> None:
        if width not in DTYPES or not 1 <= channels <= 8 or not 8000 <= rate <= 192000:
            raise ValueError(f"audio of {rate} Hz, {width} bytes a sample and {channels} channels")
        self.format = (rate, width, channels)
        self._most = round(LONGEST_S * rate) * width * channels
        self._parts: list[bytes] = []
        self._length = 0

    def add(self, chunk: AudioChunk) -> None:
        if (chunk.rate, chunk.width, chunk.channels) != self.format:
            raise ValueError("audio whose format changes on the way")
        part = chunk.audio[: self._most - self._length]
        self._parts.append(part)
        self._length += len(part)

    def waveform(self) -> NDArray[Any]:
        _, width, channels = self.format
        content = b"".join(self._parts)
        whole = len(content) // (width * channels) * width * channels
        samples = np.frombuffer(content[:whole], DTYPES[width]).reshape(-1, channels)
        return samples.astype(samples.dtype.newbyteorder("="))


class Connection(AsyncEventHandler):
    """One client: an assistant or a satellite, with its own connection to the upstream."""

    def __init__(self, service: Service, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(_Bounded(reader), writer)  # type: ignore[arg-type]
        self._service = service
        self._peer = writer.get_extra_info("peername") or "a local client"
        self._upstream: AsyncClient | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._utterance: _Utterance | None = None
        self._decision: asyncio.Task[Decision | str] | None = None
        self._deadline: asyncio.Task[None] | None = None
        self._asked = False  # whether the client waits for a transcript
        self._skipping = False  # the rest of an utterance that failed
        self._writing = asyncio.Lock()

    async def run(self) -> None:
        """Serve the client until it leaves or sends what cannot be understood."""
        self._service.num_clients += 1
        try:
            if self._service.num_clients > MOST_CLIENTS:
                LOG.warning("%s: refused, %d clients are connected", self._peer, MOST_CLIENTS)
                return
            await super().run()
        except (ConnectionError, asyncio.IncompleteReadError):
            LOG.info("%s: left in the middle", self._peer)
        except (asyncio.TimeoutError, TimeoutError):
            LOG.warning("%s: no answer within the time limit", self._peer)
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            LOG.warning("%s: what came is not Wyoming (%s: %s)", self._peer, type(error).__name__, error)
        finally:
            self._service.num_clients -= 1
            self.writer.close()
            await self.disconnect()

    async def disconnect(self) -> None:
        """End what was under way for this client."""
        for task in (*self._tasks, self._decision, self._deadline):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            await _leave(upstream)

    async def write_event(self, event: Event) -> None:
        """Send one event; what two tasks send does not mix."""
        async with self._writing:
            await super().write_event(event)

    async def handle_event(self, event: Event) -> bool:
        """Take one event of the client; False ends the connection."""
        if Transcribe.is_type(event.type) or AudioStart.is_type(event.type):
            self._skipping = False
        if self._skipping:
            return True
        if AudioStart.is_type(event.type):
            start = AudioStart.from_event(event)
            self._utterance = _Utterance(start.rate, start.width, start.channels)
            self._forget_decision()
        elif AudioChunk.is_type(event.type):
            chunk = AudioChunk.from_event(event)
            if self._utterance is None:  # some clients leave the start out
                self._utterance = _Utterance(chunk.rate, chunk.width, chunk.channels)
                self._forget_decision()
            self._utterance.add(chunk)
        elif AudioStop.is_type(event.type) and not self._service.enrolling:
            self._begin_decision()
        self._asked = self._asked or Transcribe.is_type(event.type) or event.type.startswith("audio-")
        if self._service.enrolling:
            await self._enrol(event)
        elif self._service.upstream is None:
            await self._without_upstream(event)
        else:
            await self._pass_on(event)
        return True

    async def _without_upstream(self, event: Event) -> None:
        if Describe.is_type(event.type):
            await self.write_event(self._service.info().event())
        elif Ping.is_type(event.type):
            await self.write_event(Pong(text=Ping.from_event(event).text).event())
        elif AudioStop.is_type(event.type):
            await self._answer(Transcript(""))

    async def _pass_on(self, event: Event) -> None:
        assert self._service.upstream is not None  # else `_without_upstream`
        try:
            if self._upstream is None:
                upstream = AsyncClient.from_uri(self._service.upstream, connect_timeout=CONNECT_TIMEOUT_S)
                await upstream.connect()
                self._upstream = upstream
                self._spawn(self._listen(upstream))
            await asyncio.wait_for(self._upstream.write_event(event), STALL_TIMEOUT_S)
        except (AssertionError, OSError, asyncio.TimeoutError) as error:  # the first one: it has just left
            await self._fail(f"the speech-to-text at {self._service.upstream} does not answer ({error or 'timeout'})")
            return
        if AudioStop.is_type(event.type):
            self._deadline = asyncio.create_task(self._expect_answer())

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _listen(self, upstream: AsyncClient) -> None:
        """Take what the upstream sends until it leaves."""
        reason = "the speech-to-text closed the connection"
        try:
            while True:
                event = await upstream.read_event()
                if event is None:
                    break
                await self._from_upstream(event)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            reason = f"the connection to the speech-to-text broke ({error})"
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            reason = f"what the speech-to-text sent is not Wyoming ({type(error).__name__}: {error})"
        finally:
            await _leave(upstream)
        if upstream is self._upstream:
            with contextlib.suppress(ConnectionError):
                await self._fail(reason)

    async def _from_upstream(self, event: Event) -> None:
        if Info.is_type(event.type):
            await self.write_event(self._service.info(Info.from_event(event)).event())
        elif Transcript.is_type(event.type):
            if self._deadline is not None:
                self._deadline.cancel()
            await self._answer(Transcript.from_event(event))
        elif self._service.require and any(part.is_type(event.type) for part in PARTS):
            return  # parts of a transcript: nothing goes out before the decision
        else:
            await self.write_event(event)

    async def _expect_answer(self) -> None:
        await asyncio.sleep(self._service.answer_timeout_s)
        with contextlib.suppress(ConnectionError):
            await self._fail(f"no transcript within {self._service.answer_timeout_s:g} s")

    async def _fail(self, reason: str) -> None:
        """An error, and an empty transcript for a client that waits for one; the next utterance begins anew."""
        LOG.error("%s: %s", self._peer, reason)
        upstream, self._upstream = self._upstream, None
        asked, self._asked, self._skipping = self._asked, False, True
        self._utterance = None
        self._forget_decision()
        if self._deadline is not None and self._deadline is not asyncio.current_task():
            self._deadline.cancel()
        await self.write_event(Error(reason, "upstream").event())
        if asked:
            await self.write_event(Transcript("").event())
        if upstream is not None:
            await _leave(upstream)

    def _forget_decision(self) -> None:
        if self._decision is not None:
            self._decision.cancel()
        self._decision = None

    def _begin_decision(self) -> None:
        utterance, self._utterance = self._utterance, None
        if self._decision is None:
            waveform = np.empty(0, np.int16) if utterance is None else utterance.waveform()
            rate = 16000 if utterance is None else utterance.format[0]
            self._decision = asyncio.create_task(self._service.decide(waveform, rate))

    async def _answer(self, transcript: Transcript) -> None:
        """Send the transcript that this utterance deserves."""
        self._asked = False
        self._begin_decision()  # an upstream that ends the utterance itself answers before the audio's end
        assert self._decision is not None  # just begun
        decided, self._decision = await self._decision, None
        if isinstance(decided, str):
            verdict, name, llr, reason = "no_decision", None, None, decided
        else:
            verdict, reason = decided.verdict.name.lower(), decided.reason
            name, llr = decided.speaker if decided.accepted else None, decided.score
        LOG.info("%s: %s%s (%s)", self._peer, verdict, f" {name}" if name else "", reason)
        speaker = {"name": name, "verdict": verdict, "llr": llr, "reason": reason}
        if self._service.upstream is None:
            transcript = Transcript(name or "", language=transcript.language)
        elif self._service.require and name is None:
            transcript = Transcript("", language=transcript.language)
            await self.write_event(UserEvent("speaker-refused", speaker).event())
        elif self._service.prefix and name is not None and transcript.text:
            transcript.text = f"{name}: {transcript.text}"
        transcript.context = {**(transcript.context or {}), "speaker": speaker}
        await self.write_event(transcript.event())

    async def _enrol(self, event: Event) -> None:
        if not AudioStop.is_type(event.type):
            await self._without_upstream(event)
            return
        utterance, self._utterance = self._utterance, None
        message = "no audio came before the end"
        if utterance is not None:
            message = await self._service.enrol(utterance.waveform(), utterance.format[0])
        LOG.info("%s: %s", self._peer, message)
        self._asked = False
        await self.write_event(UserEvent("enrolment", {"message": message}).event())
        await self.write_event(Transcript("").event())


async def _leave(upstream: AsyncClient) -> None:
    """Close a connection, whatever became of it."""
    with contextlib.suppress(OSError):
        await upstream.disconnect()


def is_loopback(uri: str) -> bool:
    """Whether only programs of this machine reach a service at this URI."""
    found = urlparse(uri)
    return found.scheme != "tcp" or found.hostname in ("127.0.0.1", "::1", "localhost")


async def serve(service: Service, uri: str) -> None:
    """Serve clients at a URI until cancelled.

    Parameters
    ----------
    service : Service
    uri : str
        ``tcp://HOST:PORT`` or ``unix://PATH``.

    Raises
    ------
    ValueError
        If the URI is of another kind, or names no port.
    OSError
        If the address cannot be used.
    """
    server = AsyncServer.from_uri(uri)
    if not is_loopback(uri):
        LOG.warning("%s: the protocol has no authentication; whoever reaches this port can send audio", uri)
    await server.run(lambda reader, writer: Connection(service, reader, writer))
