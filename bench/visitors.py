"""Visitors: each opens a connection of its own, asks for one page and reads it to the end. They come at a
fixed rate whether earlier ones were served or not, so a stall meets as many of them as it would in life.
Called by measures.py."""

import asyncio
import time
from dataclasses import dataclass

PATIENCE = 40  # longer than the edge holds a request


@dataclass
class Visit:
    begun: float  # seconds of the epoch
    wait: float  # seconds until the page was complete or the visit failed
    fault: str | None  # None: the page came as it should

    @property
    def ended(self):
        return self.begun + self.wait


async def visit(address, host, path="/", patience=PATIENCE):
    begun = time.time()
    try:
        async with asyncio.timeout(patience):
            fault = await fetch(address, host, path)
    except TimeoutError:
        fault = f"no answer in {patience} s"
    except OSError as error:
        fault = error.strerror or type(error).__name__
    return Visit(begun, time.time() - begun, fault)


async def fetch(address, host, path):
    reader, writer = await asyncio.open_connection(address, 80)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        page = await reader.read(-1)
    finally:
        writer.transport.abort()
    status = page.split(b"\r\n", 1)[0].decode(errors="replace")
    if not status.startswith("HTTP/1.1 200"):
        return status or "closed without an answer"
    return None if b"bench page" in page else "a page that is not ours"


class Stream:
    """Visits at a fixed rate in the background until `end`."""

    def __init__(self, address, host, per_second, path="/", patience=PATIENCE):
        self.visits = []
        self.task = asyncio.create_task(self.flow(address, host, 1 / per_second, path, patience))

    async def flow(self, address, host, pause, path, patience):
        next_at = time.monotonic()
        while True:
            self.visits.append(asyncio.create_task(visit(address, host, path, patience)))
            next_at += pause
            await asyncio.sleep(max(0, next_at - time.monotonic()))

    async def end(self):
        """Lets nobody else come, waits for those who are there, and tells how it went for each."""
        self.task.cancel()
        return await asyncio.gather(*self.visits)


class Crowd:
    """A number of visitors each of whom comes again as soon as served."""

    def __init__(self, address, host, number, path):
        self.tasks = [asyncio.create_task(self.stay(address, host, path)) for _ in range(number)]

    async def stay(self, address, host, path):
        while True:
            if (await visit(address, host, path)).fault:
                await asyncio.sleep(0.1)

    async def leave(self):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
