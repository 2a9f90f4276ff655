"""An answer as it comes. Leaving the `with` block early cancels the rest in the whole cluster."""

import os

from penstock import Client

ADDRESS = os.environ.get("PENSTOCK_ADDRESS", "127.0.0.1:50051")

with Client(ADDRESS) as client:
    question = [("user", "What does zip do?")]
    with client.generate(messages=question, max_tokens=200, timeout=60) as stream:
        for chunk in stream:
            print(chunk.text, end="", flush=True)
        answer = stream.result()
    print(f"\nrequest {answer.accepted.request_id}: {answer.finish_reason}")

    with client.generate("def add(a, b):", ignore_eos=True) as stream:
        for chunk in stream:
            if chunk.index >= 8:  # enough: nothing is computed any more for what was not read
                break
    print(f"left after {chunk.index} tokens")
