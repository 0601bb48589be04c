"""Parts that are described by their constructor arguments and get their sizes from the hypernetwork they are put in."""

import inspect
from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch import nn

__all__ = ["Part"]


class Part(nn.Module, ABC):
    """A codec or a prior. It keeps its constructor arguments, which are JSON, as attributes of the same names."""

    def to_json(self) -> dict[str, Any]:
        """Return the class and the constructor arguments."""
        return {
            "part": type(self).__name__,
            **{name: getattr(self, name) for name in inspect.signature(type(self)).parameters},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], known: Sequence[type[Self]]) -> Self:
        """Return the part that wrote ``data``, new.

        Raises:
            ValueError: its class is not one of ``known``.
        """
        classes = {each.__name__: each for each in known}
        if data.get("part") not in classes:
            raise ValueError(f"a part must be one of {list(classes)}, got {data.get('part')!r}; pass its class to load")
        return classes[data["part"]](**{name: value for name, value in data.items() if name != "part"})
