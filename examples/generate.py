"""One answer, and what it took."""

import os

from penstock import Client

ADDRESS = os.environ.get("PENSTOCK_ADDRESS", "127.0.0.1:50051")

with Client(ADDRESS) as client:
    answer = client.generate(messages=[("user", "What does len do?")]).result()

print(answer.text)
print(f"{answer.finish_reason}, {answer.usage.completion_tokens} tokens")
print(f"{answer.usage.cached_tokens} of {answer.usage.prompt_tokens} prompt tokens were cached")
print(f"the first token took {answer.timeline.first_token_seconds * 1000:.0f} ms")
