"""The lives of one worker process, one after another: each has a role, an incarnation, a scheduler
and a service of its own; engine, weights, tokenizer and KV memory stay. A flip of the role is the
end of one life and the beginning of the next.
"""

import asyncio
import logging
from dataclasses import fields, replace

from cluster.process import Ready, print_ready
from cluster.types import Role
from decode_worker.config import DecodeWorkerConfig
from decode_worker.worker import DecodeWorker
from prefill_worker.config import PrefillWorkerConfig
from prefill_worker.worker import PrefillWorker
from worker.config import WorkerConfig
from worker.parts import WorkerParts, build_parts, next_parts
from worker.worker import Worker

logger = logging.getLogger(__name__)

RoleConfig = PrefillWorkerConfig | DecodeWorkerConfig


class Lives:
    """Owns what outlives a role. Loads the model and warms it up."""

    def __init__(self, config: RoleConfig) -> None:
        self._config = config
        self._parts = build_parts(config, _role(config), wire_dtype=_wire_dtype(config))

    async def serve(self, end: asyncio.Event, ready: Ready = print_ready) -> None:
        """Serves until `end` is set and what is in progress has ended."""
        config, parts = self._config, self._parts
        try:
            while (following := await _life(config, parts).serve(end, ready)) is not None:
                logger.info("it goes on as a %s worker", following.role)
                config = replace(
                    _in_role(following.role, self._config),
                    address=following.address,
                    metrics=following.metrics,
                )
                parts = next_parts(parts, following.role, config, wire_dtype=_wire_dtype(config))
        finally:
            if parts.tracing is not None:
                await asyncio.to_thread(parts.tracing.close)


async def serve(config: RoleConfig, end: asyncio.Event) -> None:
    """One worker process, from its configuration to its end."""
    await Lives(config).serve(end)


def _life(config: RoleConfig, parts: WorkerParts) -> Worker:
    if isinstance(config, DecodeWorkerConfig):
        return DecodeWorker(config, parts)
    return PrefillWorker(config, parts)


def _in_role(role: Role, config: RoleConfig) -> RoleConfig:
    """Reads it as its file says; of what the other role alone has, the defaults."""
    if role is _role(config):
        return config
    said = {each.name: getattr(config, each.name) for each in fields(WorkerConfig)}
    return DecodeWorkerConfig(**said) if role is Role.DECODE else PrefillWorkerConfig(**said)


def _role(config: RoleConfig) -> Role:
    return Role.DECODE if isinstance(config, DecodeWorkerConfig) else Role.PREFILL


def _wire_dtype(config: RoleConfig) -> str | None:
    return config.wire_dtype if isinstance(config, DecodeWorkerConfig) else None
