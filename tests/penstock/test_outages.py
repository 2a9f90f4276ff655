"""What a caller of either client sees while its server is away, on real sockets."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

import penstock
from penstock import AsyncClient, Client
from penstock.v1 import inference_pb2_grpc

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

Ask = Callable[..., penstock.Answer]
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def free_address() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


@contextmanager
def serving(fake: Any, address: str) -> Iterator[None]:
    """The scripted server at a given address, and its end as of a killed process."""
    with ThreadPoolExecutor(40) as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        inference_pb2_grpc.add_InferenceServicer_to_server(fake, server)
        server.add_insecure_port(address)
        server.start()
        try:
            yield
        finally:
            fake.cancelled.set()
            server.stop(None).wait()


class Restarting:
    """One address at which a scripted server comes and goes."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.address = free_address()
        self.make = make

    @contextmanager
    def up(self, *steps: Any) -> Iterator[Any]:
        fake = self.make()
        if steps:
            fake.steps = list(steps)
        with serving(fake, self.address):
            yield fake

    @contextmanager
    def back_after(self, seconds: float, *steps: Any) -> Iterator[None]:
        """A server that comes up by itself while the block runs."""
        is_over = threading.Event()

        def run() -> None:
            is_over.wait(seconds)
            with self.up(*steps):
                is_over.wait(30)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()


@pytest.fixture
def fakes(request: pytest.FixtureRequest) -> Any:
    return request.config.pluginmanager.get_plugin(str(request.path.parent / "conftest.py"))


@pytest.fixture
def place(fakes: Any) -> Restarting:
    return Restarting(fakes.FakeInference)


class Session:
    """Either client behind blocking calls, so that one test is about both."""

    def __init__(self, kind: str, address: str, **waits: float) -> None:
        self._loop = asyncio.new_event_loop() if kind == "async" else None
        self._client: Any = (
            Client(address, **waits) if self._loop is None else self._made(address, waits)
        )

    def _made(self, address: str, waits: dict[str, float]) -> AsyncClient:
        async def make() -> AsyncClient:
            return AsyncClient(address, **waits)

        assert self._loop is not None
        return self._loop.run_until_complete(make())

    def generate(self, **options: Any) -> penstock.Answer:
        return self._run(lambda: self._client.generate("Hi", **options).result())

    def tokenize(self, text: str) -> list[int]:
        return self._run(lambda: self._client.tokenize(text))

    def many(self, num: int) -> list[penstock.Answer]:
        """So many answers at once."""
        if self._loop is None:
            with ThreadPoolExecutor(num) as pool:
                return list(pool.map(lambda _: self.generate(), range(num)))

        async def gather() -> list[penstock.Answer]:
            return await asyncio.gather(*(self._client.generate("Hi").result() for _ in range(num)))

        return self._loop.run_until_complete(gather())

    def _run(self, ask: Callable[[], Any]) -> Any:
        if self._loop is None:
            return ask()

        async def run() -> Any:
            return await ask()

        return self._loop.run_until_complete(run())

    def close(self) -> None:
        self._run(self._client.close)
        if self._loop is not None:
            self._loop.close()


@pytest.fixture(params=[pytest.param("sync", marks=pytest.mark.prove), "async"])
def session(request: pytest.FixtureRequest) -> Iterator[Callable[..., Session]]:
    opened: list[Session] = []

    def open_one(address: str, **waits: float) -> Session:
        opened.append(Session(request.param, address, **waits))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


def test_calls_wait_for_a_server_that_is_started_again(
    place: Restarting, session: Callable[..., Session]
) -> None:
    client = session(place.address)
    with place.up():
        client.generate()
    with place.back_after(1.5):
        assert client.generate().text == "Hello."
    with place.back_after(1.0):
        assert client.tokenize("a bb") == [1, 2]


def test_many_calls_wait_together_and_later_ones_are_not_made_to_pay(
    place: Restarting, session: Callable[..., Session]
) -> None:
    client = session(place.address)
    with place.up():
        client.generate()
    with place.back_after(1.5):
        assert {answer.text for answer in client.many(30)} == {"Hello."}
        began = time.monotonic()
        assert {answer.text for answer in client.many(30)} == {"Hello."}
        assert time.monotonic() - began < 10.0


def test_a_call_whose_server_is_killed_before_the_first_token_is_sent_again(
    place: Restarting, session: Callable[..., Session]
) -> None:
    """Also the very first of a client."""
    got: list[str] = []
    is_asked = threading.Event()

    def silent(context: Any) -> Iterator[Any]:
        is_asked.set()
        context.add_callback(lambda: None)
        fake.cancelled.wait(10)
        context.abort(UNAVAILABLE, "")
        yield

    client = session(place.address)
    with ThreadPoolExecutor(1) as pool:
        with place.up(silent) as fake:
            answer = pool.submit(client.generate)
            assert is_asked.wait(10)
            got += [request.request_id for request in fake.requests]
        with place.up() as again:
            assert answer.result(20).text == "Hello."
            got += [request.request_id for request in again.requests]
    assert len(got) == 2
    assert len(set(got)) == 1


def test_a_draining_server_is_waited_out(
    place: Restarting, session: Callable[..., Session], fakes: Any
) -> None:
    going = fakes.refuses(UNAVAILABLE, "DRAINING", pushback="50")
    client = session(place.address)
    with place.up(*[going] * 8, fakes.answers):
        assert client.generate().text == "Hello."
    with place.up(*[fakes.refuses(UNAVAILABLE, "NO_WORKER", pushback="50")] * 8, fakes.answers):
        assert client.generate().text == "Hello."


def test_a_call_waits_no_longer_than_it_may(
    place: Restarting, session: Callable[..., Session]
) -> None:
    client = session(place.address, reconnect_timeout=1.0)
    with place.up():
        client.generate()
    began = time.monotonic()
    with pytest.raises(penstock.UnreachableError, match=place.address):
        client.generate()
    assert 0.9 < time.monotonic() - began < 5.0
    began = time.monotonic()
    with pytest.raises(penstock.DeadlineExceededError, match=place.address):
        client.generate(timeout=2.0)
    assert 1.9 < time.monotonic() - began < 6.0


def no_http2(answer: bytes) -> Iterator[str]:
    """A port where something else listens."""
    listening = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(1)
                connection.recv(64)
                connection.sendall(answer)

    thread = threading.Thread(target=run)
    thread.start()
    yield f"127.0.0.1:{listening.getsockname()[1]}"
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join()


@pytest.fixture
def http1() -> Iterator[str]:
    yield from no_http2(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.fixture
def tls() -> Iterator[str]:
    yield from no_http2(bytes([21, 3, 1, 0, 2, 2, 70]))


@pytest.fixture
def silent() -> Iterator[str]:
    """A port that takes connections and says nothing, as that of a stopped process."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def unresolvable() -> str:
    return "no-such-host.invalid:50051"


@pytest.fixture
def nobody() -> str:
    return free_address()


@pytest.mark.parametrize("where", ["nobody", "unresolvable", "http1", "tls", "silent"])
def test_an_address_without_a_server_is_named_in_time(
    where: str, request: pytest.FixtureRequest, session: Callable[..., Session]
) -> None:
    address = request.getfixturevalue(where)
    client = session(address, connect_timeout=1.0)
    began = time.monotonic()
    with pytest.raises(penstock.UnreachableError) as caught:
        client.generate()
    assert 0.9 < time.monotonic() - began < 5.0
    assert caught.value.message.startswith(f"{address} could not be reached within 1 s: ")
    with pytest.raises(penstock.UnreachableError, match="could not be reached"):
        client.tokenize("a")


def test_a_deadline_ends_a_call_whose_connection_lives_and_says_nothing(
    silent: str, session: Callable[..., Session]
) -> None:
    began = time.monotonic()
    with pytest.raises(penstock.DeadlineExceededError, match=silent):
        session(silent).generate(timeout=0.5)
    assert time.monotonic() - began < 5.0


def test_a_client_that_waits_from_the_start_meets_a_server_that_comes(
    place: Restarting, session: Callable[..., Session]
) -> None:
    client = session(place.address)
    with place.back_after(1.0):
        assert client.generate().text == "Hello."


# -- leaving while it waits ------------------------------------------------------------------


async def is_waiting(stream: Any) -> None:
    """Returns when it has looked for its server a few times."""
    async with asyncio.timeout(10):
        while stream._exchange.attempts.num_failed < 4:  # noqa: ASYNC110 - of other threads
            await asyncio.sleep(0.01)


def test_closing_a_stream_ends_its_wait(nobody: str) -> None:
    with Client(nobody, connect_timeout=50.0) as client, ThreadPoolExecutor(1) as pool:
        stream = client.generate("Hi")
        reading = pool.submit(stream.result)
        asyncio.run(is_waiting(stream))
        stream.close()
        with pytest.raises(penstock.RequestCancelledError):
            reading.result(5)


async def test_closing_an_async_stream_ends_its_wait(nobody: str) -> None:
    async with AsyncClient(nobody, connect_timeout=50.0) as client:
        stream = client.generate("Hi")
        reading = asyncio.create_task(stream.result())
        await is_waiting(stream)
        stream.close()
        async with asyncio.timeout(5):
            with pytest.raises(penstock.RequestCancelledError):
                await reading


async def test_cancelling_the_reader_ends_the_wait(nobody: str) -> None:
    async with AsyncClient(nobody, connect_timeout=50.0) as client:
        stream = client.generate("Hi")
        reading = asyncio.create_task(stream.result())
        await is_waiting(stream)
        reading.cancel()
        async with asyncio.timeout(5):
            with pytest.raises(asyncio.CancelledError):
                await reading


def test_closing_the_client_ends_what_waits(nobody: str) -> None:
    client = Client(nobody, connect_timeout=50.0)
    with ThreadPoolExecutor(2) as pool:
        stream = client.generate("Hi")
        reading = pool.submit(stream.result)
        models = pool.submit(client.models)
        asyncio.run(is_waiting(stream))
        client.close()
        for each in (reading, models):
            with pytest.raises(penstock.RequestCancelledError):
                each.result(5)


async def test_closing_the_async_client_ends_what_waits(nobody: str) -> None:
    client = AsyncClient(nobody, connect_timeout=50.0)
    stream = client.generate("Hi")
    waiting = [asyncio.create_task(stream.result()), asyncio.create_task(client.models())]
    await is_waiting(stream)
    await client.close()
    async with asyncio.timeout(5):
        for each in waiting:
            with pytest.raises(penstock.RequestCancelledError):
                await each
