"""The supernets that are served, and how newer versions take their place."""

import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import final

from nas.commands.boundary import one_line
from nas.hypernetworks import CARD_FILE
from nas.service.problems import RefusedError
from nas.service.served import Generator, Served, load, with_trials
from nas.service.settings import Offer, ServiceSettings
from trials import StudyNotFoundError, Tracker, tracking_uri

__all__ = ["Catalogue"]

_logger = logging.getLogger("nas.service")
_CARDS = ("supernet.json", CARD_FILE)
Stamp = tuple[object, ...]


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _version(offer: Offer) -> Stamp:
    """Return something that changes when the address stands for another supernet."""
    if offer.address.startswith("models:"):
        return (Tracker(tracking_uri()).present_version(offer.address),)
    path = Path(offer.address)
    return tuple(part for name in ("", *_CARDS) for part in _stamp(path / name))


@final
class Catalogue:
    """Loads supernets and replaces them when their address stands for a newer version.

    A request takes a :class:`Served` once and keeps it, so what is in flight ends on the version it began with. The
    version before the present one stays loaded, so that links handed out before a change still work.

    Args:
        settings: names the supernets.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self._current: dict[str, Served | Generator] = {}
        self._before: dict[str, Served] = {}
        self._problems: dict[str, str] = {}
        self._versions: dict[str, Stamp] = {}
        self._studies: Stamp = ()
        self._lock = threading.Lock()

    @property
    def ready(self) -> bool:
        """Whether every supernet can answer."""
        return len(self._current) == len(self.settings.offers)

    def states(self) -> dict[str, str]:
        """Return what is loaded, by name, or why it is not."""
        with self._lock:
            return {
                offer.name: f"revision {self._current[offer.name].revision}"
                if offer.name in self._current
                else self._problems.get(offer.name, "loading")
                for offer in self.settings.offers
            }

    def all(self) -> list[Served | Generator]:
        """Return what can answer."""
        with self._lock:
            return list(self._current.values())

    def get(self, name: str) -> Served:
        """Return the present version of a supernet.

        Raises:
            RefusedError: there is none of this name (404), or it is not loaded yet (503).
        """
        found = self.find(name)
        if isinstance(found, Served):
            return found
        raise RefusedError(404, "unknown_model", f"{name} is a hypernetwork and has no subnetworks; POST /v1/generate")

    def find(self, name: str) -> Served | Generator:
        """Return the present version of a supernet or a hypernetwork; see :meth:`get`."""
        with self._lock:
            if name in self._current:
                return self._current[name]
            problem = self._problems.get(name)
        names = [offer.name for offer in self.settings.offers]
        if name in names:
            reason = f"could not be loaded ({problem}); it is tried again" if problem else "is being loaded"
            raise RefusedError(503, "loading", f"the model {name} {reason}", headers={"Retry-After": "5"})
        raise RefusedError(404, "unknown_model", f"this service has no model {name!r}; it has {', '.join(names)}")

    def of_revision(self, revision: str) -> Served | None:
        """Return a loaded supernet by its revision, that before the present one included."""
        with self._lock:
            loaded = [*self._current.values(), *self._before.values()]
        return next((found for found in loaded if isinstance(found, Served) and found.revision == revision), None)

    def generator(self, revision: str) -> Generator | None:
        """Return the hypernetwork of a revision, where it is the present one."""
        loaded = self.all()
        return next((found for found in loaded if isinstance(found, Generator) and found.revision == revision), None)

    def refresh(self) -> None:
        """Load what is not loaded or has changed; what cannot be loaded leaves the version before in its place."""
        studies = _stamp(Path(self.settings.storage))
        moved, self._studies = studies != self._studies or "://" in self.settings.storage, studies
        for offer in self.settings.offers:
            try:
                self._refresh(offer, moved=moved)
            except Exception as error:  # whatever a file or a registry does to us
                reason = one_line(error)
                if reason != self._problems.get(offer.name):
                    _logger.exception("cannot load", extra={"fields": {"event": "load_failed", "model": offer.name}})
                with self._lock:
                    self._problems[offer.name] = reason

    def _refresh(self, offer: Offer, *, moved: bool) -> None:
        version = _version(offer)
        current = self._current.get(offer.name)
        if current is None or version != self._versions.get(offer.name):
            served = load(offer, self.settings)
            self._versions[offer.name] = version
            fields = {"event": "loaded", "model": offer.name, "revision": served.revision}
            _logger.info("loaded", extra={"fields": fields})
        elif moved and isinstance(current, Served):
            try:
                served = with_trials(current, self.settings)
            except StudyNotFoundError:
                served = replace(current, known=type(current.known)((), "no search"))
        else:
            return
        with self._lock:
            if isinstance(current, Served) and current.revision != served.revision:
                self._before[offer.name] = current
            self._current[offer.name] = served
            self._problems.pop(offer.name, None)
