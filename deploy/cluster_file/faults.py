"""Finds what of a cluster does not fit together. Each fault is a sentence with its place."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Final
from urllib.parse import urlsplit

from cluster.addresses import Endpoint, is_host, is_loopback
from cluster.config import Wrong, place_of
from cluster.document.keys import Where
from cluster.types import Role
from deploy.cluster_file.document import (
    DEFAULT_BLOCK_SIZE,
    IN_MEMORY,
    MAX_POOLS,
    MAX_WORKERS,
    ClusterDocument,
    ClusterSpec,
)
from kv_transfer.doors import DOORS

_ROUTER: Final = "router"


def faults(document: ClusterDocument) -> Iterator[Wrong]:
    for check in _CHECKS:
        yield from check(document.spec)


def _wrong(sentence: str, *where: str | int) -> Wrong:
    place: Where = ("spec", *where)
    return Wrong(place, f"'{place_of(place)}' {sentence}")


def _pool_faults(spec: ClusterSpec) -> Iterator[Wrong]:
    if len(spec.pools) > MAX_POOLS:
        yield _wrong(f"has {len(spec.pools)} pools: give at most {MAX_POOLS}.", "pools")
    most = sum(pool.most_workers for pool in spec.pools)
    if most > MAX_WORKERS:
        yield _wrong(f"may have {most} workers: give at most {MAX_WORKERS}.", "pools")
    if not any(pool.role is Role.DECODE and pool.most_workers for pool in spec.pools):
        yield _wrong(
            "has no decode worker at the start, and nobody would emit a token: give a pool with"
            " 'role: decode' and 'minWorkers' of 1 or more; or of 0 with 'maxWorkers', where a"
            " planner starts the first one when a request waits.",
            "pools",
        )
    names = [pool.name for pool in spec.pools]
    for index, name in enumerate(names):
        if name in names[:index]:
            yield _wrong(
                f"is '{name}', which another pool is called: give each a name of its own.",
                "pools",
                index,
                "name",
            )
        if name == _ROUTER:
            yield _wrong(
                f"is '{name}', which routers are called: give another name.", "pools", index, "name"
            )


def _block_faults(spec: ClusterSpec) -> Iterator[Wrong]:
    grain = spec.hash_grain
    for index, pool in enumerate(spec.pools):
        size = pool.block_size
        if size % grain == 0 or grain % size == 0:
            continue
        if size == DEFAULT_BLOCK_SIZE:
            yield _wrong(
                f"is {grain}, and blocks of '{pool.name}' have {size} tokens: one must divide the"
                " other, for so many tokens share a hash.",
                "hashGrain",
            )
            return
        yield _wrong(
            f"is {size}: give what divides {grain}, or a multiple of it: so many tokens share a"
            " hash ('spec.hashGrain').",
            "pools",
            index,
            "blockSize",
        )


def _transport_faults(spec: ClusterSpec) -> Iterator[Wrong]:
    if not spec.transports:
        yield _wrong(f"is empty: choose from {', '.join(DOORS)}.", "transports")
    for index, name in enumerate(spec.transports):
        if name not in DOORS:
            yield _wrong(
                f"is '{name[:80]}', which is no transport: choose from {', '.join(DOORS)}.",
                "transports",
                index,
            )
    required = spec.require_transport
    if required is not None and required not in spec.transports:
        yield _wrong(
            f"is '{required[:80]}', which 'spec.transports' does not name: add it there, or"
            f" choose from {', '.join(spec.transports) or 'what it names'}.",
            "requireTransport",
        )


def _store_faults(spec: ClusterSpec) -> Iterator[Wrong]:
    if spec.store == IN_MEMORY:
        if spec.routers.count > 1:
            yield _wrong(
                f"is {spec.routers.count} while each would have a list of workers of its own: give"
                " 'spec.store' the URL of a Redis that they share.",
                "routers",
                "count",
            )
        return
    try:
        url = urlsplit(spec.store)
        has_password, host, port = url.password is not None, url.hostname, url.port or 1
    except ValueError:
        has_password, host, port = False, None, 0
    if has_password:
        yield _wrong(
            "holds a password, and a cluster's file may be read by many: take it out, and write it"
            " as 'store_password' into the secrets file.",
            "store",
        )
    elif not (spec.store.startswith(("redis://", "rediss://")) and host and port):
        yield _wrong(f"is no store: give '{IN_MEMORY}', or redis://HOST:PORT/DB.", "store")


def _port_faults(spec: ClusterSpec) -> Iterator[Wrong]:
    routers = spec.routers
    asked = {"ports": routers.ports, "internalPorts": routers.internal_ports}
    if routers.http_ports:
        asked["httpPorts"] = routers.http_ports
    for key, ports in asked.items():
        if len(ports) not in {1, routers.count}:
            few = "1" if routers.count == 1 else f"1 for all, or {routers.count}"
            yield _wrong(
                f"has {len(ports)} ports for {routers.count} routers: give {few}.", "routers", key
            )
        twice = [port for before, port in pairwise(sorted(ports)) if port and before == port]
        if twice:
            yield _wrong(f"has {twice[0]} twice: two routers cannot listen there.", "routers", key)
    clients = {"ports": {*routers.ports}, "httpPorts": {*asked.get("httpPorts", ())}}
    for key, known in (
        ("internalPorts", "ports"),
        ("httpPorts", "ports"),
        ("internalPorts", "httpPorts"),
    ):
        if both := clients[known] & {*asked.get(key, ())} - {0}:
            yield _wrong(f"has {min(both)}, where clients come in: give another.", "routers", key)


def _address_faults(spec: ClusterSpec) -> Iterator[Wrong]:
    hosts: dict[tuple[str, ...], str | None] = {
        ("routers", "bind"): spec.routers.bind,
        ("routers", "advertise"): spec.routers.advertise,
        ("metricsBind",): spec.metrics_bind,
    }
    for where, host in hosts.items():
        if host is not None and not is_host(host):
            yield _wrong(
                f"is '{host[:80]}': give a host's name or its address, without a port.", *where
            )
    bind, advertise = spec.routers.bind, spec.routers.advertise
    if not is_loopback(bind) and not spec.insecure and spec.routers.keys_file is None:
        yield _wrong(
            f"is '{bind[:80]}', where others than this machine may come in, and nobody asks who"
            " they are: give API keys as 'spec.routers.keysFile', give a loopback address, or say"
            " 'insecure: true' to let in whoever reaches it.",
            "routers",
            "bind",
        )
    if advertise and Endpoint(advertise, 0).is_any:
        yield _wrong(
            f"is '{advertise}', which nobody can dial: give the address that leads there.",
            "routers",
            "advertise",
        )


_CHECKS: Final[tuple[Callable[[ClusterSpec], Iterator[Wrong]], ...]] = (
    _pool_faults,
    _block_faults,
    _transport_faults,
    _store_faults,
    _port_faults,
    _address_faults,
)
