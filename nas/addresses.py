"""Where a supernet is: a Lightning checkpoint, a saved folder, or an address in MLflow's model registry."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trials import tracking_uri

__all__ = ["PACKAGED", "Located", "locate"]

PACKAGED = Path("artifacts", "supernet")  # of a supernet within the model that MLflow serves


@dataclass(frozen=True)
class Located:
    """A supernet that can be read.

    Attributes:
        address: what the user wrote.
        path: folder or ``.ckpt`` file.
        name: registered model, if it came from MLflow.
        version: its version.
        run_id: the MLflow run that trained it.
        tags: of the version.
        tracking: address of that MLflow.
    """

    address: str
    path: Path
    name: str | None = None
    version: int | None = None
    run_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    tracking: str | None = None

    @property
    def base(self) -> str:
        """The name under which relatives of the supernet are registered, e.g. ``digits`` of ``digits-supernet``."""
        return (self.name or self.path.stem).removesuffix("-supernet")


def locate(address: str, *, tracking: str | None = None) -> Located:
    """Find the files behind ``address``.

    Args:
        address: path of a ``.ckpt`` file or of a saved folder, ``models:/NAME@alias`` or ``models:/NAME/3``.
        tracking: MLflow for the latter; ``MLFLOW_TRACKING_URI`` or ``mlflow.db`` here when left out.

    Raises:
        FileNotFoundError: there is no such file.
        ModelNotFoundError: there is no such registered model.
        TrackingUnavailableError: MLflow cannot be reached.
    """
    if not address.startswith("models:"):
        path = Path(address)
        if not path.exists():
            raise FileNotFoundError(
                f"checkpoint {address} does not exist; give the path that `nas fit` printed, or models:/NAME@champion"
            )
        return Located(address, path)
    from trials import Tracker

    uri = tracking_uri(tracking)
    found = Tracker(uri).resolve(address)
    packaged = found.folder / PACKAGED
    path = packaged if packaged.is_dir() else found.folder
    return Located(address, path, found.name, found.version, found.run_id, found.tags, uri)
