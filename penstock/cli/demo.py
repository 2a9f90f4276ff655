"""`penstock demo`: starts a cluster, asks three questions, shows where the time went, stops."""

import asyncio

from penstock import Answer, AsyncClient
from penstock.cli import options
from penstock.cli.cluster_options import ServeFlags, make_cluster
from penstock.cli.figures import Stopwatch, as_json, tokens_per_second, workers
from penstock.cli.output import say, write, write_json, write_table
from router.policy import Disaggregate

# The third repeats the first: its prompt is in the cache.
QUESTIONS = (
    "What does len do?",
    "What is a prefill worker?",
    "What does len do?",
)
COLUMNS = "answer queue prefill transfer first_token tokens/s tokens cached workers"


def demo(model_dir: options.ModelDir = None, json: options.Json = False) -> None:
    """Start a cluster, stream three answers with their timelines, and stop."""
    # Left to itself, the router prefills a prompt this short where it decodes.
    flags = ServeFlags(model_dir=model_dir, port=0, disaggregate=Disaggregate.ALWAYS)
    asyncio.run(_demo(flags, json))


async def _demo(flags: ServeFlags, json: bool) -> None:
    say("Starting a router, a prefill worker and a decode worker.")
    async with make_cluster(flags) as cluster, AsyncClient(cluster.address) as client:
        asked = [await _ask(client, question, json) for question in QUESTIONS]
    if json:
        write_json([as_json(answer, watch) for answer, watch in asked])
        return
    write("\n")
    columns = [column.replace("_", " ") for column in COLUMNS.split()]
    write_table(columns, [_row(answer) for answer, _ in asked])
    cached = asked[-1][0].usage
    write(
        f"\nThe third prompt was in the cache: {cached.cached_tokens} of"
        f" {cached.prompt_tokens} tokens were not computed again.\n"
    )


async def _ask(client: AsyncClient, question: str, json: bool) -> tuple[Answer, Stopwatch]:
    watch = Stopwatch()
    if not json:
        write(f"\n> {question}\n")
    async with client.generate(messages=[("user", question)]) as stream:
        async for chunk in stream:
            watch.arrived(chunk)
            if not json:
                write(chunk.text)
        answer = await stream.result()
    if not json:
        write("\n")
    return answer, watch


def _row(answer: Answer) -> list[str]:
    timeline, usage = answer.timeline, answer.usage
    return [
        answer.accepted.request_id[:8],
        _ms(timeline.queue_seconds),
        _ms(timeline.prefill_seconds),
        _ms(timeline.transfer_seconds),
        _ms(timeline.first_token_seconds),
        f"{tokens_per_second(answer) or 0:.0f}",
        str(usage.completion_tokens),
        f"{usage.cached_tokens} of {usage.prompt_tokens}",
        workers(answer.accepted.prefill_worker, answer.accepted.decode_worker),
    ]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"
