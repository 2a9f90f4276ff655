"""One router put together from its configuration, from start to drained."""

import asyncio
import contextlib
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from cluster.addresses import Endpoint
from cluster.authority import Credentials
from cluster.channel import open_channel
from cluster.diagnosis import Diagnosis
from cluster.document.keys import yaml_text
from cluster.door import door_service
from cluster.health import HealthState, follow_progress
from cluster.host import max_connections
from cluster.lateness import AttentiveClock
from cluster.membership import Membership
from cluster.metrics.exposition import Registry
from cluster.metrics.process import ServingProcess
from cluster.metrics.server import Page, Pages, metrics_pages, scraped_at
from cluster.proof import Doorkeeper, audience_of
from cluster.rpc import Deadlines, Serve, Server, server_options, service_handlers
from cluster.sealed_store import SealedStore
from cluster.secrets import Secrets, load_secrets
from cluster.store import MemoryStore, Store, prefix_of
from cluster.tracing import SpanCounts, open_tracing
from router import cluster_service
from router.absences import Absences
from router.admission import Admission
from router.callers.callers import Callers
from router.callers.follow import KeyFileFollower
from router.callers.quotas import Quotas
from router.cluster_service import ClusterService
from router.config import IN_MEMORY, RouterConfig
from router.drains import Drains
from router.fleet import Fleet
from router.front import service
from router.front.reception import Reception
from router.front.service import InferenceService
from router.front.text import Text
from router.front.text_lanes import TextLanes
from router.index import PrefixIndex
from router.links import Links
from router.metrics import targets
from router.metrics.reading import RouterReading
from router.metrics.requests import RequestCounts
from router.metrics.table import ROUTER
from router.placer import Placer
from router.policy_file.document import effective
from router.policy_life.file_watch import PolicyFile
from router.policy_life.keeper import PolicyKeeper
from router.policy_life.service import PolicyService
from router.policy_life.store import FileRollouts, RolloutStore, SharedRollouts
from router.pool import Pool
from router.reattachment import Reattachment
from router.records import Records
from router.relay import Relay
from router.rollout.generations import Generations
from router.rollout.rollout import Offer
from router.tls.follow import DoorCertificate
from router.waiting import WaitingRoom

if TYPE_CHECKING:  # it loads Starlette and uvicorn
    from router.http.server import HttpServer

logger = logging.getLogger(__name__)


class Router:
    """All parts of one router. Needs a running event loop; `run` serves until told to drain."""

    def __init__(
        self, config: RouterConfig, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        secrets = load_secrets(config.secrets_file)
        credentials = Credentials(secrets.authority)
        config.check_ways(credentials)
        self.callers = Callers()
        self._keys = KeyFileFollower(config.keys_file, self.callers) if config.keys_file else None
        self.certificate = DoorCertificate(config.tls) if config.tls else None
        text = Text.load(config, secrets.hash_secret)
        self.config = config
        self.clock = clock
        attention = AttentiveClock(clock)
        self.tracing = open_tracing(
            config.tracing,
            service="penstock-router",
            instance=f"{platform.node()}-{os.getpid()}",
            share=config.tracing.share,
        )
        facts = ServingProcess(
            part="router",
            model=config.model,
            attention=attention,
            spans=self.tracing.sink.counts if self.tracing else SpanCounts(),
        )
        self.pool = Pool(
            config.assumed,
            absences=Absences(config.return_s),
            lag_s=lambda: clock() - attention.now(),
        )
        self.index = PrefixIndex(config.index_budget_bytes)
        self.admission = Admission(config.max_in_flight)
        self.health = HealthState([service.NAME])
        self.links = Links(
            lambda worker: open_channel(
                worker.address, secrets.cluster_token, audience_of(worker), credentials=credentials
            ),
            credentials,
        )
        self.lanes = TextLanes(
            text, num_threads=config.num_text_threads, max_waiting=config.max_waiting_texts
        )
        self.placer = Placer(
            self.pool,
            self.index,
            config.hash_grain,
            Generations(config.document.policy()),
            Records(config.records_budget_bytes),
        )
        self.waiting = WaitingRoom(self.pool, clock, config.max_waiting_bytes)
        self.counts = RequestCounts()
        self.relay = Relay(
            self.placer, self.links, self.waiting, self.counts, unread_s=config.unread_s
        )
        self.store = _open_store(config, secrets)
        membership = Membership(self.store)
        identity = text.identity
        self.fleet = Fleet(
            membership=membership,
            identity=identity,
            links=self.links,
            placer=self.placer,
            clock=clock,
            attention=attention,
            lag=facts.lag,
            gather_s=config.gather_s,
            changed=self.waiting.changed,
        )
        self.quotas = Quotas(self.store, clock)
        self.reception = Reception(
            admission=self.admission,
            quotas=self.quotas,
            lanes=self.lanes,
            relay=self.relay,
            reattachment=Reattachment(self.links, config.unread_s),
            is_warm=self.fleet.is_warm,
            counts=self.counts,
            model=text.info.name,
            tracing=self.tracing,
        )
        self.pages: Pages = {
            **metrics_pages(Registry(ROUTER, self._reading, facts)),
            "/metrics/targets": Page(targets.CONTENT_TYPE, self._targets),
        }
        self.metrics = scraped_at(config.metrics, self.pages)
        inference = InferenceService(text, self.reception)
        self.http = _http_door(
            config,
            text,
            self.reception,
            self.callers,
            self.pages,
            clock,
            lambda: self.is_serving,
            self.certificate,
        )
        diagnosis = Diagnosis(
            secrets_file=config.secrets_file,
            store=config.store,
            store_password=secrets.store_password,
            num_threads=config.num_text_threads,
            review=text.review,
        )
        self._tls_ports = diagnosis.tls_ports
        cluster = ClusterService(
            membership=membership,
            identity=identity,
            fleet=self.fleet,
            placer=self.placer,
            relayed=self.relay.counters,
            admission=self.admission,
            waiting=self.waiting,
            callers=self.callers,
            certificate=self.certificate,
            quotas=self.quotas,
            diagnosis=diagnosis,
            clock=clock,
            listens=lambda: self.server.address,
            internal=lambda: self.internal_address,
            metrics=lambda: self.metrics_address,
            is_open=config.is_open,
        )
        self.policy = PolicyKeeper(
            placer=self.placer,
            store=_rollouts(config, self.store),
            file=PolicyFile(config.policy_file) if config.policy_file else None,
            default=_default(config),
            clock=clock,
        )
        policy = PolicyService(keeper=self.policy, placer=self.placer, clock=clock)
        drains = Drains(self.pool, self.links, clock)
        rpcs = {**cluster.rpcs, **policy.rpcs, **drains.rpcs}
        self.internal = _internal(config, secrets, credentials, rpcs, self.health)
        self.server = _front_door(
            config,
            secrets,
            credentials,
            inference,
            self.callers,
            rpcs,
            self.health,
            lambda: self.internal_address,
            self.certificate,
        )

    @property
    def is_serving(self) -> bool:
        is_open = self.fleet.is_warm.is_set() and not self.admission.is_draining
        now = self.clock()
        return is_open and (self.pool.is_serving(now) or self.pool.cold_start.wait_s(now) > 0.0)

    @property
    def internal_address(self) -> str:
        """Says where calls of the cluster come in apart from clients; empty: nowhere."""
        return self.internal.address if self.internal else ""

    @property
    def http_address(self) -> str:
        """Says where OpenAI's clients come in; empty: nowhere."""
        return self.http.address if self.http else ""

    @property
    def metrics_address(self) -> str:
        """Says where this router is scraped, beside its HTTP door; empty: nowhere."""
        return self.metrics.address if self.metrics else ""

    def _ports_under_tls(self) -> Iterator[int]:
        if self.internal and self.internal.is_tls:
            yield self.internal.port
        if self.certificate:
            yield from (
                Endpoint.parse(at).port for at in (self.server.address, self.http_address) if at
            )

    def _reading(self) -> RouterReading:
        now = self.clock()
        return RouterReading(
            now=now,
            counts=self.counts,
            placer=self.placer,
            relayed=self.relay.counters,
            admission=self.admission,
            waiting=self.waiting.figures(),
            fleet=self.fleet,
            policy=self.policy,
            callers=self.callers,
            certificate=self.certificate,
            quotas=self.quotas,
            members=list(self.pool.statuses(now)),
        )

    async def _targets(self) -> bytes:
        return targets.targets(each.member for each in self.pool.statuses(self.clock()))

    async def run(self, drain: asyncio.Event, ready: Callable[[str], None]) -> None:
        """Serves until `drain` is set, and then until the last answer, `drain_s` at most."""
        try:
            await self.policy.start()
            async with asyncio.TaskGroup() as tasks:
                background = (
                    tasks.create_task(self.fleet.run(), name="fleet"),
                    tasks.create_task(self.policy.run(), name="policy"),
                    tasks.create_task(self.quotas.run(), name="quotas"),
                    *(
                        tasks.create_task(each.run(), name="files")
                        for each in (self._keys, self.certificate)
                        if each is not None
                    ),
                    tasks.create_task(follow_progress(self.health, lambda: self.is_serving)),
                )
                nowhere = contextlib.nullcontext()
                metrics, http = self.metrics or nowhere, self.http or nowhere
                async with metrics, self.internal or nowhere, http, self.server:
                    self._tls_ports.update(self._ports_under_tls())
                    if self.config.is_open and self.callers.are_asked and not self.certificate:
                        logger.warning("no TLS: API keys and prompts can be read on their way here")
                    ready(self.server.address)
                    await drain.wait()
                    await self._drain()
                    self.links.leave()
                for task in background:
                    task.cancel()
        finally:
            await self.lanes.close()
            await self.links.close()
            await self.store.close()
            if self.tracing is not None:
                await asyncio.to_thread(self.tracing.close)

    async def _drain(self) -> None:
        # Workers and operators come in at a door of their own, or at this one, which then stays
        # open and refuses.
        closes = self.internal is not None
        self.admission.drain(refuses=not closes)
        self.health.set_all(False)
        if closes:
            self.server.close_door()
            if self.http:
                self.http.close_door()
        logger.info("draining: %d requests in flight", self.admission.num_in_flight)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.drain_s):
                await self.admission.idle()


def _http_door(
    config: RouterConfig,
    text: Text,
    reception: Reception,
    callers: Callers,
    pages: Pages,
    clock: Callable[[], float],
    is_serving: Callable[[], bool],
    certificate: DoorCertificate | None,
) -> "HttpServer | None":
    if config.http is None:
        return None
    from router.http.door import http_server  # here: its libraries take 0.1 s to import

    return http_server(
        text,
        reception,
        callers,
        address=config.http,
        clock=clock,
        is_serving=is_serving,
        pages=pages,
        tls=None if certificate is None else lambda: certificate.served.context,
    )


def _front_door(
    config: RouterConfig,
    secrets: Secrets,
    credentials: Credentials,
    inference: InferenceService,
    callers: Callers,
    cluster: Mapping[str, Serve],
    health: HealthState,
    internal: Callable[[], str],
    certificate: DoorCertificate | None,
) -> Server:
    limits = config.limits
    # Where TLS is spoken, calls of the cluster come in by another door.
    is_apart = credentials.covers(config.address)
    doorkeeper = Doorkeeper(secrets.cluster_token, is_front_door=is_apart)
    deadlines = Deadlines(default_s=limits.default_deadline_s, maximum_s=limits.max_deadline_s)
    return Server(
        [
            service_handlers(
                service.NAME,
                inference.rpcs,
                identify=callers.identify,
                deadlines=deadlines,
                check=inference.check_wire,
            ),
            service_handlers(cluster_service.NAME, cluster, door=doorkeeper),
            door_service(doorkeeper, internal),
        ],
        address=config.address,
        health=health,
        options=[
            *server_options(limits.max_message_bytes),
            # Of those, too, that do not speak TLS yet.
            ("grpc.max_allowed_incoming_connections", max_connections()),
        ],
        shown=None if certificate is None else certificate.grpc_credentials(),
    )


def _internal(
    config: RouterConfig,
    secrets: Secrets,
    credentials: Credentials,
    cluster: Mapping[str, Serve],
    health: HealthState,
) -> Server | None:
    """Serves calls of the cluster from other machines."""
    if config.internal is None:
        return None
    doorkeeper = Doorkeeper(secrets.cluster_token)
    return Server(
        [
            service_handlers(cluster_service.NAME, cluster, door=doorkeeper),
            door_service(doorkeeper),
        ],
        address=config.internal,
        health=health,
        max_receive_bytes=config.limits.max_message_bytes,
        credentials=credentials,
    )


def _rollouts(config: RouterConfig, store: Store) -> RolloutStore:
    if config.store == IN_MEMORY and config.policy_state is not None:
        return FileRollouts(config.policy_state)
    return SharedRollouts(store)


def _default(config: RouterConfig) -> Offer:
    text = yaml_text(effective(config.document))
    return Offer(text=text, document=config.document, source="default")


def _open_store(config: RouterConfig, secrets: Secrets) -> Store:
    if config.store == IN_MEMORY:
        return MemoryStore()
    from cluster.redis_store import RedisStore  # here: its library takes 0.15 s to import

    prefix, password = prefix_of(config.cluster), secrets.store_password
    redis = RedisStore(config.store, prefix=prefix, password=password)
    return SealedStore(redis, secrets.cluster_token)
