"""Less noise from libraries whose hints do not concern our users."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["silenced"]

_LOGGERS = (
    "lightning",
    "lightning.pytorch",
    "lightning.fabric",
    "lightning.pytorch.loggers.mlflow",
    "alembic",
    "mlflow",
)
_ANSWERED = (
    ".*does not have many workers.*",
    ".*log_every_n_steps.*",
    ".*lr_scheduler.step.*",
    ".*LeafSpec.*",
    ".*dirpath has changed.*",
)


@contextmanager
def silenced() -> Iterator[None]:
    """Drop tips, and warnings that our set-up answers already, until the block ends."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    with warnings.catch_warnings():
        for text in _ANSWERED:
            warnings.filterwarnings("ignore", message=text)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
