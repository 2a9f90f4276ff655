"""A client of server-sent events that keeps what it needs to come back."""

import asyncio
import json
from typing import Any

from tests.router.http_clients import parsed_reply


class EventStream:
    """The connection of a client that keeps what it needs to come back."""

    def __init__(self, address: str, method: str, path: str, body: Any = None, **headers: str):
        data = b"" if body is None else json.dumps(body).encode()
        named = {"host": "x", "content-type": "application/json", "content-length": len(data)}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in named.items())
        head += "connection: close\r\n\r\n"
        self._request = f"{method} {path} HTTP/1.1\r\n{head}".encode() + data
        self._address = address.split(":")
        self.came = b""  # its head, too
        self.is_over = False
        self._reader: asyncio.StreamReader | None = None

    async def read(self, num_events: int | None = None) -> None:
        """Until so many have come, or to the end."""
        while not self.is_over:
            await self.read_some()
            if num_events is not None and self.came.count(b"data: {") >= num_events:
                return  # and the connection stays

    async def read_some(self) -> None:
        """Raises OSError where nobody listens any more."""
        if self._reader is None:
            self._reader, self._writer = await asyncio.open_connection(*self._address)
            self._writer.write(self._request)
        async with asyncio.timeout(60):
            data = await self._reader.read(1 << 16)
        self.came += data
        self.is_over = not data
        if self.is_over:
            self.close()

    def close(self) -> None:
        self._writer.close()

    @property
    def status(self) -> int:
        return int(self.came.split(b" ", 2)[1])

    @property
    def headers(self) -> dict[str, str]:
        return parsed_reply(self.came.partition(b"\r\n\r\n")[0] + b"\r\n\r\n").headers

    @property
    def events(self) -> list[tuple[str, str]]:
        """Those that are whole: their ids, and what they say."""
        found = []
        for event in self.came.decode().replace("\r\n", "\n").split("\n\n")[:-1]:
            lines = dict(line.split(": ", 1) for line in event.split("\n") if ": " in line)
            if "data" in lines:
                found.append((lines.get("id", ""), lines["data"]))
        return found


def told(events: list[tuple[str, str]]) -> tuple[list[int], str]:
    ids: list[int] = []
    text = ""
    for _, data in events:
        for choice in json.loads(data)["choices"] if data != "[DONE]" else ():
            ids += choice.get("token_ids") or ()
            text += choice["text"] if "text" in choice else choice["delta"].get("content") or ""
    return ids, text
