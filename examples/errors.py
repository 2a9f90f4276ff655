"""What a call may end with, and what to do about each kind."""

import os
from typing import Any

from penstock import (
    CallerError,
    Client,
    DeadlineExceededError,
    PeerError,
    PenstockError,
    ResourceError,
)

ADDRESS = os.environ.get("PENSTOCK_ADDRESS", "127.0.0.1:50051")


def ask(client: Client, **options: Any) -> str:
    text = ""
    try:
        for chunk in client.generate(messages=[("user", "What does len do?")], **options):
            text += chunk.text
    except CallerError as error:  # the request is wrong: sending it again changes nothing
        return f"mend the request ({error.reason}): {error.message}"
    except ResourceError as error:  # nothing was executed, and the client has tried already
        return f"come back later ({error.reason}): {error.message}"
    except DeadlineExceededError as error:  # `text` is true and not all of it
        return f"too late in phase '{error.phase}', after {error.tokens_emitted} tokens: {text!r}"
    except PeerError as error:
        return f"cut off after {error.tokens_emitted} tokens: {text!r}"
    except PenstockError as error:
        return f"{error.reason}: {error.message}"
    return text


with Client(ADDRESS) as client:
    print(ask(client))
    print(ask(client, temperature=-1))
    print(ask(client, model="nobody"))
    print(ask(client, ignore_eos=True, max_tokens=400, timeout=0.2))
with Client("127.0.0.1:1", connect_timeout=0) as client:
    print(ask(client))
