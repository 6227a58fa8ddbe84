"""A sealed archive: one file of JSON lines with a signed manifest at its end, readable without this program.

Each part is a line {"part":…,"rows":n} and its n rows. Then the manifest, with the SHA-256 of every part, and
last the signature over the SHA-256 of every byte before it: no byte of the file can be changed unnoticed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec
from msgspec import Struct

from commerce.receipts import Receipts, Unverified, verify_bytes

VERSION = "a1"
LINE_BYTES_MAX = 4 * 1024 * 1024
SUFFIX = ".jsonl"


class PartSeal(Struct, frozen=True, kw_only=True):
    """One part: its name, how many rows, and the SHA-256 of their lines."""

    name: str
    rows: int
    sha256: str


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an archive holds. `digest` is of all but `sealed_at`: the same content always has the same."""

    archive: str
    show: str
    title: str
    ended_at: str
    totals: dict[str, int]
    notes: tuple[str, ...]
    parts: tuple[PartSeal, ...]
    digest: str = ""
    sealed_at: str = ""


class _PartHead(Struct, frozen=True, forbid_unknown_fields=True):
    part: str
    rows: int


class _Signature(Struct, frozen=True, forbid_unknown_fields=True):
    signature: str


class _ManifestLine(Struct, frozen=True, forbid_unknown_fields=True):
    manifest: Manifest


class ArchiveDraft:
    """An archive being written, beside its place; it becomes one when it is sealed."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file = file
        self.path = path
        self._whole = hashlib.sha256()
        self._part = hashlib.sha256()
        self._open: tuple[str, int] | None = None
        self._rows = 0
        self._parts: list[PartSeal] = []

    def begin(self, name: str, rows: int) -> None:
        """The next part; so many rows must follow."""
        self._end()
        self._open, self._rows, self._part = (name, rows), 0, hashlib.sha256()
        self._write(msgspec.json.encode(_PartHead(name, rows)))

    def row(self, line: bytes) -> None:
        self._rows += 1
        self._part.update(line + b"\n")
        self._write(line)

    def seal(self, manifest: Manifest, signer: Receipts, sealed_at: str) -> Manifest:
        """Write manifest and signature; the file is whole after this."""
        self._end()
        manifest = msgspec.structs.replace(manifest, parts=tuple(self._parts))
        manifest = msgspec.structs.replace(manifest, digest=_digest(manifest), sealed_at=sealed_at)
        self._write(msgspec.json.encode(_ManifestLine(manifest)))
        signature = signer.sign_bytes(_signed(self._whole.digest()))
        self._file.write(msgspec.json.encode(_Signature(signature)) + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        return manifest

    def keep(self, path: Path) -> None:
        """Put the sealed file in its place."""
        os.replace(self.path, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _end(self) -> None:
        if self._open is not None:
            name, rows = self._open
            if rows != self._rows:
                raise ValueError(f"part {name} has {self._rows} rows of {rows}")
            self._parts.append(PartSeal(name=name, rows=rows, sha256=self._part.hexdigest()))
            self._open = None

    def _write(self, line: bytes) -> None:
        if len(line) > LINE_BYTES_MAX:
            raise ValueError(f"a line of {len(line)} bytes is longer than an archive's lines may be")
        self._whole.update(line + b"\n")
        self._file.write(line + b"\n")


@contextmanager
def draft(folder: Path, name: str) -> Iterator[ArchiveDraft]:
    """Begin an archive in this folder; what was not put in its place is gone afterwards."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f".{name}.{os.getpid()}"
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            yield ArchiveDraft(file, path)
    finally:
        path.unlink(missing_ok=True)


def verify_archive(path: Path, public_key: str) -> Manifest:
    """The manifest of an archive that is whole and was signed by this key. Raises Unverified."""
    whole, part = hashlib.sha256(), hashlib.sha256()
    found: list[PartSeal] = []
    head: _PartHead | None = None
    rows = 0
    manifest: Manifest | None = None
    signature: str | None = None
    with path.open("rb") as file:
        for number, line in enumerate(_lines(file), 1):
            if signature is not None:
                raise Unverified(f"line {number} follows the signature")
            if manifest is not None:
                signature = _read(line, _Signature, number).signature
                if msgspec.json.encode(_Signature(signature)) + b"\n" != line:
                    raise Unverified(f"line {number} is not the signature as we write it")
                continue
            whole.update(line)
            if head is not None and rows < head.rows:
                rows += 1
                part.update(line)
                continue
            if head is not None:
                found.append(PartSeal(name=head.part, rows=rows, sha256=part.hexdigest()))
                head, rows, part = None, 0, hashlib.sha256()
            if line.startswith(b'{"manifest":'):
                manifest = _read(line, _ManifestLine, number).manifest
            else:
                head = _read(line, _PartHead, number)
    if manifest is None or signature is None:
        raise Unverified("the file is cut off: it has no manifest and signature at its end")
    if manifest.archive != VERSION:
        raise Unverified(f"it is of version {manifest.archive[:8]}; this program knows {VERSION}")
    try:
        verify_bytes(_signed(whole.digest()), signature, public_key)
    except Unverified:
        # Which part it is, for people; the signature alone decides.
        changed = [seal.name for seal, is_now in zip(manifest.parts, found, strict=False) if seal != is_now]
        named = f"part {changed[0]} was changed" if changed else "it was changed, or another key signed it"
        raise Unverified(f"the signature does not fit: {named}") from None
    if tuple(found) != manifest.parts or _digest(manifest) != manifest.digest:
        raise Unverified("it is signed, but its manifest is of other parts")
    return manifest


def archive_in_words(manifest: Manifest) -> str:
    lines = [
        f"archive   {manifest.title}",
        f"show      {manifest.show}, ended {manifest.ended_at}",
        f"sealed    {manifest.sealed_at}",
        f"digest    {manifest.digest}",
        f"parts     {', '.join(f'{seal.name} {seal.rows}' for seal in manifest.parts)}",
        f"totals    {', '.join(f'{name} {number}' for name, number in manifest.totals.items())}",
    ]
    return "\n".join([*lines, *(f"note      {note}" for note in manifest.notes)])


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    while line := file.readline(LINE_BYTES_MAX + 2):
        if not line.endswith(b"\n"):
            raise Unverified("the file is cut off, or has a line longer than ours")
        yield line


def _read(line: bytes, kind: Any, number: int) -> Any:
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Unverified(f"line {number} is no line of an archive of ours") from None


def _digest(manifest: Manifest) -> str:
    content = msgspec.structs.replace(manifest, digest="", sealed_at="")
    return hashlib.sha256(msgspec.json.encode(content)).hexdigest()


def _signed(digest: bytes) -> bytes:
    """A receipt's text begins otherwise, so a signature of one kind never passes for the other."""
    return b"companion archive " + digest
