"""A proxy before a tracking server that makes seeded faults.

Every fault is counted, so that a test can assert that it happened.
"""

import asyncio
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

Fault = Literal["reset", "hang", "503", "429", "400", "401", "403", "404", "413", "html", "lost", "half"]
"""``lost``: the request is applied, and its answer never arrives. ``half``: the connection ends in the middle of it."""

_STATUS = {
    "400": "400 Bad Request",
    "401": "401 Unauthorized",
    "403": "403 Forbidden",
    "404": "404 Not Found",
    "413": "413 Request Entity Too Large",
    "429": "429 Too Many Requests",
    "503": "503 Service Unavailable",
}
_PAGE = b"<html><body><h1>Please log in</h1></body></html>"


@dataclass(frozen=True)
class Rule:
    """What happens to requests.

    Attributes:
        route: a pattern that is searched in ``METHOD /path``.
        faults: one of them is drawn.
        chance: of a fault, for each request.
        most: so many faults, and no more.
        skip: so many requests are left alone first.
        retry_after: seconds, of a 429 or 503.
    """

    route: str
    faults: Sequence[Fault]
    chance: float = 1.0
    most: int = 10**9
    skip: int = 0
    retry_after: str = "1"


class FaultProxy:
    """Forwards requests from 127.0.0.1 to a port by changeable rules."""

    def __init__(self, target: int, seed: int = 0) -> None:
        self.target = target
        self.rules: Sequence[Rule] = ()
        self.happened: Counter[str] = Counter()
        """How often each fault happened, and ``METHOD /path`` of every request."""
        self.hang_seconds = 60.0
        self._random = random.Random(seed)
        self._matched: Counter[int] = Counter()
        self._made: Counter[int] = Counter()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="fault-proxy", daemon=True)
        self._thread.start()
        assert self._ready.wait(60)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something after some time."""
        self._loop.call_soon_threadsafe(self._loop.call_later, seconds, action)

    def end_hangs(self) -> None:
        """Cut the connections of all requests that hang now."""
        self._loop.call_soon_threadsafe(self._end_hangs)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        pending = asyncio.all_tasks(self._loop)
        for task in pending:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        self._loop.close()

    async def _listen(self) -> None:
        self._stopping, self._hangs_end = asyncio.Event(), asyncio.Event()
        server = await asyncio.start_server(self._client, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopping.wait()
        server.close()

    def _end_hangs(self) -> None:
        ended, self._hangs_end = self._hangs_end, asyncio.Event()
        ended.set()

    def _drawn(self, request: str) -> tuple[Fault | None, Rule | None]:
        for rule in self.rules:
            if not re.search(rule.route, request):
                continue
            self._matched[id(rule)] += 1
            if self._matched[id(rule)] <= rule.skip or self._made[id(rule)] >= rule.most:
                continue
            if self._random.random() < rule.chance:
                self._made[id(rule)] += 1
                return self._random.choice(list(rule.faults)), rule
        return None, None

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, EOFError):
            pass
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Pass one request on, or make a fault of it; return whether the connection stays."""
        head = await _head(reader)
        if not head:
            return False
        method, path, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
        body = await _body(head, reader)
        request = f"{method} {path.partition('?')[0]}"
        self.happened[request] += 1
        fault, rule = self._drawn(request)
        if fault is not None and rule is not None:
            self.happened[fault] += 1
            return await self._fault(fault, rule, head + body, writer)
        answer = await self._forwarded(head + body)
        writer.write(answer)
        await writer.drain()
        return False

    async def _fault(self, fault: Fault, rule: Rule, request: bytes, writer: asyncio.StreamWriter) -> bool:
        if fault == "hang":
            with suppress(TimeoutError):
                await asyncio.wait_for(self._hangs_end.wait(), self.hang_seconds)
        elif fault == "lost":
            await self._forwarded(request)
        elif fault == "half":
            answer = await self._forwarded(request)
            writer.write(answer[: len(answer) // 2])
            await writer.drain()
        elif fault == "html":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n")
            writer.write(f"Content-Length: {len(_PAGE)}\r\n\r\n".encode() + _PAGE)
            await writer.drain()
            return False
        elif fault != "reset":
            writer.write(f"HTTP/1.1 {_STATUS[fault]}\r\nRetry-After: {rule.retry_after}\r\n".encode())
            writer.write(b"Content-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
            return False
        writer.transport.abort()
        return False

    async def _forwarded(self, request: bytes) -> bytes:
        head, _, body = request.partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
        there, onward = await asyncio.open_connection("127.0.0.1", self.target)
        onward.write(b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n" + body)
        await onward.drain()
        answer = await there.read()
        onward.close()
        return answer


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


async def _body(head: bytes, reader: asyncio.StreamReader) -> bytes:
    length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
    if length is not None:
        return await reader.readexactly(int(length[1]))
    if re.search(rb"transfer-encoding: *chunked", head, re.IGNORECASE):
        body = b""
        while True:
            size = await reader.readline()
            rest = await reader.readexactly(int(size, 16) + 2)
            body += size + rest
            if int(size, 16) == 0:
                return body
    return b""
