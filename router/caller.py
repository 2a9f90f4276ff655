"""Says who asked, as serving a request needs to know: the seam between front door and relay."""

from typing import Protocol

from router.callers.key_file import ApiKey


class Caller(Protocol):
    """A front door makes one for each request. gRPC's is `cluster.rpc.Call`, as it is."""

    phase: str  # what the request waits for: told to who is cut off
    tokens_emitted: int  # the same

    @property
    def key(self) -> ApiKey:
        """Says by which key it was let in."""
        ...

    @property
    def remaining_s(self) -> float | None:
        """Says how long until its deadline; None: it has none."""
        ...

    async def send_metadata(self, *metadata: tuple[str, str]) -> None:
        """Sends what comes before the first message, together with it."""
        ...

    async def send(self, message: bytes) -> None:
        """Sends a serialised `GenerateResponse`; waits while nobody reads. Raises PeerError where
        the caller has gone."""
        ...
