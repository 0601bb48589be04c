"""What a service offers, and how much it takes on."""

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

from nas.addresses import Located, locate

__all__ = ["TOKEN", "Offer", "ServiceSettings"]

TOKEN = "NAS_SERVICE_TOKEN"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Offer:
    """One supernet under the name that clients use.

    Attributes:
        name: in the paths of the service.
        address: ``models:/NAME@alias``, a saved folder or a ``.ckpt`` file.
    """

    name: str
    address: str

    @classmethod
    def parse(cls, text: str) -> "Offer":
        """Read ``ADDRESS`` or ``NAME=ADDRESS``; without a name, that of the registered model or of the folder.

        Raises:
            ValueError: the name cannot stand in a path.
        """
        name, separator, address = text.partition("=")
        if not separator:
            name, address = "", text
        if not name:
            found = re.fullmatch(r"models:/([^@/]+)(@.*|/.*)", address)
            name = found[1] if found else Path(address).stem
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"the name of a served supernet must be letters, digits, '.', '_' and '-', got {name!r} of {text!r}; "
                "name it with NAME=ADDRESS"
            )
        return cls(name, address)

    def locate(self) -> Located:
        """Find its files; see :func:`nas.addresses.locate`."""
        return locate(self.address)


@final
@dataclass(frozen=True)
class ServiceSettings:
    """What a service offers, and how much it takes on.

    Args:
        models: ``ADDRESS`` or ``NAME=ADDRESS`` of each supernet.
        study: answer from this study only; every study of the supernet by default.
        storage: where studies live.
        data: YAML file with a ``data`` section, for checkpoints that do not name their data.
        trust: packages of the user's own that a supernet may name.
        folder: holds the cache of weights and the jobs; several processes may share it.
        cache_bytes: bound on the cache.
        max_body: bytes of a request.
        threads: that compute; at most so many subnetworks are made at once.
        queue: computations, and jobs, that may wait; more are refused with 429.
        timeout: seconds that a request may wait for a computation.
        stall: seconds that a client may take to send a request, or to take in a piece of the answer.
        rate: requests per second and client address, in the long run; ``None`` for no limit.
        reload: seconds between looks for a newer version of a supernet or of its studies.
        token: what clients must show; ``None`` asks for none.

    Raises:
        ValueError: an argument is out of range, or two supernets have one name.
    """

    models: tuple[str, ...]
    study: str | None = None
    storage: str = "studies.journal"
    data: str | None = None
    trust: tuple[str, ...] = ()
    folder: str = "runs/service"
    cache_bytes: int = 1 << 30
    max_body: int = 1 << 20
    threads: int = 2
    queue: int = 64
    timeout: float = 30.0
    stall: float = 20.0
    rate: float | None = None
    reload: float = 10.0
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("cache_bytes", "max_body", "threads", "queue", "timeout", "stall", "rate", "reload"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} of a service must be above 0, got {value}")
        if self.token is not None and len(self.token) < 8:
            raise ValueError(f"the token must have at least 8 characters, got {len(self.token)}; make a longer one")
        if not self.models:
            raise ValueError("a service needs at least one supernet, e.g. models:/digits-supernet@champion")
        names = [offer.name for offer in self.offers]
        if len(set(names)) < len(names):
            raise ValueError(f"served supernets must have distinct names, got {names}; name them with NAME=ADDRESS")

    @property
    def offers(self) -> list[Offer]:
        """The supernets by name."""
        return [Offer.parse(text) for text in self.models]

    def to_json(self) -> str:
        """Return the settings as text for another process, without the token."""
        return json.dumps({key: value for key, value in asdict(self).items() if key != "token"})

    @classmethod
    def from_json(cls, text: str, *, token: str | None) -> "ServiceSettings":
        """Read :meth:`to_json` back."""
        given: dict[str, Any] = json.loads(text)
        values: Any = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
        return cls(**values, token=token)
