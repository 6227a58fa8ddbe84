"""The front-end libraries: what the build fetches, and that a browser loads it."""

from __future__ import annotations

import importlib.util
import json
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

import live

ROOT = Path(live.__file__).parent.parent
VENDOR = Path(live.__file__).parent / "static" / "vendor"


@pytest.fixture(scope="module")
def fetch_frontend() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fetch_frontend", ROOT / "deploy" / "fetch_frontend.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fetch_frontend"] = module
    spec.loader.exec_module(module)
    return module


def test_every_library_is_there_with_its_licence(fetch_frontend: ModuleType) -> None:
    assert fetch_frontend.complete()
    licences = {file.stem for file in (VENDOR / "licences").iterdir()}
    for library in fetch_frontend.LIBRARIES:
        assert library.name.removeprefix("@").replace("/", "-") in licences
    for file in json.loads((VENDOR / "vendor.json").read_text())["imports"].values():
        assert (VENDOR / file).stat().st_size > 1000


def test_another_version_or_a_missing_file_makes_it_incomplete(
    fetch_frontend: ModuleType, tmp_path: Path
) -> None:
    assert not fetch_frontend.complete(tmp_path)
    (tmp_path / "vendor.json").write_text(json.dumps(fetch_frontend.listing()))
    assert not fetch_frontend.complete(tmp_path)
    for library in fetch_frontend.LIBRARIES:
        for file in library.files.values():
            (tmp_path / file).touch()
    assert fetch_frontend.complete(tmp_path)
    (tmp_path / "vendor.json").write_text("{")
    assert not fetch_frontend.complete(tmp_path)


def fake_npm(folder: Path, script: str) -> list[str]:
    path = folder / "npm.py"
    path.write_text(script)
    return [sys.executable, str(path)]


def test_npm_that_fails_is_reported_with_its_reason_and_changes_nothing(
    fetch_frontend: ModuleType, tmp_path: Path
) -> None:
    npm = fake_npm(tmp_path, "import sys; sys.exit('npm error network is down')")
    with pytest.raises(fetch_frontend.FetchError, match="network is down"):
        fetch_frontend.fetch(tmp_path / "vendor", npm=npm)
    assert not (tmp_path / "vendor").exists()


def test_a_package_with_another_digest_is_refused(fetch_frontend: ModuleType, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "changed.tgz", "w:gz"):
        pass
    npm = fake_npm(
        tmp_path,
        f"import shutil; shutil.copy({str(tmp_path / 'changed.tgz')!r}, 'preact.tgz')",
    )
    with pytest.raises(fetch_frontend.FetchError, match=r"preact 11\.\S+ is not what its digest says"):
        fetch_frontend.fetch(tmp_path / "vendor", npm=npm)
    assert not (tmp_path / "vendor").exists()
