"""Redis as a Cluster: its address, the client for commands, and plain clients for blocked reads by node.

`redis+cluster://[user:password@]host[:port][,host[:port]…][?options]`, or `rediss+cluster://` over TLS.
One node that answers is enough: the others are learnt from it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import msgspec
from redis import exceptions as errors
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from live.ending import end

SCHEMES = {"redis+cluster": "redis", "rediss+cluster": "rediss"}
PORT = 6379
LOOK_AGAIN_S = 1.0  # the map of slots is read anew at most so often: its 16,384 rows cost 10 ms of the loop


class ClusterUrl(msgspec.Struct, frozen=True):
    """A Cluster's address, taken apart."""

    scheme: str  # of one node
    user: str  # "name:password@", or ""
    nodes: tuple[tuple[str, int], ...]
    options: str  # "?…", or ""

    @classmethod
    def parse(cls, url: str) -> ClusterUrl | None:
        """None for the address of a single server. Raises ValueError."""
        scheme, _, rest = url.partition("://")
        if scheme not in SCHEMES:
            return None
        parts = urlsplit(f"//{rest}")
        user, at, hosts = parts.netloc.rpartition("@")
        if parts.path not in ("", "/", "/0") or parts.fragment:
            raise ValueError("a Cluster has the database 0 alone")
        nodes = []
        for text in hosts.split(","):
            node = urlsplit(f"//{text.strip()}")
            if not node.hostname:
                raise ValueError("a node without a name")
            nodes.append((node.hostname, node.port or PORT))
        return cls(SCHEMES[scheme], user + at, tuple(nodes), f"?{parts.query}" if parts.query else "")

    def of(self, host: str, port: int) -> str:
        """The address of one node, with the same user and options."""
        host = f"[{host}]" if ":" in host else host
        return f"{self.scheme}://{self.user}{host}:{port}{self.options}"


class BoundedCluster(RedisCluster):
    """The library's client, that repeats nothing by itself and lets one sick node trouble no other.

    A redirect (MOVED, ASK, TRYAGAIN) is followed: the command has not run. Everything else goes up.
    """

    def __init__(
        self, address: ClusterUrl, *, connections: int, turn_s: float, command_s: float, connect_s: float
    ) -> None:
        first, *_ = address.nodes
        given: dict[str, Any] = dict(parse_url(address.of(*first)))
        tls = given.pop("connection_class", None) is SSLConnection
        for name in ("host", "port", "db"):
            given.pop(name, None)
        super().__init__(
            startup_nodes=[ClusterNode(host, port) for host, port in address.nodes],
            retry=Retry(NoBackoff(), 0),
            # By its own count the library would drop every connection, in use or not, at each 5th MOVED.
            reinitialize_steps=0,
            require_full_coverage=False,
            # The library refuses at this number. Turns keep commands to half of it; pipelines have the rest.
            max_connections=2 * connections,
            socket_timeout=command_s,
            socket_connect_timeout=connect_s,
            legacy_responses=False,
            decode_responses=False,
            ssl=tls,
            **given,
        )
        self._connections = connections
        self._turn_s = turn_s
        self._turns: dict[str, asyncio.Semaphore] = {}
        self._failed: str | None = None
        self._looked_at = -LOOK_AGAIN_S
        self._looking: asyncio.Task[None] | None = None
        self._commanding: set[asyncio.Task[Any] | None] = set()  # tasks within a command to a node

    async def initialize(
        self,
        additional_startup_nodes_info: list[tuple[str, int]] | None = None,
        last_failed_node_name: str | None = None,
    ) -> RedisCluster:
        """Read who has which slots. The library asks for it after each command that failed; it is done once
        a second, by one for all, and in between commands go by what was known.
        """
        if not self._initialize:
            return self
        now = time.monotonic()
        known = self.get_default_node() is not None and self.commands_parser.commands
        if known and now - self._looked_at < LOOK_AGAIN_S:
            self._initialize = False
            return self
        if self._looking is None or self._looking.done():
            self._looked_at = now
            self._looking = asyncio.create_task(self._look(), name="slots of the Cluster")
            self._looking.add_done_callback(_retrieve)
        # Not awaited itself: its cancellation is of the one who looks, and not of those who wait for it.
        looking = self._looking
        await asyncio.wait([looking])
        if looking.cancelled():
            raise errors.ConnectionError("closed before it was known who has which slots")
        looking.result()
        return self

    async def _look(self) -> None:
        """The library's own reading drops the connections to all nodes, in use or not, when it fails."""
        try:
            # The node that failed is asked last: a frozen one would hold up everybody.
            await self.nodes_manager.initialize(last_failed_node_name=self._failed)
        except errors.RedisClusterException as error:
            raise errors.ConnectionError(str(error)) from error
        if not self.commands_parser.commands:
            await self._learn_commands()
        self._initialize = False

    async def _learn_commands(self) -> None:
        """Where the keys are in each command: once, from a node that answers."""
        answer: Exception = errors.ConnectionError("no node of the Cluster is known")
        for node in self.get_primaries():
            try:
                return await self.commands_parser.initialize(node)
            except (errors.RedisError, OSError) as error:
                answer = error
        raise answer

    def forget(self) -> None:
        """Who has which slots is read anew before the next command. Connections, and commands on them, stay."""
        self._initialize = True

    async def aclose(self) -> None:
        if asyncio.current_task() in self._commanding:
            # The library closes itself, and with it what others wait for, when one slot is served by nobody.
            self.forget()
            return
        if self._looking is not None:
            await end([self._looking])
        self._initialize = False  # else the library takes itself for closed already
        await super().aclose()

    async def ping(self, **kwargs: Any) -> Any:
        """Whether the Cluster is there: one node that answers is enough for that."""
        answer: Exception = errors.ConnectionError("no node of the Cluster is known")
        await self.initialize()
        for node in self.get_primaries():
            try:
                return await self.execute_command("PING", target_nodes=node)
            except errors.RedisError as error:
                answer = error
        raise answer

    async def get_nodes_from_slot(self, command: str, *args: Any) -> list[ClusterNode]:
        try:
            found: list[ClusterNode] = await super().get_nodes_from_slot(command, *args)
        except KeyError as error:  # what the library makes of a slot that no node has
            self.forget()
            raise errors.ConnectionError(f"no node has the slot {error}") from error
        return found

    def home(self, key: str) -> str:
        """The name of the node that has `key`, as far as is known."""
        try:
            node = self.get_node_from_key(key)
        except errors.RedisClusterException:
            return ""
        return node.name if node is not None else ""

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().execute_command(*args, **kwargs)
        except (
            errors.RedisClusterException
        ) as error:  # which is no RedisError: no node has the slot, and the like
            raise errors.ConnectionError(str(error)) from error

    async def _execute_command(self, target_node: ClusterNode, *args: Any, **kwargs: Any) -> Any:
        turns = self._turns.get(target_node.name)
        if turns is None:
            turns = self._turns[target_node.name] = asyncio.Semaphore(self._connections)
        try:
            async with asyncio.timeout(self._turn_s):
                await turns.acquire()
        except TimeoutError as error:
            raise errors.TimeoutError(f"no free connection to {target_node.name}") from error
        task = asyncio.current_task()
        self._commanding.add(task)
        try:
            return await super()._execute_command(target_node, *args, **kwargs)
        except (errors.ConnectionError, errors.TimeoutError, errors.ClusterDownError):
            self._failed = target_node.name
            raise
        finally:
            self._commanding.discard(task)
            turns.release()


class NodeClients:
    """Plain clients for blocked reads: of a single server one, of a Cluster one for each node.

    A reader keeps one connection, which the Cluster client's own bookkeeping would close under it.
    """

    def __init__(
        self,
        url: str,
        open_client: Callable[[str], Redis],
        open_map: Callable[[ClusterUrl], BoundedCluster],
    ) -> None:
        self._url = url
        self._address = ClusterUrl.parse(url)
        self._open = open_client
        self._map = open_map(self._address) if self._address is not None else None
        self._clients: dict[str, Redis] = {}

    async def having(self, key: str) -> Redis:
        """The client of the node that has `key`, as far as is known. Raises RedisError, OSError."""
        if self._map is None:
            return self._of(self._url)
        await self._map.initialize()
        try:
            node = self._map.get_node_from_key(key)
        except errors.RedisClusterException as error:
            raise errors.ConnectionError(str(error)) from error
        assert node is not None  # it is for a replica alone
        return self.at(node.host, int(node.port))

    def at(self, host: str, port: int) -> Redis:
        """The client of a node that another one named."""
        assert self._address is not None
        return self._of(self._address.of(host, port))

    def _of(self, url: str) -> Redis:
        found = self._clients.get(url)
        if found is None:
            found = self._clients[url] = self._open(url)
        return found

    async def look_again(self) -> None:
        """The next `having` reads anew who has which slots, once a second at most; after an error."""
        if self._map is not None:
            self._map.forget()

    async def aclose(self) -> None:
        closing: list[Awaitable[None]] = [client.aclose() for client in self._clients.values()]
        if self._map is not None:
            closing.append(self._map.aclose())
        await asyncio.gather(*closing)


def _retrieve(task: asyncio.Task[None]) -> None:
    """Whoever waits is told; where nobody waits any more it is no news."""
    if not task.cancelled():
        task.exception()
