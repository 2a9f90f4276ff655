"""Keeps what the front doors show true to its files, however they are replaced: overwritten,
renamed over, or behind a symlink that is swapped. A new connection gets what is new, an open one
goes on. What does not fit together changes nothing: the last good certificate stays.
"""

import asyncio
import logging
import stat
from datetime import timedelta
from typing import Final, Never

import grpc

from cluster.errors import ConfigError
from cluster.host import mode_of
from cluster.tls import certificate_configuration, followed_credentials
from router.settling import Settling
from router.tls.certificate import (
    ServedCertificate,
    TlsFiles,
    TlsTexts,
    read_texts,
    served_certificate,
)

logger = logging.getLogger(__name__)

# Between two looks. What two find the same is not being written any more: so a change counts
# within some two seconds.
INTERVAL_S: Final = 1.0
WARNED: Final = timedelta(days=14)  # before its end

_Seen = TlsTexts | str  # or why they cannot be read


class DoorCertificate:
    """What both front doors show now."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises ConfigError: a router does not start on a certificate that it cannot show."""
        self.error = ""  # why what is in force is not what the files say; empty: it is
        self._files = files
        texts = read_texts(files)
        self._settling: Settling[_Seen] = Settling(texts)
        self._put_in_force(served_certificate(texts, files))

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Makes what gRPC shows from now on. Whether clients need a certificate stays."""
        return followed_credentials(lambda: self._grpc, asks_clients=self.served.asks_clients)

    async def run(self) -> Never:
        """Follows the files until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            try:
                await self.look()
            except Exception:  # what is in force goes on, whatever becomes of its files
                logger.exception("the certificate's files were not looked after")

    async def look(self) -> None:
        """One look."""
        seen = await asyncio.to_thread(_seen, self._files)
        if not self._settling.is_news(seen):
            return
        try:
            if isinstance(seen, str):
                raise ConfigError(seen)
            self._put_in_force(await asyncio.to_thread(served_certificate, seen, self._files))
        except ConfigError as error:
            self.error = error.message
            logger.warning(
                "the certificate in force stays, for its files cannot be used: %s", error
            )

    def _put_in_force(self, served: ServedCertificate) -> None:
        self.served, self.error = served, ""
        self._grpc = certificate_configuration(*served.texts)
        ends = f"{served.facts.ends:%d %B %Y}"
        fields = {"file": self._files.certificate, "names": ", ".join(served.facts.names)}
        logger.info("certificate loaded: it holds until %s", ends, extra={"fields": fields})
        if (mode_of(self._files.key) or 0) & stat.S_IROTH:
            logger.warning("all users of this machine may read %s: chmod 600", self._files.key)
        if served.left_s() < WARNED.total_seconds():
            logger.warning("the certificate of the front doors holds until %s: renew it", ends)


def _seen(files: TlsFiles) -> _Seen:
    try:
        return read_texts(files)
    except ConfigError as error:
        return error.message
