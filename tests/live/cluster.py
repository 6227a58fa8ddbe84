"""A Cluster on this machine, of the same program as the embedded engine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from redis import Redis
from redis.crc import key_slot
from redis.exceptions import ConnectionError

from live import process
from membership.actor import ShowId
from membership.partition import show_key

SLOTS = 16_384
START_S = 20.0


class ClusterNode:
    """One server of the Cluster, and a client for what only a test does to it."""

    def __init__(self, program: Path, folder: Path, port: int) -> None:
        self.port = port
        self.url = f"redis://127.0.0.1:{port}"
        self._command = [
            program,
            *("--port", str(port), "--cluster-port", str(port + 10_000), "--bind", "127.0.0.1"),
            *("--dir", str(folder), "--logfile", str(folder / "log"), "--save", "", "--appendonly", "no"),
            *("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--daemonize", "no"),
            # A node that is away takes its own slots along and no others.
            *("--cluster-require-full-coverage", "no", "--repl-diskless-sync-delay", "0"),
        ]
        self._folder = folder
        self.process = self._start()
        self.redis = Redis(port=port, socket_timeout=5.0, retry=None)

    def _start(self) -> subprocess.Popen[bytes]:
        return process.start(self._command, folder=self._folder)

    def await_answer(self) -> None:
        until = time.monotonic() + START_S
        while True:
            try:
                self.redis.ping()
            except ConnectionError:
                assert self.process.poll() is None, (self._folder / "log").read_text()
                assert time.monotonic() < until, "no answer"
                time.sleep(0.01)
            else:
                return

    @property
    def id(self) -> str:
        return str(self.redis.execute_command("CLUSTER MYID").decode())

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.redis.close()
        self.kill()


class Cluster:
    """Three nodes that share the slots in equal ranges; a fourth, where there is one, copies the first."""

    def __init__(self, nodes: Sequence[ClusterNode]) -> None:
        self.nodes = nodes[:3]
        self.replicas = nodes[3:]
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[1:])
        for at, node in enumerate(self.nodes):
            first, behind = at * SLOTS // 3, (at + 1) * SLOTS // 3
            node.redis.execute_command("CLUSTER ADDSLOTSRANGE", first, behind - 1)
            node.redis.execute_command("CLUSTER SET-CONFIG-EPOCH", at + 1)
        for node in nodes[1:]:
            node.redis.execute_command("CLUSTER MEET", "127.0.0.1", nodes[0].port)
        until = time.monotonic() + START_S
        while not all(self._whole(node, len(nodes)) for node in nodes):
            assert time.monotonic() < until, "the nodes have not met"
            time.sleep(0.02)
        for replica in self.replicas:
            replica.redis.execute_command("CLUSTER REPLICATE", self.nodes[0].id)
            while replica.redis.info("replication").get("master_link_status") != "up":
                assert time.monotonic() < until, "the replica has not come up"
                time.sleep(0.02)

    def _whole(self, node: ClusterNode, known: int) -> bool:
        info: Any = node.redis.execute_command("CLUSTER INFO")
        ok = info["cluster_state"] == "ok" and info["cluster_slots_ok"] == str(SLOTS)
        return bool(ok and info["cluster_known_nodes"] == str(known))

    def owner(self, show: ShowId) -> ClusterNode:
        """The node that has a show's keys, as the first node knows it."""
        slot = key_slot(show_key(show, "log").encode())
        for first, last, where, *_ in self._slots():
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == where[1])
        raise AssertionError(f"nobody has the slot {slot}")

    def _slots(self) -> list[Any]:
        client = Redis(port=self.nodes[0].port, socket_timeout=5.0)
        client.response_callbacks.pop("CLUSTER SLOTS", None)
        try:
            found: Any = client.execute_command("CLUSTER SLOTS")
            return list(found)
        finally:
            client.close()

    def move(self, show: ShowId, to: ClusterNode) -> None:
        """Move the slot of a show, the way every Redis can: key by key, then the slot's owner."""
        slot, away = key_slot(show_key(show, "log").encode()), self.owner(show)
        to.redis.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", away.id)
        away.redis.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", to.id)
        while keys := away.redis.execute_command("CLUSTER GETKEYSINSLOT", slot, 100):
            away.redis.execute_command("MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *keys)
        for node in (to, away, *(node for node in self.nodes if node not in (to, away))):
            node.redis.execute_command("CLUSTER SETSLOT", slot, "NODE", to.id)


@contextmanager
def running_cluster(program: Path, folder: Path, replicas: int = 0) -> Iterator[Cluster]:
    with ExitStack() as stack:
        nodes = []
        for port in _free_ports(3 + replicas):
            own = folder / str(port)
            own.mkdir()
            node = ClusterNode(program, own, port)
            stack.callback(node.stop)
            nodes.append(node)
        for node in nodes:
            node.await_answer()
        yield Cluster(nodes)
    shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    """Ports with their buses, 10,000 above: both free."""
    found: list[int] = []
    with ExitStack() as stack:
        # Below the range that the system gives away, and apart from what another test process looks through.
        start = 11_000 + os.getpid() % 70 * 100
        for port in range(start, start + 100):
            if len(found) == count:
                break
            pair = [stack.enter_context(socket.socket()) for _ in range(2)]
            try:
                for own, number in zip(pair, (port, port + 10_000), strict=True):
                    own.bind(("127.0.0.1", number))
            except OSError:
                continue
            found.append(port)
    assert len(found) == count, "no free ports"
    return found
