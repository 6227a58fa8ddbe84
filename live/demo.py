"""The demo's evening: the sample brand loaded, the crowd's command line, and the addresses on the screen."""

from __future__ import annotations

import io
import shlex
import shutil
import socket
import sys
from pathlib import Path

import segno

from commerce.sandbox import control_key
from live.app import build_parts, close_parts
from live.brand import SHOP, Demo, load
from live.metrics import Metrics
from live.settings import Settings

LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")


async def load_demo(settings: Settings) -> Demo:
    """The sample brand and where it can be entered; what is there already stays."""
    parts = await build_parts(settings, Metrics())
    try:
        return await load(parts)
    finally:
        await close_parts(parts)


def crowd_command(settings: Settings, demo: Demo, viewers: int) -> tuple[str, ...]:
    return (
        *(sys.executable, "-P", "-m", "loadtests.crowd"),
        *("--url", _own_address(settings), "--show", demo.show, "--viewers", str(viewers)),
    )


def crowd_environment(demo: Demo) -> dict[str, str]:
    # A line now and then: a table that redraws itself would fight with the addresses.
    return {"COMPANION_CROWD_KEY": demo.crowd_key, "TTY_COMPATIBLE": "0"}


def screen(settings: Settings, demo: Demo, viewers: int) -> str:
    """What is printed once everything serves."""
    public = settings.public_url
    viewer_page = f"{public}/s/{demo.show}"
    lines = [
        "",
        f"{SHOP} · {viewers} simulated viewers",
        "",
        f"  host panel    {public}/panel/sign-in#{demo.panel_link}",
        "                (works once, for ten minutes; the show waits for its 开始直播 / Start the show)",
        f"  viewer page   {viewer_page}",
        f"  members only  {public}/s/{demo.members_show}",
        f"  API           {public}/docs",
        *_provider_lines(settings),
        "",
        _picture(viewer_page),
    ]
    if any(f"//{host}:" in public for host in LOCAL_HOSTS):
        lines.append(
            "The picture leads to this machine only. For a phone on the same network:\n"
            f"  COMPANION_HOST=0.0.0.0 COMPANION_PUBLIC_URL=http://{_network_address()}:{settings.port}"
            " make demo"
        )
    lines += [
        f"Another link to the panel: {_command(settings)} token --staff {demo.owner} --link",
        f"Data is in {settings.data_dir}. Ctrl-C stops everything.",
        "",
    ]
    return "\n".join(lines)


def _command(settings: Settings) -> str:
    """`companion` as a shell finds it, with what leads to this deployment."""
    program = Path(sys.argv[0]).absolute()
    name = str(program) if program.name == "companion" else f"{sys.executable} -m live"
    if program.name == "companion" and shutil.which("companion") == str(program):
        name = "companion"
    leads = {"COMPANION_DATA_DIR": str(settings.data_dir), "COMPANION_PUBLIC_URL": settings.public_url}
    return " ".join([*(f"{key}={shlex.quote(value)}" for key, value in leads.items()), name])


def _provider_lines(settings: Settings) -> list[str]:
    if not settings.sandbox or settings.payment_provider != "sandbox":
        return []
    return [
        f"  payments      {settings.public_url}/sandbox/control",
        f"                (make them go wrong; any name, password {control_key(settings.secret)})",
    ]


def _picture(address: str) -> str:
    drawn = io.StringIO()
    segno.make(address, error="m").terminal(out=drawn, compact=True, border=2)
    return drawn.getvalue()


def _own_address(settings: Settings) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # noqa: S104
    return f"http://{host}:{settings.port}"


def _network_address() -> str:
    """This machine's address on its network, as the routing table has it; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "YOUR-ADDRESS"
        return str(probe.getsockname()[0])
