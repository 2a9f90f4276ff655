"""The one door to Ray: machines, what is set aside on them, and the actors that run there. Its
errors become StartupError, its calls have time limits, and what is said through it is text.

Ray places and restarts; it is on the way of no request. What it holds has the names
'penstock/CLUSTER/PROCESS/DIGEST' (groups) and 'CLUSTER/PROCESS' (actors), in one namespace.
"""

import json
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import grpc

from cluster.errors import StartupError
from deploy import log_pieces, on_machine
from deploy.placed import PlacedSupervisor, StartOrder
from deploy.placement import Group, Machine, MachineType, Reply, Wanted

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # before it is imported

import ray
from ray import exceptions as ray_errors
from ray._private import services, state
from ray._private.worker import global_worker
from ray._raylet import AuthenticationTokenLoader, PlacementGroupID  # type: ignore[attr-defined]
from ray.util import list_named_actors
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

NAMESPACE: Final = "penstock"
PROBE_S: Final = 3.0
_PROBE: Final = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_GONE: Final = "REMOVED"
_PLACED: Final = "CREATED"
_ALIKE: Final = 4  # calls of one actor at a time: it says how it is while it drains


class PlacedProcess:
    """Runs one placed process as an actor, under this name in `ps`."""

    def __init__(self, order: str) -> None:
        context = ray.get_runtime_context()
        self._placed = PlacedSupervisor(
            StartOrder.from_json(order),
            machine=_address_of(context.get_node_id()),
            directory=_directory(json.loads(order)["cluster"]),
            placer=context.gcs_address,
            gpus=context.get_accelerator_ids().get("GPU", []),
        )
        # When Ray's own process on this machine dies, an actor may stay for long.
        self._placed.follow(os.getppid())

    def state(self) -> str:
        return self._placed.state().as_json()

    def stop(self, drain_s: float | None) -> str:
        return json.dumps(self._placed.stop(drain_s))


def _address_of(machine_id: str) -> str:
    """Gives the address by which others reach a machine."""
    return next(str(m["NodeManagerAddress"]) for m in ray.nodes() if m["NodeID"] == machine_id)


def _directory(cluster: str) -> str:
    """Names the cluster's directory on each machine: two Rays may have a cluster of one name
    there."""
    return f"{cluster}-{global_worker.gcs_client.cluster_id.hex()[:8]}"


def _missing(needs: str) -> str:
    return json.dumps(on_machine.missing(on_machine.Needs(*json.loads(needs))))


def _clear(cluster: str) -> str:
    return json.dumps(on_machine.clear_machine(_directory(cluster)))


def _look(_: str) -> str:
    return json.dumps({"versions": on_machine.versions(), "ray": on_machine.placers()})


def _logs(said: str) -> str:
    cluster, asked = json.loads(said)
    told = on_machine.logs(_directory(cluster), log_pieces.PiecesAsked.from_json(asked))
    return log_pieces.as_json(told)


class Ray:
    """A running Ray, as this process sees it."""

    def __init__(self, address: str) -> None:
        self.address = address

    @property
    def token(self) -> str:
        """Gives the token that admits to it; empty: it wants none."""
        return _token().get("authorization", "").removeprefix("Bearer ")

    def machines(self) -> list[Machine]:
        """Lists the machines that are alive."""
        free = state.available_resources_per_node()
        alive = [
            Machine(
                machine_id=found["NodeID"],
                address=found["NodeManagerAddress"],
                host=found["NodeManagerHostname"],
                labels=found["Labels"],
                total=found["Resources"],
                free=free.get(found["NodeID"], {}),
            )
            for found in ray.nodes()
            if found["Alive"]
        ]
        return sorted(alive, key=lambda machine: machine.address)

    def machine_types(self) -> list[MachineType]:
        """Lists the machines of which an autoscaler may add some."""
        config = state.state.get_cluster_config()
        return [
            MachineType(name=each.name, total=dict(each.resources))
            for each in (config.node_group_configs if config else ())
            if each.max_count
        ]

    def groups(self, cluster: str | None = None) -> list[Group]:
        """Lists the groups of one cluster, or of all."""
        found = [_group(each) for each in placement_group_table().values()]
        mine = [each for each in found if each and cluster in (None, each.cluster)]
        return sorted((each for each in mine if each), key=lambda each: (each.cluster, each.name))

    def place(self, wanted: Wanted, *, near: str | None = None) -> None:
        """Sets aside what a process wants, and has it run there from then on, wherever that will
        be. `near`: a machine to prefer."""
        order = wanted.order
        group = placement_group(
            [dict(wanted.resources)],
            strategy="STRICT_PACK",
            name=f"penstock/{order.cluster}/{order.name}/{wanted.digest}",
            lifetime="detached",
            bundle_label_selector=[dict(wanted.labels)] if wanted.labels else None,
            _soft_target_node_id=near,
        )
        self._start(wanted, group)

    def ensure(self, wanted: Wanted, group: Group) -> None:
        """Starts what is to run in a group, where whoever made that was stopped before."""
        self._start(wanted, PlacementGroup(PlacementGroupID.from_hex(group.group_id)))

    def _start(self, wanted: Wanted, group: PlacementGroup) -> None:
        order, amounts = wanted.order, dict(wanted.resources)
        ray.remote(PlacedProcess).options(
            name=f"{order.cluster}/{order.name}",
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_concurrency=_ALIKE,
            num_cpus=amounts.pop("CPU", 0),
            num_gpus=amounts.pop("GPU", 0),
            resources=amounts,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, 0),
        ).remote(order.as_json())

    def actors(self, cluster: str) -> set[str]:
        """The names of the processes that have one."""
        prefix = f"{cluster}/"
        names = list_named_actors()  # of this namespace
        return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}

    def ask(
        self, cluster: str, names: Sequence[str], method: str, *arguments: Any, timeout_s: float
    ) -> dict[str, Reply]:
        """All at once. Who does not answer in time is left out."""
        calls = {}
        for name in names:
            try:
                actor = ray.get_actor(f"{cluster}/{name}", namespace=NAMESPACE)
            except ValueError:
                continue
            calls[name] = getattr(actor, method).remote(*arguments)
        return _replies(calls, timeout_s)

    def _ask_machines(
        self, machines: Sequence[Machine], what: Callable[[str], str], about: str, timeout_s: float
    ) -> dict[str, Reply]:
        """A short-lived process on each, by id."""
        task = ray.remote(what)
        calls = {
            machine.machine_id: task.options(
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(machine.machine_id, soft=False),
            ).remote(about)
            for machine in machines
        }
        return _replies(calls, timeout_s)

    def missing(
        self, machines: Sequence[Machine], needs: on_machine.Needs, timeout_s: float
    ) -> dict[str, Reply]:
        """Asks what each lacks: a list of sentences as JSON."""
        return self._ask_machines(machines, _missing, json.dumps(needs), timeout_s)

    def clear(
        self, machines: Sequence[Machine], cluster: str, timeout_s: float
    ) -> dict[str, Reply]:
        """Ends what is left there: true as JSON, or false where somebody holds it."""
        return self._ask_machines(machines, _clear, cluster, timeout_s)

    def look(self, machines: Sequence[Machine], timeout_s: float) -> dict[str, Reply]:
        """Asks what is installed there, and where Ray listens: `versions` and `ray` as JSON."""
        return self._ask_machines(machines, _look, "", timeout_s)

    def logs(
        self,
        machines: Sequence[Machine],
        cluster: str,
        asked: log_pieces.PiecesAsked,
        timeout_s: float,
    ) -> dict[str, Reply]:
        """Asks what its processes wrote there: pieces as JSON."""
        said = json.dumps([cluster, asked.as_json()])
        return self._ask_machines(machines, _logs, said, timeout_s)

    def end(self, cluster: str, name: str) -> None:
        """Ends the actor of this name: it is not started again."""
        try:
            actor = ray.get_actor(f"{cluster}/{name}", namespace=NAMESPACE)
        except ValueError:
            return
        ray.kill(actor, no_restart=True)

    def give_back(self, group: Group) -> None:
        """Gives back what was set aside. Whatever runs there is killed."""
        remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(group.group_id)))


@contextmanager
def connected(address: str | None) -> Iterator[Ray]:
    """None: RAY_ADDRESS, else the Ray that runs on this machine. Raises StartupError, within
    seconds where nothing answers."""
    try:
        found = address or services.get_ray_address_from_environment("auto", None)
    except ConnectionError:
        raise StartupError(
            "No Ray runs on this machine: start one with 'ray start --head', or give --ray."
        ) from None
    _probe(found)
    with _stdout_as_stderr():
        try:
            ray.init(found, namespace=NAMESPACE, log_to_driver=False, logging_level="error")
        except (OSError, RuntimeError, ValueError, ray_errors.RayError) as error:
            raise StartupError(f"Ray at {found} does not let this command in: {error}") from error
        try:
            yield Ray(found)
        except ray_errors.RayError as error:
            raise StartupError(f"Ray at {found} failed: {error}") from error
        finally:
            ray.shutdown()


@contextmanager
def _stdout_as_stderr() -> Iterator[None]:
    """Keeps what Ray says of its own accord, as of a machine that died, out of a command's data."""
    try:
        kept = os.dup(1)
    except OSError:  # the command has none
        yield
        return
    os.dup2(2, 1)
    try:
        yield
    finally:
        if sys.stdout is not None:
            sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _probe(address: str) -> None:
    """Ray itself would try for more than a minute, and end this process then."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PROBE_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise StartupError(
            f"No Ray answers at {address} ({error}): give its HOST:PORT with --ray."
        ) from error
    sent = tuple(_token().items())
    with grpc.insecure_channel(address) as channel:
        try:
            ask = channel.unary_unary(_PROBE, request_serializer=bytes, response_deserializer=bytes)
            ask(b"", timeout=PROBE_S, metadata=sent)
        except grpc.RpcError as error:
            raise StartupError(_refusal(address, error.code())) from error


def _token() -> dict[str, str]:
    """Gives the token as calls carry it."""
    said = AuthenticationTokenLoader.instance().get_token_for_http_header()
    return {key.lower(): value for key, value in said.items()}


def _refusal(address: str, code: grpc.StatusCode) -> str:
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return (
            f"Ray at {address} wants its token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to"
            " the file that has it."
        )
    return f"What listens at {address} is no Ray that answers ({code.name}): give --ray."


def _group(found: Mapping[str, Any]) -> Group | None:
    """None where it is not ours, or no more."""
    parts = found["name"].split("/")
    if len(parts) != 4 or parts[0] != NAMESPACE or found["state"] == _GONE:
        return None
    is_placed = found["state"] == _PLACED
    return Group(
        group_id=found["placement_group_id"],
        cluster=parts[1],
        name=parts[2],
        digest=parts[3],
        machine_id=found["bundles_to_node_id"][0] if is_placed else "",
        is_impossible=found["stats"]["scheduling_state"] == "INFEASIBLE",
    )


def _replies(calls: Mapping[str, Any], timeout_s: float) -> dict[str, Reply]:
    by_call = {call: name for name, call in calls.items()}
    done: list[Any] = []
    if by_call:
        done, _ = ray.wait(list(by_call), num_returns=len(by_call), timeout=timeout_s)
    return {by_call[call]: _reply(call) for call in done}


def _reply(call: Any) -> Reply:
    try:
        return Reply(text=ray.get(call))
    except ray_errors.ActorUnavailableError:
        return Reply(fault="Ray starts its actor again")
    except ray_errors.RayError as error:
        said = str(error).strip() or type(error).__name__
        return Reply(fault=said.splitlines()[-1])
