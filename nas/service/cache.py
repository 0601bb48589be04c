"""Files of subnetworks on disk: complete or absent, bounded, and safe to read while others are removed."""

import contextlib
import io
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, final

from nas.delivery import manifest_of
from nas.service.problems import RefusedError
from nas.service.served import Served
from nas.service.tracing import Order, Tracer, refusal
from search_spaces import Architecture
from supernets.deployment import quantized_layers
from supernets.export import MANIFEST, ExportError, export
from supernets.formats import filename_of

__all__ = ["Opened", "WeightCache"]

_SMALL = 1 << 20  # bytes up to which a file is read at once
_REMAINS = 600.0  # seconds after which a draft or what is being removed belongs to a process that has died


@dataclass(frozen=True)
class Opened:
    """A file of the cache, open for reading; it can be read to its end even if it is removed meanwhile.

    Attributes:
        file: at its beginning; to be closed.
        in_memory: whether reading it waits for no disk.
        size: bytes.
        digest: SHA-256 of the content.
        filename: as in an export.
        manifest: JSON text.
    """

    file: BinaryIO
    in_memory: bool
    size: int
    digest: str
    filename: str
    manifest: bytes


@final
class WeightCache:
    """One folder for each subnetwork and format, named by the id; several processes may share the cache.

    Args:
        folder: of the cache.
        bound: bytes; the files unused for longest are removed first.
        trust: packages of users' own that a space may name.
    """

    def __init__(self, folder: Path, bound: int, *, trust: Sequence[str] = ()) -> None:
        self.folder = folder
        self.bound = bound
        self.trust = tuple(trust)
        self.tracer = Tracer()
        folder.mkdir(parents=True, exist_ok=True)
        self._clean()

    def open(self, name: str, form: str) -> Opened | None:
        """Return the file of a subnetwork, or ``None`` where it is not in the cache."""
        place = self._place(name, form)
        filename = filename_of(form)
        try:
            manifest = (place / MANIFEST).read_bytes()
            file = (place / filename).open("rb")
        except OSError:
            return None
        with contextlib.suppress(OSError):  # it may be being removed; the open file stays readable
            os.utime(place)
        digest = json.loads(manifest)["files"][filename]["sha256"]
        size = os.fstat(file.fileno()).st_size
        if size > _SMALL:
            return Opened(file, False, size, digest, filename, manifest)
        with file:
            return Opened(io.BytesIO(file.read()), True, size, digest, filename, manifest)

    def make(self, served: Served, architecture: Architecture, form: str) -> None:
        """Extract, calibrate and export a subnetwork, and put it into the cache complete.

        Not for several threads at once but in safetensors; the other formats are made in a process of their own.

        Raises:
            RefusedError: the network cannot be exported in this format (422), or the file cannot be made now (503).
        """
        place = self._place(served.name_of(architecture), form)
        handed, bound = served.extracted(architecture)
        manifest = manifest_of(
            served.supernet, architecture, served.screen.meter(architecture), weights=served.objective.version
        )
        inputs = served.objective.examples(architecture, batch_size=2)
        try:
            if form == "safetensors":
                export(handed, inputs, place, formats=[form], manifest=manifest, reference=bound)
            else:
                self.tracer(
                    Order.of(
                        handed,
                        architecture,
                        inputs,
                        reference=bound,
                        quantized=quantized_layers(served.supernet.source, architecture),
                        space=served.supernet.tree()["space"],
                        trust=self.trust,
                        form=form,
                        folder=place,
                        manifest=manifest,
                    )
                )
        except (ExportError, ModuleNotFoundError, RefusedError) as error:
            if (place / MANIFEST).exists():  # another process was faster
                return
            if isinstance(error, RefusedError):
                raise
            raise refusal(error) from error
        self._shrink(keep=place)

    def close(self) -> None:
        """End the process that traces."""
        self.tracer.close()

    def _place(self, name: str, form: str) -> Path:
        return self.folder / f"{name}.{form}"

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        for place in self.folder.iterdir():
            if place.name.startswith("."):
                continue
            try:
                size = sum(file.stat().st_size for file in place.iterdir())
                yield place.stat().st_mtime, size, place
            except OSError:  # another thread or process is removing it
                continue

    def _shrink(self, keep: Path) -> None:
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        for _, size, place in entries:
            if total <= self.bound:
                return
            if place == keep:
                continue
            total -= size
            retired = self.folder / f".{uuid.uuid4().hex}.removed"
            try:
                os.replace(place, retired)
            except OSError:
                continue
            shutil.rmtree(retired, ignore_errors=True)

    def _clean(self) -> None:
        """Remove what processes that died in the middle have left."""
        for place in self.folder.glob(".*"):
            try:
                if time.time() - place.stat().st_mtime > _REMAINS:
                    shutil.rmtree(place, ignore_errors=True)
            except OSError:
                continue
