"""Machines for `ray up` where namespaces are forbidden: directories and loopback addresses of this
one, by a provider without ssh. They share processes, memory and network: nothing can be cut off."""

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.autoscaler.command_runner import CommandRunnerInterface
from ray.autoscaler.node_provider import NodeProvider

# In front of Ray's own on the PATH of each: Ray stops all Rays of a machine and has one directory
# a machine, and here there are several. Started in the foreground it ends its children itself.
RAY = """#!/bin/bash
cd "$HOME"
case "$1" in
  stop)
    test -e ray.pid || exit 0
    kill "$(cat ray.pid)" 2>&- && tail --pid="$(cat ray.pid)" -f /dev/null
    rm ray.pid ;;
  start)
    setsid "$REAL_RAY" "$@" --block --node-ip-address="$ADDRESS" --temp-dir="$HOME/ray" \\
      >ray.log 2>&1 </dev/null &
    echo $! >ray.pid
    until grep -q 'runtime started' ray.log; do
      kill -0 $! || { cat ray.log; exit 1; }
      sleep 0.2
    done ;;
  *) exec "$REAL_RAY" "$@" ;;
esac
"""


class LoopbackProvider(NodeProvider):
    """Gives out addresses, of which it keeps a file."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._directory = Path(provider_config["directory"])

    @contextmanager
    def _machines(self) -> Iterator[dict[str, dict[str, str]]]:
        """Tags by address; what is changed is kept."""
        with (self._directory / "machines.json").open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            machines = json.loads(file.read() or "{}")
            yield machines
            file.truncate(0)
            json.dump(machines, file)

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        with self._machines() as machines:
            return [name for name, tags in machines.items() if tag_filters.items() <= tags.items()]

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> None:
        with self._machines() as machines:
            free = [each for each in self.provider_config["addresses"] if each not in machines]
            machines.update({address: dict(tags) for address in free[:count]})

    def terminate_node(self, node_id: str) -> None:
        Runner(self._directory, node_id).run("ray stop")
        with self._machines() as machines:
            machines.pop(node_id, None)

    def is_running(self, node_id: str) -> bool:
        with self._machines() as machines:
            return node_id in machines

    def is_terminated(self, node_id: str) -> bool:
        return not self.is_running(node_id)

    def node_tags(self, node_id: str) -> dict[str, str]:
        with self._machines() as machines:
            return machines[node_id]

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        with self._machines() as machines:
            machines[node_id].update(tags)

    def external_ip(self, node_id: str) -> str:
        return node_id

    def internal_ip(self, node_id: str) -> str:
        return node_id

    def get_command_runner(
        self, log_prefix: str, node_id: str, *given: Any, **more: Any
    ) -> "Runner":
        return Runner(self._directory, node_id)


class Runner(CommandRunnerInterface):
    """Runs commands and copies files as if at home on the machine."""

    def __init__(self, directory: Path, address: str) -> None:
        self.home = directory / address
        self.address = address
        shims = self.home / "bin"
        shims.mkdir(parents=True, exist_ok=True)
        (shims / "ray").write_text(RAY)
        # Raylets of all machines are seen here: on this one none runs when it is asked.
        (shims / "pgrep").write_text("#!/bin/sh\nexit 1\n")
        for shim in shims.iterdir():
            shim.chmod(0o755)

    def run(
        self,
        cmd: str | None = None,
        timeout: int = 120,
        environment_variables: dict[str, Any] | None = None,
        with_output: bool = False,
        **more: Any,
    ) -> str:
        given = {key: _text(value) for key, value in (environment_variables or {}).items()}
        shell = f". ~/.bashrc; {cmd or 'true'}" if (self.home / ".bashrc").exists() else cmd
        ended = subprocess.run(
            ["bash", "-c", shell or "true"],
            cwd=self.home,
            env={**self._environment(), **given},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            text=True,
        )
        if not with_output:
            print(ended.stdout)
        ended.check_returncode()
        return ended.stdout

    def _environment(self) -> dict[str, str]:
        # What was set for the Ray that asks is not this one's.
        own = {key: each for key, each in os.environ.items() if not key.startswith("RAY_")}
        return {
            **own,
            "HOME": str(self.home),
            "ADDRESS": self.address,
            "PATH": f"{self.home / 'bin'}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
        }

    def run_rsync_up(self, source: str, target: str, options: Any = None) -> None:
        self._copy(Path(source), self._here(target))

    def run_rsync_down(self, source: str, target: str, options: Any = None) -> None:
        self._copy(self._here(source), Path(target))

    def _here(self, path: str) -> Path:
        return self.home / path.removeprefix("~/").lstrip("/")

    def _copy(self, source: Path, target: Path) -> None:
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        elif source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)

    def remote_shell_command_str(self) -> str:
        return "bash"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
