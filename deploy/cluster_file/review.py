"""Finds what is allowed in a cluster but hardly meant. Each risk is a sentence with its place."""

from collections.abc import Callable, Iterator
from typing import Final

from cluster.addresses import is_loopback
from deploy.cluster_file.document import IN_MEMORY, ClusterDocument, ClusterSpec

_OF_ONE_MACHINE: Final = ("shared_memory",)


def risks(document: ClusterDocument) -> list[str]:
    return [f"'spec.{sentence}" for check in _CHECKS for sentence in check(document.spec)]


def _pool_risks(spec: ClusterSpec) -> Iterator[str]:
    for index, pool in enumerate(spec.pools):
        place = f"pools[{index}]"
        cpus, gpus = pool.resources.cpus, pool.resources.gpus
        if pool.most_workers == 0:
            yield f"{place}.minWorkers' is 0, and so is what it may grow to: it never has a worker."
        if cpus is not None and pool.num_threads > cpus:
            yield (
                f"{place}.numThreads' is {pool.num_threads}, on {cpus:g} of the processor's cores:"
                " every step waits for threads that wait for a core."
            )
        if gpus and pool.device == "cpu":
            yield f"{place}.resources.gpus' is {gpus:g}, and 'device' is cpu: they stay idle."
        if not gpus and pool.device != "cpu":
            yield (
                f"{place}.device' is '{pool.device}', and no GPU is set aside for it: others may be"
                " placed on the same."
            )


def _transport_risks(spec: ClusterSpec) -> Iterator[str]:
    hosts = {pool.labels.host for pool in spec.pools if pool.labels.host}
    usable = (spec.require_transport,) if spec.require_transport else spec.transports
    if len(hosts) > 1 and usable == _OF_ONE_MACHINE:
        key = "requireTransport" if spec.require_transport else "transports"
        yield (
            f"{key}' is shared_memory alone, and the pools are on {len(hosts)} machines: no KV"
            " travels between those."
        )


def _store_risks(spec: ClusterSpec) -> Iterator[str]:
    if spec.store != IN_MEMORY and spec.secrets_file is None:
        yield (
            "store' keeps what was sealed with the secrets of a start, and without 'secretsFile'"
            " each start draws others: it finds nothing there."
        )


def _address_risks(spec: ClusterSpec) -> Iterator[str]:
    bind, advertise = spec.routers.bind, spec.routers.advertise
    # Between machines, which take a Redis, it is said of what passes there, too.
    if spec.insecure and is_loopback(bind) and spec.store == IN_MEMORY:
        yield f"insecure' is true, and the routers listen on {bind}: nobody else comes in."
    if advertise and is_loopback(bind) and not is_loopback(advertise):
        yield f"routers.advertise' is '{advertise}', and the routers listen on {bind} alone."


def _limit_risks(spec: ClusterSpec) -> Iterator[str]:
    if spec.limits.default_deadline_s > spec.limits.max_deadline_s:
        yield "limits.defaultDeadline' is longer than 'maxDeadline', to which it is cut."


_CHECKS: Final[tuple[Callable[[ClusterSpec], Iterator[str]], ...]] = (
    _pool_risks,
    _transport_risks,
    _store_risks,
    _address_risks,
    _limit_risks,
)
