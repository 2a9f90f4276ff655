"""Fetches a page by HTTP within a time and a size, whatever whoever answers does."""

import asyncio
import ssl
from pathlib import Path
from typing import Final, NamedTuple, Self
from urllib.parse import urlsplit

from cluster.addresses import Endpoint
from cluster.errors import ConfigError

MAX_BYTES: Final = 16 << 20
_PORTS: Final = {"http": 80, "https": 443}


class ScrapeFailed(Exception):
    """A page did not come, or is none; its text says why."""


class Url(NamedTuple):
    """Where a page is, by HTTP."""

    is_tls: bool
    endpoint: Endpoint
    path: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ConfigError. Without a path it is `/metrics`, without a scheme HTTP."""
        try:
            parts = urlsplit(text if "://" in text else f"http://{text}")
            port = parts.port or _PORTS[parts.scheme]
            host = parts.hostname
        except (ValueError, KeyError):
            host = None
        if not host or parts.username or not text.isprintable() or " " in text:
            raise ConfigError(
                f"'{text}' is no address of a page: give one as http://HOST:PORT/metrics."
            )
        path = parts.path if parts.path not in ("", "/") else "/metrics"
        return cls(parts.scheme == "https", Endpoint(host, port), path)

    def beside(self, path: str) -> "Url":
        return self._replace(path=path)

    def __str__(self) -> str:
        return f"{'https' if self.is_tls else 'http'}://{self.endpoint}{self.path}"


class Access(NamedTuple):
    """What is shown to who answers, and whom to believe there."""

    authorization: str = ""  # a header; empty: none
    tls: ssl.SSLContext | None = None  # None: the system's roots

    @classmethod
    def of(cls, authorization: str, ca_file: Path | None) -> Self:
        """Raises ConfigError."""
        try:
            return cls(authorization, ssl.create_default_context(cafile=ca_file))
        except OSError as error:  # `SSLError` is one
            raise ConfigError(
                f"'{ca_file}' is no file of certificates ({error.strerror or error}): give one in"
                " PEM with --ca-file."
            ) from error


OPENLY: Final = Access()


async def fetch(url: Url, *, timeout_s: float, access: Access = OPENLY) -> str:
    """Raises ScrapeFailed."""
    try:
        async with asyncio.timeout(timeout_s):
            answer = await _exchange(url, access)
    except TimeoutError:
        raise ScrapeFailed(f"nothing came within {timeout_s:g} s") from None
    except ssl.SSLCertVerificationError as error:
        why = f"its certificate is not believed, {error.verify_message}: see --ca-file"
        raise ScrapeFailed(why) from error
    except ssl.SSLError as error:
        raise ScrapeFailed(f"it does not speak TLS as we do ({error.reason})") from error
    except (OSError, asyncio.LimitOverrunError) as error:
        raise ScrapeFailed(_why(error)) from error
    head, _, body = answer.partition(b"\r\n\r\n")
    _check_status(head)
    return body.decode("utf-8", "replace")


async def _exchange(url: Url, access: Access) -> bytes:
    """By HTTP/1.0: the answer is what comes until the end, and in one piece."""
    lines = [f"GET {url.path} HTTP/1.0", f"host: {url.endpoint}"]
    lines += [f"authorization: {access.authorization}"] if access.authorization else []
    context = (access.tls or ssl.create_default_context()) if url.is_tls else None
    reader, writer = await asyncio.open_connection(*url.endpoint, ssl=context)
    try:
        writer.write("\r\n".join([*lines, "", ""]).encode())
        parts, num_bytes = list[bytes](), 0
        while part := await reader.read(1 << 16):
            parts.append(part)
            num_bytes += len(part)
            if num_bytes > MAX_BYTES:
                raise ScrapeFailed(f"its page is larger than {MAX_BYTES >> 20} MiB")
        return b"".join(parts)
    finally:
        writer.transport.abort()


def _check_status(head: bytes) -> None:
    if not head:
        raise ScrapeFailed(
            "it hung up before it answered: where it speaks TLS say https; where it wants a"
            " certificate of its clients, ask at its own port of metrics, which wants none"
        )
    words = head.partition(b"\r\n")[0].decode("latin-1").split(" ")
    if len(words) < 2 or not words[0].startswith("HTTP/") or not words[1].isdigit():
        raise ScrapeFailed("it does not speak HTTP")
    if words[1] in ("401", "403"):
        raise ScrapeFailed(f"it answers {words[1]}: give a key that it knows with --api-key")
    if words[1] != "200":
        raise ScrapeFailed(f"it answers {words[1]}")


def _why(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there"
    return str(getattr(error, "strerror", None) or error or type(error).__name__).lower()
