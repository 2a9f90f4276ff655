"""Takes in the body of a request and reads it: what is small in the event loop, what is large in
the process for large texts, for a thread that parses holds the interpreter all the same.
"""

import asyncio
from dataclasses import dataclass
from functools import partial

from router.front.text_child import TextKind
from router.front.text_process import TextProcess
from router.front.wire_bounds import FREE_BYTES
from router.http.asked import Asked
from router.http.bodies import Bodies
from router.http.call import HttpCall
from router.http.reading import BodyKind, read_body, unpacked_asked


@dataclass(frozen=True, slots=True)
class BodyIntake:
    bodies: Bodies
    process: TextProcess

    async def asked(self, kind: BodyKind, call: HttpCall) -> Asked:
        """Raises what is wrong with it."""
        body = await self.bodies.read(call)
        if len(body) <= FREE_BYTES:
            return read_body(kind, body)
        call.step = "read"
        where = TextKind[f"READ_{kind.name}"]
        packed = await self.process.call(where, len(body), partial(bytes, body))
        asked = unpacked_asked(packed)
        await asyncio.sleep(0)  # what is done with it takes a while: others come in between
        return asked
