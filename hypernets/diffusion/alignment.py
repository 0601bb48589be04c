"""Alignment of networks that differ by the order of their hidden units, by weight matching."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from hypernets.applying import apply
from hypernets.target import Target

__all__ = ["Couplings", "align", "chain_couplings", "permute"]

Couplings = Mapping[str, Sequence[tuple[str, int]]]


def chain_couplings(module: nn.Module, *inputs: Tensor) -> dict[str, list[tuple[str, int]]]:
    """Return which axes of which parameters follow each layer of hidden units, for layers that run one after another.

    Linear and convolutional layers (depthwise ones too) and the norms between them are understood, and so is a
    flattened image. The result is checked: with random orders of all hidden units the module computes the same.

    Args:
        module: a chain of layers, registered in the order that they run in.
        *inputs: an example of its inputs.

    Returns:
        Name of a layer -> (parameter, axis) of everything that its units run along.

    Raises:
        ValueError: the module is no such chain; write its couplings by hand, in the same form, and give those.
    """
    found: dict[str, list[tuple[str, int]]] = {}
    current = ""
    for name, layer in module.named_modules():
        mine = [
            (f"{name}.{leaf}" if name else leaf, 0) for leaf in layer._parameters if layer._parameters[leaf] is not None
        ]
        if isinstance(layer, nn.Linear | _ConvNd):
            depthwise = isinstance(layer, _ConvNd) and 1 < layer.groups == layer.in_channels == layer.out_channels
            if depthwise and current:
                found[current] += mine
                continue
            if current:
                found[current].append((mine[0][0], 1))
            current = name
            found[current] = mine
        elif isinstance(layer, _NormBase | nn.GroupNorm | nn.LayerNorm) and current:
            found[current] += mine
    found.pop(current, None)  # outputs keep their order
    _check_chain(module, found, inputs)
    return found


def _check_chain(module: nn.Module, couplings: Couplings, inputs: tuple[Tensor, ...]) -> None:
    hint = "write its couplings by hand: {layer: [(parameter, axis), ...]}"
    fresh = copy.deepcopy(module).eval()
    for layer in fresh.modules():
        if isinstance(layer, _NormBase):
            layer.reset_running_stats()  # equal for all units, so that these may change places
    generator = torch.Generator().manual_seed(0)
    tensors = {
        spec.name: torch.randn(1, *spec.shape, generator=generator) * (spec.deviation or 0.5)
        for spec in Target.of(module)
    }
    try:
        orders = {
            layer: torch.randperm(size, generator=generator)[None] for layer, size in sizes(tensors, couplings).items()
        }
        with torch.no_grad():
            expected, found = (
                apply(fresh, {name: value[0] for name, value in each.items()}, *inputs)
                for each in (tensors, permute(tensors, couplings, orders))
            )
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{type(module).__name__} must be a chain of layers ({error}); {hint}") from error
    if (expected - found).abs().max() > 1e-3 * expected.std():
        raise ValueError(
            f"{type(module).__name__} must be a chain of layers: it computes something else when its hidden units "
            f"{list(couplings)} change places; {hint}"
        )


def sizes(tensors: Mapping[str, Tensor], couplings: Couplings) -> dict[str, int]:
    """Return the number of units of each layer.

    Args:
        tensors: name -> ``(N, *shape)``.
        couplings: see :func:`chain_couplings`; an axis may be longer by a whole factor, as after flattening.

    Raises:
        ValueError: a parameter is unknown, has no such axis, or the axes of a layer do not go together.
    """
    found = {}
    for layer, axes in couplings.items():
        wrong = [(name, axis) for name, axis in axes if name not in tensors or axis + 1 >= tensors[name].dim()]
        if wrong or not axes:
            raise ValueError(f"couplings of {layer!r} must be axes of {list(tensors)}, got {wrong or axes}")
        lengths = [tensors[name].shape[axis + 1] for name, axis in axes]
        found[layer] = min(lengths)
        if any(length % found[layer] for length in lengths):
            raise ValueError(f"axes coupled in {layer!r} must have one length or whole multiples, got {lengths}")
    return found


def permute(tensors: Mapping[str, Tensor], couplings: Couplings, orders: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return networks with their units in another order; they compute the same.

    Args:
        tensors: name -> ``(N, *shape)``.
        couplings: see :func:`chain_couplings`.
        orders: layer -> ``(N, units)``: which old unit stands at each new place.
    """
    found = dict(tensors)
    for layer, order in orders.items():
        for name, axis in couplings[layer]:
            units = _units(found[name], axis, order.shape[1])  # (N, units, rest)
            moved = units.gather(1, order[..., None].expand_as(units))
            found[name] = _back(moved, found[name], axis)
    return found


def align(
    tensors: Mapping[str, Tensor], couplings: Couplings, *, rounds: int = 3, sweeps: int = 20
) -> dict[str, Tensor]:
    """Bring the hidden units of all networks into one order: weight matching (Ainsworth et al., arXiv 2209.04836).

    For one layer at a time, the order P of units that maximises the sum over all coupled axes of ``<reference, P w>``
    is a linear assignment problem; layers take turns until no order changes. The reference is the first network, and
    in later rounds the mean of all aligned ones. What the networks compute does not change.

    Args:
        tensors: name -> ``(N, *shape)``.
        couplings: of the module, see :func:`chain_couplings`.
        rounds: references taken one after another.
        sweeps: most turns over all layers in a round.

    Returns:
        The networks in the new order.

    Raises:
        ValueError: couplings do not fit the tensors.
    """
    units = sizes(tensors, couplings)
    found = {name: value.detach() for name, value in tensors.items()}
    for turn in range(rounds):
        reference = {name: value[0] if turn == 0 else value.mean(0) for name, value in found.items()}
        for _ in range(sweeps):
            changed = False
            for layer, size in units.items():
                order = _match(found, reference, couplings[layer], size)
                if bool((order != torch.arange(size)).any()):
                    changed = True
                    found = permute(found, couplings, {layer: order})
            if not changed:
                break
    return found


def _match(
    tensors: Mapping[str, Tensor], reference: Mapping[str, Tensor], axes: Sequence[tuple[str, int]], size: int
) -> Tensor:
    """The best order of one layer's units for each network, ``(N, units)``."""
    from scipy.optimize import linear_sum_assignment

    likeness: Tensor | float = 0.0
    for name, axis in axes:
        wanted = _units(reference[name][None], axis, size)[0]
        likeness = likeness + torch.einsum("ur,nvr->nuv", wanted, _units(tensors[name], axis, size))
    assert isinstance(likeness, Tensor)  # noqa: S101 - there is at least one axis
    orders = [linear_sum_assignment(each, maximize=True)[1] for each in likeness.double().cpu().numpy()]
    return torch.stack([torch.as_tensor(order) for order in orders])


def _units(tensor: Tensor, axis: int, size: int) -> Tensor:
    """``(N, *shape)`` as ``(N, units, rest)``."""
    moved = tensor.movedim(axis + 1, 1)
    return moved.reshape(len(tensor), size, -1)


def _back(units: Tensor, like: Tensor, axis: int) -> Tensor:
    shape = list(like.shape)
    shape.insert(1, shape.pop(axis + 1))
    return units.reshape(shape).movedim(1, axis + 1).contiguous()
