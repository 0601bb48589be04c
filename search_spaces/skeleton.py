"""Building a module without paying for weights that will be replaced anyway."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from search_spaces.architecture import Architecture
from search_spaces.bare import bare_layers
from search_spaces.space import SearchSpace

__all__ = ["fill", "skeleton"]


class _SkipInitialisers(TorchFunctionMode):
    """Leave parameters as allocated: initialisers and in-place updates of a Parameter return it untouched.

    Thread-local, unlike patching ``torch.nn.init``. Buffers are built for real.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Any = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name[-1:] == "_" and name[-2:] != "__" and name != "requires_grad_":
            target = args[0] if args else kwargs.get("tensor") if kwargs else None
            if isinstance(target, nn.Parameter):
                return target
        return func(*args, **kwargs) if kwargs else func(*args)


def skeleton(space: SearchSpace, architecture: Architecture) -> nn.Module:
    """Build ``architecture`` with parameters allocated but not initialised; buffers have their real values.

    Consumes no random numbers through ``torch.nn.init`` and is safe to run from many threads. Fill the parameters
    with :func:`fill` before use.
    """
    with bare_layers():
        if space.bare:
            return space.build(architecture)
        with _SkipInitialisers():
            return space.build(architecture)


def fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Make ``module`` hold exactly ``tensors``, in place and without copying; parameters stop requiring gradients.

    Names given the same tensor end up tied. Non-persistent buffers stay as they are.

    Args:
        module: the module whose parameters and persistent buffers are replaced.
        tensors: one tensor per ``state_dict`` key, of the same shape.

    Returns:
        ``module``.

    Raises:
        ValueError: keys or shapes differ; all differences are named, and nothing has been replaced.
    """
    places: list[tuple[dict[str, Any], str, Tensor, bool]] = []
    problems: list[str] = []
    used = 0
    for prefix, child in module.named_modules(remove_duplicate=False):
        start = f"{prefix}." if prefix else ""
        for owner, trainable in ((child._parameters, True), (child._buffers, False)):
            for leaf, current in owner.items():
                if current is None or (not trainable and leaf in child._non_persistent_buffers_set):
                    continue
                given = tensors.get(start + leaf)
                if given is None:
                    problems.append(f"{start + leaf}: missing")
                    continue
                used += 1
                if given is current and not trainable:
                    continue
                if given.shape != current.shape:
                    problems.append(f"{start + leaf}: expected {tuple(current.shape)}, got {tuple(given.shape)}")
                places.append((owner, leaf, given, trainable))
    if used < len(tensors):
        known = module.state_dict(keep_vars=True).keys()
        problems.extend(f"{name}: unexpected" for name in tensors if name not in known)
    if problems:
        raise ValueError("tensors do not fit the module: " + "; ".join(problems))
    made: dict[int, nn.Parameter] = {}
    with torch.no_grad():
        for owner, leaf, given, trainable in places:
            if trainable:
                if id(given) not in made:
                    made[id(given)] = nn.Parameter(given, requires_grad=False)
                owner[leaf] = made[id(given)]
            else:
                owner[leaf] = given.detach()
    return module
