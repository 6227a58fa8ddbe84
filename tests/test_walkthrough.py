"""The evening of docs/walkthrough.py against real processes: `serve` with two workers, and `work`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "docs" / "walkthrough.py"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a running service on embedded engines of its own."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("COMPANION_")},
        "COMPANION_DATA_DIR": str(tmp_path / "data"),
        "COMPANION_PORT": "0",
        "COMPANION_SANDBOX": "yes",
    }
    serve = subprocess.Popen(
        [sys.executable, "-m", "live", "serve", "--workers", "2"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    work = None
    try:
        assert serve.stdout is not None
        said = serve.stdout.readline()
        found = re.match(r"serving (http://\S+)", said)
        assert found, f"serve said: {said!r}"
        environment["COMPANION_PUBLIC_URL"] = found[1]
        work = subprocess.Popen([sys.executable, "-m", "live", "work"], cwd=ROOT, env=environment)
        yield environment
    finally:
        for running in (work, serve):
            if running is not None:
                running.send_signal(signal.SIGTERM)
                running.wait(20)
        if serve.stdout is not None:
            serve.stdout.close()


def test_the_evening_goes_as_promised_seen_from_outside(service: dict[str, str]) -> None:
    link = subprocess.run(
        [sys.executable, "-m", "live", "token", "--role", "owner", "--name", "小禾", "--link"],
        cwd=ROOT,
        env=service,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout.strip()
    walked = subprocess.run(
        [sys.executable, str(SCRIPT), link],
        cwd=service["COMPANION_DATA_DIR"],  # nothing of ours can be imported by accident
        env={name: value for name, value in service.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert walked.returncode == 0, walked.stdout + walked.stderr
    assert "all as promised" in walked.stdout


def test_the_script_speaks_only_http_and_the_socket() -> None:
    imported = set(re.findall(r"^(?:from|import) (\w+)", SCRIPT.read_text("utf-8"), re.MULTILINE))
    assert imported - set(sys.stdlib_module_names) == {"httpx2", "websockets"}


def test_without_a_link_it_says_how_to_start() -> None:
    asked = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False, timeout=30
    )
    assert asked.returncode == 2
    assert "companion token" in asked.stdout
