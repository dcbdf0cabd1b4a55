"""Decisions inside an asyncio program: `python examples/asyncio_listen.py ana`.

A thread reads the microphone and judges; the event loop only ever waits on a queue. A bounded
queue would make the thread, and so the microphone, wait for a slow consumer; decisions are few and
small, so this one is not bounded.
"""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Iterable
from typing import Any

from emoinv_edge import Decision, Encoder, Microphone, ProfileStore, Verifier
from emoinv_edge.microphone import Gap


async def decisions(verifier: Verifier, chunks: Iterable[Any]) -> AsyncIterator[Decision]:
    """Yield decisions on chunks, at the encoder's rate, which are read and judged in a thread."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Decision | BaseException | None] = asyncio.Queue()
    stop = threading.Event()

    def put(item: Decision | BaseException | None) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, item)

    def judge() -> None:
        stream = verifier.stream(verifier.encoder.spec.sample_rate)
        try:
            for item in chunks:
                if stop.is_set():
                    return
                found = stream.gap(item.num_samples) if isinstance(item, Gap) else stream.process(item)
                for decision in found:
                    put(decision)
            for decision in stream.flush():
                put(decision)
            put(None)
        except BaseException as error:  # whatever it is, the consumer must not wait for ever
            put(error)

    thread = threading.Thread(target=judge, daemon=True)
    thread.start()
    try:
        while (item := await queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        await asyncio.to_thread(thread.join, 2.0)  # a source that sends nothing more must not hold up the program


async def main(name: str) -> None:
    """Print who speaks while another task does its own work."""
    encoder = Encoder.default()
    verifier = ProfileStore().verifier(name, encoder)

    async def other_work() -> None:
        while True:
            await asyncio.sleep(10)
            print("still here")

    work = asyncio.create_task(other_work())
    try:
        with Microphone(encoder.spec.sample_rate) as microphone:
            async for decision in decisions(verifier, microphone):
                if decision.final:
                    print(decision.verdict.value, decision.speaker, decision.reason)
    finally:
        work.cancel()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
