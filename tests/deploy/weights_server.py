"""Serves a directory by HTTP, in parts, as object stores do, and does wrong what it is told to:
breaks off, holds back, serves no parts."""

import contextlib
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deploy.cluster_file.local import SHIPPED_MODEL
from deploy.weights.manifest import NAME, manifest_of
from deploy.weights.origin import Weights

MODEL = "model.safetensors"
MODEL_BYTES = 5 << 20


class Sent(NamedTuple):
    """A part of a file that was asked for."""

    name: str
    start: int
    end: int


@dataclass
class WeightsServer:
    """`folder` is what it serves, under any path."""

    folder: Path
    port: int = 0
    sent: list[Sent] = field(default_factory=list)
    breaks: Counter[str] = field(default_factory=Counter)  # so many answers end in their middle
    hold_at: int | None = None  # no byte of the model from here on, until it is released
    released: threading.Event = field(default_factory=threading.Event)
    has_parts: bool = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/models/tiny"

    @property
    def weights(self) -> Weights:
        return Weights(source=self.url, digest=manifest_of(self.folder).digest)

    def num_sent(self, name: str) -> int:
        """Bytes of it that were asked for."""
        return sum(each.end - each.start for each in self.sent if each.name == name)


def make_weights(folder: Path) -> Path:
    """A directory that looks like a checkpoint, with its list."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}" * 1000)
    (folder / MODEL).write_bytes(np.random.default_rng(7).bytes(MODEL_BYTES))
    (folder / NAME).write_bytes(manifest_of(folder).text)
    return folder


def copy_of_the_shipped_model(folder: Path) -> Path:
    """With its list."""
    shutil.copytree(SHIPPED_MODEL, folder)
    (folder / NAME).write_bytes(manifest_of(folder).text)
    return folder


@contextmanager
def serving_weights(folder: Path) -> Iterator[WeightsServer]:
    served = WeightsServer(folder)
    handler = type("Handler", (_Handler,), {"served": served})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        served.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield served
        finally:
            served.released.set()
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: WeightsServer

    def log_message(self, *_: Any) -> None:
        """Nobody reads it."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        name = self.path.rpartition("/")[2]
        path = self.served.folder / name
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = path.read_bytes()
        start, end = self._range(len(data))
        is_part = (start, end) != (0, len(data)) or "Range" in self.headers
        self.send_response(206 if is_part and self.served.has_parts else 200)
        if is_part and self.served.has_parts:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.send_header("Content-Length", str(end - start))
        self.send_header("ETag", '"one"')
        self.send_header("Last-Modified", formatdate(0, usegmt=True))
        self.end_headers()
        if with_body:
            self.served.sent.append(Sent(name, start, end))
            with contextlib.suppress(OSError):  # whoever asked was killed
                self._send(name, data, start, end)

    def _range(self, size: int) -> tuple[int, int]:
        said = self.headers.get("Range")
        if said is None or not self.served.has_parts:
            return 0, size
        first, _, last = said.removeprefix("bytes=").partition("-")
        return int(first), min(int(last) + 1 if last else size, size)

    def _send(self, name: str, data: bytes, start: int, end: int) -> None:
        if self.served.breaks[name] > 0:
            self.served.breaks[name] -= 1
            self.wfile.write(data[start : (start + end) // 2])
            self.connection.shutdown(2)
            self.close_connection = True
            return
        held_at = self.served.hold_at
        if name == MODEL and held_at is not None and start < held_at < end:
            self.wfile.write(data[start:held_at])
            self.wfile.flush()
            self.served.released.wait(60)
            start = held_at
        self.wfile.write(data[start:end])
