"""What `coe cluster` does on a Ray cluster: connect, start the directory, look, and end all of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from coe_server.cluster.ray_members import DIRECTORY, NAME_PLACEHOLDER, NAMESPACE, NODE_PREFIX, Member, NodePlan, named
from coe_server.config.schema import ServerConfig
from coe_server.errors import CoeError, ConfigError

ANSWER_SECONDS = 30.0
_POLL_SECONDS = 0.5
_BEYOND_SHUTDOWN_SECONDS = 60.0


def plan_of(settings: ServerConfig, path: Path) -> NodePlan:
    """The plan in a node's configuration. Raises ConfigError if it is not one for several machines."""
    if settings.role != "node":
        raise ConfigError(f"{path}: role: '{settings.role}' is not a node's; write role: node")
    text = path.read_text(encoding="utf-8")
    if "state_directory" not in settings.model_fields_set or str(settings.state_directory) not in text:
        raise ConfigError(
            f"{path}: state_directory: each machine needs an absolute path, such as /var/lib/coe/{NAME_PLACEHOLDER}"
        )
    return NodePlan(
        configuration=text,
        state_directory=str(settings.state_directory),
        host=settings.http.host,
        port=settings.http.port,
        scheme="http" if settings.http.tls is None else "https",
        shutdown_seconds=settings.http.shutdown_seconds,
    )


@contextmanager
def connected(address: str) -> Iterator[RayCluster]:
    """The Ray cluster at `address`. Raises CoeError if there is none, or Ray is not installed."""
    try:
        import ray  # noqa: PLC0415  an extra
    except ImportError as error:
        raise ConfigError("Ray is not installed here: it comes with the extra `ray` (docs/upgrade.md)") from error
    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())[:300]
        raise CoeError(
            f"no Ray cluster can be reached at '{address}' ({said}); this machine must be in it: ray start --head"
        ) from error
    try:
        yield RayCluster(ray)
    except ray.exceptions.RayError as error:
        raise CoeError(f"the Ray cluster: {' '.join(str(error).split())[:300]}") from error
    finally:
        ray.shutdown()


class RayCluster:
    """A Ray cluster that this process is connected to. `ray`: the module."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray

    @property
    def has_tokens(self) -> bool:
        """True if Ray asks everything that connects for a token."""
        with suppress(ImportError):
            from ray._private.authentication.authentication_utils import (  # noqa: PLC0415  no public name for it
                is_token_auth_enabled,
            )

            return bool(is_token_auth_enabled())
        return False

    def bring_up(self, plan: NodePlan) -> None:
        """Start the directory, which starts the nodes. Raises ConfigError if one runs with another plan."""
        from coe_server.cluster.ray_actors import directory_actor  # noqa: PLC0415  engines' code: not for `status`

        found = self._ray.get(directory_actor(plan).plan.remote(), timeout=ANSWER_SECONDS)
        if found != plan:
            raise ConfigError("nodes run there with another configuration; end them first: coe cluster down")

    def members(self) -> dict[str, Member]:
        """What the directory knows of each machine, by the node's name. Raises CoeError if there is none."""
        try:
            directory = self._ray.get_actor(DIRECTORY)
        except ValueError as error:
            raise CoeError(
                "no directory of nodes is on this Ray cluster; `coe cluster up CONFIG` starts one"
            ) from error
        return named(self._ray.get(directory.members.remote(), timeout=ANSWER_SECONDS))

    def wait_for_addresses(self, seconds: float) -> dict[str, Member]:
        """As `members`, once there are some and each has an address; what is there after `seconds` otherwise."""
        deadline = time.monotonic() + seconds
        while not _complete(found := self.members()) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        return found

    def take_down(self) -> int:
        """End the directory and all nodes, which finish their answers. Returns how many nodes there were."""
        names = [name for name in self._ray.util.list_named_actors() if name.startswith(NODE_PREFIX)]
        with suppress(ValueError):  # there is none
            directory = self._ray.get_actor(DIRECTORY)
            grace_seconds = self._ray.get(directory.plan.remote(), timeout=ANSWER_SECONDS).shutdown_seconds
            self._ray.get(directory.stop_looking.remote(), timeout=ANSWER_SECONDS)
            nodes = [self._ray.get_actor(name) for name in names]
            ends = [node.stop.remote() for node in nodes]
            self._ray.wait(ends, num_returns=len(ends), timeout=grace_seconds + _BEYOND_SHUTDOWN_SECONDS)
            self._ray.kill(directory, no_restart=True)
        for name in names:
            with suppress(ValueError):
                self._ray.kill(self._ray.get_actor(name), no_restart=True)
        return len(names)


def _complete(members: dict[str, Member]) -> bool:
    return bool(members) and all(one.run.url is not None for one in members.values())
