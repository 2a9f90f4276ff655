"""Nothing imports upwards, nothing in circles, heavy dependencies have one door each."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

STUBS = "penstock.v1"
WORKER = {"engine", "kv_transfer", "cluster", STUBS}
ALLOWED = {
    "penstock": {STUBS},
    "penstock.cli": {
        "penstock",
        STUBS,
        "cluster",
        "engine",
        "kv_transfer",
        "router",
        "simulator",
        "deploy",
    },
    "cluster": {STUBS},
    "engine": {"cluster"},
    "kv_transfer": {"cluster"},
    "router": {"cluster", STUBS},
    "worker": WORKER,
    "prefill_worker": WORKER | {"worker"},
    "decode_worker": WORKER | {"worker"},
    "worker_roles": WORKER | {"worker", "prefill_worker", "decode_worker"},
    "simulator": (WORKER - {STUBS}) | {"router", "worker", "prefill_worker", "decode_worker"},
    "deploy": WORKER | {"worker", "router", "penstock", "simulator"},
    "shipped_model": {"engine", "cluster"},
}
# `engine` may know types, the block hash, how checkpoints are read, what was timed and what is
# compiled here, not the plumbing.
ENGINE_MAY_IMPORT = {"cluster.types", "cluster.block_hash", "cluster.errors"}
ENGINE_MAY_IMPORT |= {"cluster.measurements", "cluster.compiled"}
ENGINE_MAY_IMPORT |= {f"cluster.checkpoint_{part}" for part in ("config", "json", "keys", "review")}

# A dependency -> the only file that imports it.
DOORS = {
    "nixl": "kv_transfer/nixl/agent.py",
    "torch.distributed": "kv_transfer/collective/process_group.py",
    "redis": "cluster/redis_store.py",
    "ray": "deploy/ray_door.py",
    "obstore": "deploy/weights/source.py",
    "flash_attn": "engine/flash_attention.py",
    "triton": "engine/triton_kernels/door.py",
    "cryptography": "cluster/authority.py",
    "uvloop": "cluster/process.py",
    "opentelemetry": "cluster/otlp.py",
    "matplotlib": "simulator/plot.py",
    "starlette": "router/http/door.py",
    "textual": "penstock/cli/top/screen.py",
    "uvicorn": "router/http/server.py",
    "httptools": "router/http/server.py",
    "msgspec": "router/http/typed_json.py",
    "prometheus_client": "cluster/metrics/exposition.py",
}

# Protobuf messages live in codecs, typed clients and service edges: inside, only dataclasses.
STUB_FILES = {
    "codecs": {
        "cluster/codec.py",
        "worker/transfer_codec.py",
        "worker/kept_messages.py",
        "cluster/worker_codec.py",
        "cluster/pair_codec.py",
        "cluster/params_codec.py",
        "cluster/prediction_codec.py",
        "cluster/facts_codec.py",
        "router/front/field_rules.py",
        "router/front/routing_fields.py",
        "router/front/sampling_fields.py",
        "router/front/prompt.py",
        "router/front/validation.py",
        "cluster/membership.py",
        "decode_worker/timeline.py",
        "cluster/watch.py",
        "decode_worker/answer.py",
        "router/status_codec.py",
        "router/front/text_codec.py",
        "router/policy_life/codec.py",
        "router/http/contract.py",
        "router/http/asked.py",
        "router/http/reading.py",
        "router/http/response_reading.py",
        "router/http/response_form.py",
        "router/http/forms.py",
        "router/http/answers.py",
        "router/http/token_text.py",
    },
    "typed clients": {
        "cluster/channel.py",
        "worker/registrar.py",
        "cluster/visitor.py",
        "penstock/aio.py",
        "penstock/answer.py",
        "penstock/calls.py",
        "penstock/client.py",
        "penstock/exchange.py",
        "penstock/request.py",
        "penstock/cli/cluster_calls.py",
        "penstock/cli/drain.py",
        "penstock/cli/followed.py",
        "penstock/cli/in_force.py",
        "penstock/cli/policy_live.py",
        "penstock/cli/status.py",
        "penstock/cli/top/inside.py",
        "deploy/vitals.py",
        "deploy/doctor/examination.py",
        "deploy/planner/routers.py",
        "router/relay.py",
        "router/request_line.py",
        "router/metrics/requests.py",
        "router/sent.py",
        "router/watcher.py",
        "router/links.py",
        "router/frame_channel.py",
    },
    "service edges": {
        "worker/process.py",
        "worker/orders.py",
        "worker/frame_server.py",
        "cluster/diagnosis.py",
        "cluster/door.py",
        "router/cluster_service.py",
        "router/drains.py",
        "router/policy_life/service.py",
        "router/front/service.py",
        "router/http/about.py",
        "router/http/generation.py",
        "worker/fences.py",
        "worker/fetch.py",
        "worker/loans.py",
        "worker/pair_keeper.py",
        "worker/probe.py",
        "worker/source.py",
        "worker/writes.py",
        "decode_worker/service.py",
        "decode_worker/remote.py",
        "prefill_worker/service.py",
    },
}

TORCH_FREE = (
    "router.__main__",
    "router.router",
    "worker.process",
    "cluster.redis_store",
    "router.front.validation",
    "prefill_worker.scheduler",
    "decode_worker.scheduler",
    "engine.batcher",
    "engine.block_pool",
    "engine.sequence",
    "engine.echo",
    "deploy.launcher",
    "simulator.run",
)


def test_nothing_imports_upwards(arrows: dict[tuple[str, str], set[str]]) -> None:
    wrong = [
        line
        for (importer, imported), lines in arrows.items()
        if importer in ALLOWED and imported not in ALLOWED[importer]
        for line in lines
    ]
    assert wrong == []


def test_nobody_imports_tests_and_benchmarks(arrows: dict[tuple[str, str], set[str]]) -> None:
    wrong = [lines for ends, lines in arrows.items() if ends[1] in ("bench", "tests")]
    assert wrong == []


def test_nobody_imports_a_test(tests: list[Any]) -> None:
    """What several tests need stands in a module of its own, and is no test."""
    wrong = [
        f"{module.path} imports {name}"
        for module in tests
        for name in sorted(module.imports)
        if any(part.startswith("test_") for part in name.split("."))
    ]
    assert wrong == []


def test_the_engine_knows_no_plumbing(modules: list[Any]) -> None:
    wrong = {
        f"{module.path} imports {name}"
        for module in modules
        for name in module.imports
        if module.path.parts[0] == "engine"
        and name.startswith("cluster")
        and name not in ENGINE_MAY_IMPORT
    }
    assert wrong == set()


def test_no_circles_between_folders(arrows: dict[tuple[str, str], set[str]]) -> None:
    after: dict[str, set[str]] = {}
    for importer, imported in arrows:
        after.setdefault(importer, set()).add(imported)

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        ahead = list(after.get(start, ()))
        while ahead:
            here = ahead.pop()
            if here not in seen:
                seen.add(here)
                ahead += after.get(here, ())
        return seen

    assert [folder for folder in after if folder in reachable(folder)] == []


@pytest.mark.parametrize(("package", "door"), DOORS.items())
def test_a_heavy_dependency_has_one_door(modules: list[Any], package: str, door: str) -> None:
    importers = {
        module.path.as_posix()
        for module in modules
        if any(name == package or name.startswith(package + ".") for name in module.imports)
        and module.path.parts[0] != "bench"
    }
    assert importers <= {door}


def test_messages_stay_at_the_edges(modules: list[Any]) -> None:
    known = set().union(*STUB_FILES.values())
    importers = {
        module.path.as_posix()
        for module in modules
        if any(name.startswith(STUBS) for name in module.imports)
        and module.path.parts[0] != "bench"
    }
    assert importers - known == set()


def test_nothing_is_unpickled(modules: list[Any]) -> None:
    banned = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
    wrong = [str(module.path) for module in modules if module.imports & banned]
    assert wrong == []


@pytest.mark.slow
def test_router_and_schedulers_load_no_torch(modules: list[Any]) -> None:
    names = [name for name in TORCH_FREE if name in {module.name for module in modules}]
    assert len(names) >= len(TORCH_FREE) - 1
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'transformers'} & set(sys.modules)\n"
        "    assert not heavy, f'{name} loads {heavy}'\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
