"""The built wheel: everything is inside, and it runs installed elsewhere."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import urllib.request
import venv
import zipfile
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return next(folder.glob("*.whl"))


def test_everything_that_is_needed_to_run_is_inside(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    missing = []
    for package in ("live", "chat", "commerce", "membership", "loadtests"):
        for path in (ROOT / package).rglob("*"):
            name = str(path.relative_to(ROOT))
            if path.is_file() and "__pycache__" not in name and "reports" not in path.parts:
                missing += [] if name in inside else [name]
    assert missing == []
    kinds = Counter(Path(name).suffix for name in inside)
    for kind in (".py", ".lua", ".sql", ".html", ".js", ".css"):
        assert kinds[kind] > 0, kind
    assert "live/static/vendor/preact.js" in inside
    assert "live/static/vendor/licences/preact.txt" in inside
    assert any(name.endswith("licenses/LICENSE") for name in inside)


def test_nothing_else_is_inside(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "live",
        "chat",
        "commerce",
        "membership",
        "loadtests",
    }


def test_it_runs_installed_elsewhere(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = tmp_path / "venv" / "lib" / version / "site-packages"
    zipfile.ZipFile(wheel).extractall(site)
    # What it depends on comes from here; a .pth does not follow the .pth files there, so our own does not.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "COMPANION_DATA_DIR": str(tmp_path / "data"),
        "COMPANION_PORT": "0",
        "COMPANION_SANDBOX": "yes",
    }
    where = "import live, chat; print(live.__file__); print(chat.__file__)"
    found = subprocess.check_output([python, "-c", where], env=environment, cwd=tmp_path, text=True)
    assert all(line.startswith(str(site)) for line in found.split())
    served = subprocess.Popen(
        [python, "-m", "live", "serve"],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert served.stdout is not None
        said = [served.stdout.readline()]
        while not (address := re.search(r"serving (\S+)", said[-1])):
            assert said[-1], "".join(said)
            said.append(served.stdout.readline())
        for path in ("/", "/docs", "/openapi.json", "/static/vendor/preact.js", "/static/demo/rice.svg"):
            with urllib.request.urlopen(address[1] + path, timeout=10) as answer:
                assert answer.status == 200
                assert len(answer.read()) > 100
        with urllib.request.urlopen(address[1] + "/healthz", timeout=10) as answer:
            assert json.loads(answer.read())["status"] == "ok"
    finally:
        served.send_signal(signal.SIGTERM)
        served.communicate(timeout=20)
    assert served.returncode == 0
