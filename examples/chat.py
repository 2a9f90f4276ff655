"""A conversation: every turn sends all of it, and only what is new is computed."""

import os
import uuid

from penstock import Client

ADDRESS = os.environ.get("PENSTOCK_ADDRESS", "127.0.0.1:50051")

talk: list[tuple[str, str]] = []
session = uuid.uuid4().hex  # its requests go where their prefix is
with Client(ADDRESS) as client:
    for question in ("What does len do?", "What does sorted do?", "What does zip do?"):
        talk.append(("user", question))
        answer = client.generate(messages=talk, session_key=session, max_tokens=60).result()
        talk.append(("assistant", answer.text))
        cached, total = answer.usage.cached_tokens, answer.usage.prompt_tokens
        print(f"> {question}\n{answer.text}\n({cached} of {total} prompt tokens were cached)\n")
