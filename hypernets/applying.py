"""Running a module with generated tensors, one set or many."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

__all__ = ["Mode", "apply", "apply_linearized", "apply_many", "fits"]

Mode = Literal["auto", "loop", "vmap"]


def apply(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *inputs: Any,
    keywords: Mapping[str, Any] | None = None,
    buffers: Mapping[str, Tensor] | None = None,
    partial: bool = False,
) -> Any:
    """Run ``module`` with ``tensors`` in place of its parameters, and leave the module as it is.

    The module may lie on the meta device when all its parameters and buffers are given. An exception inside it leaves
    nothing behind. Tied parameters need one of their names.

    Args:
        module: any module.
        tensors: name -> tensor in the shape of the parameter.
        *inputs: arguments of the module.
        keywords: keyword arguments of the module.
        buffers: name -> tensor, used and updated in place (batch-norm statistics of this one set). Buffers not given
            are copies of the module's own, so that a pass in training mode changes nothing.
        partial: parameters not given are the module's own.

    Returns:
        What the module returns.

    Raises:
        ValueError: names every missing, unexpected and mis-shaped tensor.
    """
    fits(module, tensors, buffers=buffers, partial=partial)
    return _call(module, {**_buffers(module, buffers), **tensors}, inputs, keywords)


def fits(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    sets: int | None = None,
    buffers: Mapping[str, Tensor] | None = None,
    partial: bool = False,
) -> None:
    """Check that tensors stand for the parameters of ``module``; see :func:`apply`.

    Raises:
        ValueError: they do not.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    groups: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(id(parameter), []).append(name)
    lead = () if sets is None else (sets,)
    faults = [f"unexpected {name}" for name in tensors if name not in parameters]
    for names in groups.values():
        given = [name for name in names if name in tensors]
        own = parameters[names[0]]
        if len(given) > 1 and any(tensors[name] is not tensors[given[0]] for name in given[1:]):
            faults.append(f"{given} are one tied tensor and must be given once")
        if not given and not partial:
            faults.append(f"missing {names[0]}")
        elif not given and own.is_meta:
            faults.append(f"missing {names[0]}, which the module holds on the meta device")
        for name in given:
            if tuple(tensors[name].shape) != (*lead, *own.shape):
                faults.append(f"{name} is {tuple(tensors[name].shape)} instead of {(*lead, *own.shape)}")
    held = dict(module.named_buffers(remove_duplicate=False))
    given_buffers = buffers or {}
    faults += [f"unexpected buffer {name}" for name in given_buffers if name not in held]
    faults += [f"missing buffer {name}" for name, value in held.items() if value.is_meta and name not in given_buffers]
    faults += [
        f"buffer {name} is {tuple(value.shape)} instead of {tuple(held[name].shape)}"
        for name, value in given_buffers.items()
        if name in held and value.shape != held[name].shape
    ]
    if faults:
        hint = ""
        if sets is None and any(" instead of " in fault for fault in faults):
            hint = "; generated tensors carry K in front: use apply_many, or pick one set as tensor[k]"
        raise ValueError(f"tensors must be those of {type(module).__name__}: {'; '.join(faults)}{hint}")


def _buffers(module: nn.Module, given: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """The buffers of one call: those given, and copies of the rest where a pass may write to them."""
    own = {
        name: value.clone() if module.training else value
        for name, value in module.named_buffers(remove_duplicate=False)
        if given is None or name not in given
    }
    return {**own, **(given or {})}


def _call(module: nn.Module, state: Mapping[str, Tensor], inputs: tuple[Any, ...], keywords: Any) -> Any:
    return functional_call(module, dict(state), inputs, dict(keywords or {}))


def apply_many(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *inputs: Any,
    shared: bool = True,
    mode: Mode = "auto",
    partial: bool = False,
) -> Any:
    """Run ``module`` with each of K weight sets.

    Args:
        module: any module. In training mode each set updates statistics of its own, which are dropped.
        tensors: name -> tensor ``(K, *shape)``, as ``HyperNetwork.generate`` returns them; K >= 1.
        *inputs: tensors; every set sees all of them, or, not ``shared``, the k-th entry of each.
        shared: see ``inputs``.
        mode: ``vmap`` is one batched pass, ``loop`` one pass per set; ``auto`` takes the loop where vmap has no rule
            (recurrent layers), would mix the statistics of the sets (batch norm in training) or is slower
            (convolutions on the CPU).
        partial: parameters not given are the module's own.

    Returns:
        What the module returns, every tensor of it with K in front.

    Raises:
        ValueError: tensors do not fit, K is 0 or differs, or the module cannot run under the ``mode`` asked for.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {get_args(Mode)}, got {mode!r}")
    sets = _sets(tensors)
    fits(module, tensors, sets=sets, partial=partial)
    _unshared(inputs, sets, shared=shared)
    reason = _loop_only(module)
    if mode == "vmap" and reason:
        raise ValueError(f"vmap cannot run {reason}; use mode='loop' or 'auto'")
    slow = next(iter(tensors.values())).device.type == "cpu" and any(isinstance(m, _ConvNd) for m in module.modules())
    if mode == "loop" or (mode == "auto" and (reason or slow)):
        return _stack(
            [
                _call(
                    module,
                    {**_buffers(module, None), **{name: tensor[k] for name, tensor in tensors.items()}},
                    tuple(value if shared else value[k] for value in inputs),
                    None,
                )
                for k in range(sets)
            ]
        )
    buffers = _buffers(module, None)

    def one(given: dict[str, Tensor], *values: Any) -> Any:
        return _call(module, {**buffers, **given}, values, None)

    return vmap(one, in_dims=_axes(inputs, shared=shared), randomness="different")(dict(tensors), *inputs)


def apply_linearized(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    deltas: Mapping[str, Tensor],
    *inputs: Any,
    shared: bool = True,
) -> Tensor:
    """Run the first-order expansion of ``module`` around one weight set, at K others.

    With ``f`` the outputs as a function of the weights, this is ``f(w) + J(w) delta_k``, linear in the deltas however
    large they are (the linearisation of Delta-STN, Bae and Grosse, arXiv 2010.13514).

    Args:
        module: any module that returns one tensor; not recurrent.
        tensors: the weights ``w``, name -> tensor in the shape of the parameter.
        deltas: name -> tensor ``(K, *shape)``, as ``HyperNetwork.deltas`` returns them; K >= 1.
        *inputs: tensors; every set sees all of them, or, not ``shared``, the k-th entry of each.
        shared: see ``inputs``.

    Returns:
        The outputs, with K in front; differentiable in ``tensors`` and ``deltas``.

    Raises:
        ValueError: tensors do not fit, K is 0 or differs, or the module cannot be linearised.
    """
    fits(module, tensors)
    sets = _sets(deltas)
    fits(module, deltas, sets=sets)
    _unshared(inputs, sets, shared=shared)
    reason = _loop_only(module)
    if reason:
        raise ValueError(f"{reason} cannot be linearised; run it with apply_many")
    buffers = _buffers(module, None)

    def one(delta: dict[str, Tensor], *values: Any) -> Tensor:
        def outputs(weights: dict[str, Tensor]) -> Any:
            return _call(module, {**buffers, **weights}, values, None)

        value, pull = vjp(outputs, dict(tensors))[:2]
        push = vjp(pull, torch.zeros_like(value))[1]  # the transpose of a linear map twice is the map itself
        moved: Tensor = value + push((delta,))[0]
        return moved

    found: Tensor = vmap(one, in_dims=_axes(inputs, shared=shared), randomness="different")(dict(deltas), *inputs)
    return found


def _sets(tensors: Mapping[str, Tensor]) -> int:
    """The K that all tensors have in front."""
    counts = {name: tensor.shape[0] if tensor.dim() else None for name, tensor in tensors.items()}
    sets = next(iter(counts.values()), None)
    if not sets or set(counts.values()) != {sets}:
        raise ValueError(f"every tensor needs the same K >= 1 in front, got {counts}")
    return sets


def _unshared(inputs: tuple[Any, ...], sets: int, *, shared: bool) -> None:
    """Refuse inputs that lack an entry for every set."""
    wrong = [tuple(value.shape) for value in inputs if not shared and (value.dim() == 0 or value.shape[0] != sets)]
    if wrong:
        raise ValueError(f"inputs that are not shared need K = {sets} in front, got {wrong}")


def _axes(inputs: tuple[Any, ...], *, shared: bool) -> tuple[int | None, ...]:
    return (0, *(None if shared else 0 for _ in inputs))


def _loop_only(module: nn.Module) -> str:
    """The first layer that vmap cannot run, or nothing."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.RNNBase | nn.RNNCellBase):
            return f"the recurrent layer {name or type(layer).__name__}"
        if isinstance(layer, _NormBase) and layer.training and layer.running_mean is not None:
            return f"{name or type(layer).__name__} in training mode, which writes its statistics"
    return ""


def _stack(outputs: list[Any]) -> Any:
    """Stack what several calls returned: tensors, and tuples, lists and dictionaries of them."""
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.stack(outputs)
    if isinstance(first, Mapping):
        return {key: _stack([output[key] for output in outputs]) for key in first}
    if isinstance(first, tuple | list):
        return tuple(_stack(list(parts)) for parts in zip(*outputs, strict=True))
    raise TypeError(f"outputs must be tensors or tuples, lists or dictionaries of them, got {type(first).__name__}")
