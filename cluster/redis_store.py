"""The one door to Redis: a `Store` across machines. Its errors become `StoreUnavailable`.

Every verb has one time limit, connecting included: losing Redis may slow what is slow already
and never blocks a request. It is ours, for the library's own would count our absences.
"""

from collections.abc import Awaitable
from typing import Any, TypeVar

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from cluster.errors import ConfigError, StoreUnavailable
from cluster.lateness import Patience
from cluster.windows import Taken

T = TypeVar("T")

# ARGV: '1' and the expected value, or '0' for absence; '1' and the new value, or '0' to delete;
# milliseconds to live, or '0' for ever.
_COMPARE_AND_SET = """
local current = redis.call('GET', KEYS[1])
local expected = ARGV[1] == '1' and ARGV[2] or false
if current ~= expected then return 0 end
if ARGV[3] == '0' then redis.call('DEL', KEYS[1])
elseif ARGV[5] == '0' then redis.call('SET', KEYS[1], ARGV[4])
else redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[5]) end
return 1
"""
# KEYS: a hash of windows by number, of which two count. ARGV: how much; the most, or '' for
# whatever there is; milliseconds of a window. Redis's own clock, for it is the one that all share;
# the rule is `Taken.wait_s`. Gives what was there before, and whether it fits.
_TAKE = """
local at = redis.call('TIME')
local window = tonumber(ARGV[3])
local now_ms = at[1] * 1000 + math.floor(at[2] / 1000)
local number = math.floor(now_ms / window)
local elapsed = now_ms - number * window
local kept = redis.call('HMGET', KEYS[1], number - 1, number)
local before = tonumber(kept[1] or '0') or 0
local now = tonumber(kept[2] or '0') or 0
local fits = ARGV[2] == ''
if not fits then
    local room = tonumber(ARGV[2]) - ARGV[1] - now
    fits = room >= 0 and before * (1 - elapsed / window) <= room
end
if fits then
    if not kept[2] then
        redis.call('DEL', KEYS[1])
        redis.call('HSET', KEYS[1], number - 1, before)
    end
    redis.call('HINCRBY', KEYS[1], number, ARGV[1])
    redis.call('PEXPIRE', KEYS[1], 2 * window)
end
return {fits and 1 or 0, before, now, elapsed}
"""
_SCAN_COUNT = 500
_MAX_CONNECTIONS = 8


class RedisStore:
    """A `Store` in Redis, under `prefix`. Connects when first used, and again when lost."""

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "penstock:",
        password: str | None = None,  # where the URL has none
        timeout_s: float = 0.5,
    ) -> None:
        self._prefix = prefix
        self._timeout_s = timeout_s
        try:
            pool = redis.BlockingConnectionPool.from_url(
                url,
                password=password,
                max_connections=_MAX_CONNECTIONS,
                timeout=None,
                socket_timeout=None,
                socket_connect_timeout=None,
                # Once more, at once: a kept connection may have died with the last server.
                retry=Retry(NoBackoff(), 1),
            )
        except ValueError as error:
            raise ConfigError(f"This is no Redis URL (redis://HOST:PORT/DB): {error}.") from error
        self._redis = redis.Redis.from_pool(pool)
        self._compare_and_set = self._redis.register_script(_COMPARE_AND_SET)
        self._take = self._redis.register_script(_TAKE)

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None) -> None:
        await self._bounded(self._redis.set(self._prefix + key, value, px=_milliseconds(ttl_s)))

    async def get(self, key: str) -> bytes | None:
        reading: Awaitable[Any] = self._redis.get(self._prefix + key)
        value: bytes | None = await self._bounded(reading)
        return value

    async def scan(self, prefix: str) -> dict[str, bytes]:
        return await self._bounded(self._scan(self._prefix + prefix))

    async def compare_and_set(
        self, key: str, expected: bytes | None, value: bytes | None, *, ttl_s: float | None = None
    ) -> bool:
        arguments: list[str | bytes | int] = [
            *_optional(expected),
            *_optional(value),
            _milliseconds(ttl_s) or 0,
        ]
        script = self._compare_and_set(keys=[self._prefix + key], args=arguments)
        return bool(await self._bounded(script))

    async def take(
        self, key: str, amount: int, *, most: int | None = None, window_s: float = 60.0
    ) -> float:
        arguments = [amount, "" if most is None else most, _milliseconds(window_s) or 1]
        script = self._take(keys=[f"{self._prefix}count/{key}"], args=arguments)
        fits, before, now, elapsed_ms = await self._bounded(script)
        if fits:
            return 0.0
        wait_s = Taken(before, now, elapsed_ms / 1000).wait_s(amount, most or 0, window_s)
        return max(wait_s, 0.001)

    async def close(self) -> None:
        await self._redis.aclose()

    async def _scan(self, prefix: str) -> dict[str, bytes]:
        keys = [
            key
            async for key in self._redis.scan_iter(match=_literal(prefix) + "*", count=_SCAN_COUNT)
        ]
        values: list[Any] = await self._redis.mget(keys) if keys else []
        return {
            # Anybody may have written a key that is no text.
            key.decode(errors="backslashreplace").removeprefix(self._prefix): value
            for key, value in zip(keys, values, strict=True)
            if value is not None  # expired between the two
        }

    async def _bounded(self, operation: Awaitable[T]) -> T:
        try:
            async with Patience(self._timeout_s):
                return await operation
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreUnavailable(
                f"Redis did not answer: {error or 'it took too long'}."
            ) from error


def _milliseconds(ttl_s: float | None) -> int | None:
    return None if ttl_s is None else max(1, round(ttl_s * 1000))


def _optional(value: bytes | None) -> tuple[str, bytes]:
    return ("0", b"") if value is None else ("1", value)


def _literal(prefix: str) -> str:
    """Escapes what Redis would read as a pattern."""
    return "".join(f"\\{letter}" if letter in "*?[]\\^-" else letter for letter in prefix)
