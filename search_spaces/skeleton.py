"""Building a module without paying for weights that will be replaced anyway."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
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


def skeleton(space: SearchSpace, architecture: Architecture | None = None) -> nn.Module:
    """Build ``architecture`` with parameters allocated but not initialised; buffers have their real values.

    Without an architecture it is ``space.superset()`` that is built. Consumes no random numbers through
    ``torch.nn.init`` and is safe to run from many threads. Fill the parameters with :func:`fill` before use.
    """
    with bare_layers(), nullcontext() if space.bare else _SkipInitialisers():
        return space.superset() if architecture is None else space.build(architecture)


def _owned(current: Tensor, given: Tensor) -> Tensor:
    """Return the values of ``given`` in memory of the module's own, that of ``current`` where it serves."""
    room = current.untyped_storage().nbytes() >= current.numel() * current.element_size()
    if room and (current.dtype, current.device) == (given.dtype, given.device):
        return current.detach().copy_(given)
    return given.detach().clone(memory_format=torch.contiguous_format)


def fill(module: nn.Module, tensors: Mapping[str, Tensor], *, copy: bool = False) -> nn.Module:
    """Make ``module`` hold exactly ``tensors``, in place.

    Names given the same tensor end up tied. Non-persistent buffers stay as they are.

    Args:
        module: the module whose parameters and persistent buffers are replaced.
        tensors: one tensor per ``state_dict`` key, of the same shape.
        copy: copy the values into the memory of the module's own tensors, whose ``requires_grad`` is kept, so that
            nothing is allocated twice. By default the module holds ``tensors`` themselves, without gradients.

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
        for owner, parameters in ((child._parameters, True), (child._buffers, False)):
            for leaf, current in owner.items():
                if current is None or (not parameters and leaf in child._non_persistent_buffers_set):
                    continue
                given = tensors.get(start + leaf)
                if given is None:
                    problems.append(f"{start + leaf}: missing")
                    continue
                used += 1
                if given is current and not parameters:
                    continue
                if given.shape != current.shape:
                    problems.append(f"{start + leaf}: expected {tuple(current.shape)}, got {tuple(given.shape)}")
                places.append((owner, leaf, given, parameters))
    if used < len(tensors):
        known = module.state_dict(keep_vars=True).keys()
        problems.extend(f"{name}: unexpected" for name in tensors if name not in known)
    if problems:
        raise ValueError("tensors do not fit the module: " + "; ".join(problems))
    made: dict[int, nn.Parameter] = {}
    filled: set[int] = set()
    with torch.no_grad():
        for owner, leaf, given, parameters in places:
            if not parameters:
                owner[leaf] = _owned(owner[leaf], given) if copy else given.detach()
                continue
            if id(given) not in made:
                current = owner[leaf]
                if not copy:
                    value = given
                elif id(current) in filled:  # tied in the module, but not in the tensors
                    value = given.detach().clone()
                else:
                    value = _owned(current, given)
                filled.add(id(current))
                made[id(given)] = nn.Parameter(value, requires_grad=copy and current.requires_grad)
            owner[leaf] = made[id(given)]
    return module
