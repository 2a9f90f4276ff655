"""One answer in the making: its tokens, its blocks and how far its KV is computed."""

from collections.abc import Sequence as Ids
from typing import Any

from cluster.block_hash import grain_hashes
from cluster.types import BlockId, ComputeRequest, GenerationParams, GrainHash


class Sequence:
    """Mutable, owned by one scheduler. While a batch that contains it runs, nobody else
    touches it.

    `output_ids` are the tokens an earlier attempt sent and those sampled since: all of them
    count for penalties, limits and stops, and none is sampled again.
    """

    __slots__ = (
        "_grains",
        "block_table",
        "choice",
        "due_at",
        "has_begun",
        "hash_key",
        "is_exact",
        "num_cached",
        "num_choices",
        "num_computed",
        "num_output_before",
        "num_preemptions",
        "num_stored",
        "output_ids",
        "owner",
        "params",
        "paused_at",
        "prompt_ids",
        "request_id",
        "whole_from",
    )

    def __init__(
        self,
        request: ComputeRequest,
        *,
        choice: int = 0,
        num_choices: int = 1,
        owner: Any = None,
        arrived_at: float = 0.0,
    ) -> None:
        """`owner` is whoever is told what was drawn; it is not looked at here. `arrived_at` is
        when the request came, by its worker's monotonic clock."""
        self.request_id = request.request_id
        self.choice = choice
        self.owner = owner
        self.num_choices = num_choices  # sampled from one prompt: choice, choice + 1, ...
        self.prompt_ids: list[int] = list(request.prompt_ids)
        emitted = request.emitted[choice] if choice < len(request.emitted) else ()
        self.output_ids: list[int] = list(emitted)
        self.params: GenerationParams = request.params
        self.due_at = arrived_at + request.due_s  # its first token
        self.hash_key = request.hash_key
        self.block_table: list[BlockId] = []
        self.num_computed = 0  # tokens[:num_computed] have their KV in the block table
        self.num_cached = 0  # of those, found and not computed, when it was admitted
        self.num_stored = 0  # leading blocks made findable
        self.whole_from = 0  # blocks of its own that begin before this token are thin
        self.is_exact = True  # otherwise its KV lost something on its way, and is for it alone
        self.has_begun = False  # its first token here is out
        self.num_preemptions = 0
        self.num_output_before = len(self.output_ids)  # when it last began to run
        self.paused_at = 0.0  # the last time, by its worker's clock
        self._grains: list[GrainHash] = []

    @property
    def sequence_id(self) -> str:
        return f"{self.request_id}/{self.choice}"

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def num_uncomputed(self) -> int:
        return self.num_tokens - self.num_computed

    @property
    def max_num_tokens(self) -> int:
        return len(self.prompt_ids) + self.params.max_tokens

    @property
    def reuses_prefix(self) -> bool:
        """Prompt logprobs need every position computed."""
        return self.params.sampling.num_prompt_logprobs is None

    def token_ids(self, start: int, stop: int) -> list[int]:
        num_prompt = len(self.prompt_ids)
        if stop <= num_prompt:
            return self.prompt_ids[start:stop]
        if start >= num_prompt:
            return self.output_ids[start - num_prompt : stop - num_prompt]
        return self.prompt_ids[start:] + self.output_ids[: stop - num_prompt]

    def hashes(self, num_tokens: int, hash_grain: int) -> Ids[GrainHash]:
        """Chain hashes of the complete grains within the first `num_tokens` tokens."""
        num_grains = num_tokens // hash_grain
        if len(self._grains) < num_grains:
            known = len(self._grains) * hash_grain
            tokens = self.token_ids(known, num_grains * hash_grain)
            self._grains += grain_hashes(
                self.hash_key, tokens, hash_grain, parent=self._grains[-1] if known else None
            )
        return self._grains[:num_grains]

    def fork(self, choice: int) -> "Sequence":
        """The sibling that answers the same prompt with its own draws; shares no list.

        Its block table still has to be held by the caller.
        """
        twin = object.__new__(Sequence)
        for name in Sequence.__slots__:
            value = getattr(self, name)
            setattr(twin, name, list(value) if isinstance(value, list) else value)
        twin.choice = choice
        twin.num_choices = 1
        twin.num_preemptions = 0
        return twin
