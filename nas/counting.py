"""Counting multiply-accumulates: closed formulas per layer, and an operator counter to check them against.

One multiply-accumulate (MAC) is one multiplication and one addition, half of what many tools call FLOPs. Biases,
normalisation, activations, pooling and embedding look-ups count as zero, as in most papers of the field. Counts are for
one example. Only shapes matter, so everything runs on the meta device.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from search_spaces.graph_layers import GraphOperation

__all__ = ["functional_macs", "layer_macs", "operator_macs"]

Call = tuple[Sequence[Any], Mapping[str, Any], Any]


def _argument(call: Call, position: int, name: str) -> Any:
    args, kwargs, _ = call
    return args[position] if len(args) > position else kwargs[name]


def _linear(module: nn.Linear, call: Call) -> int:
    return int(call[2].numel()) * module.in_features


def _bilinear(module: nn.Bilinear, call: Call) -> int:
    rows = int(call[2].numel()) // module.out_features
    return rows * module.out_features * module.in1_features * module.in2_features


def _convolution(module: nn.modules.conv._ConvNd, call: Call) -> int:
    window = math.prod(module.kernel_size)
    if module.transposed:  # each input element meets every weight of its group once
        return int(_argument(call, 0, "input").numel()) * module.out_channels // module.groups * window
    return int(call[2].numel()) * module.in_channels // module.groups * window


def _attention(module: nn.MultiheadAttention, call: Call) -> int:
    query, key = _argument(call, 0, "query"), _argument(call, 1, "key")
    along = 0 if query.dim() == 2 or not module.batch_first else 1
    batch = 1 if query.dim() == 2 else query.shape[1 - along]
    length, source = query.shape[along], key.shape[along]
    width = module.embed_dim
    projections = length * width * 2 + source * (module.kdim + module.vdim)
    attended = source + (module.bias_k is not None) + module.add_zero_attn
    return int(batch * width * (projections + 2 * length * attended))


def _recurrent(module: nn.RNNBase, call: Call) -> int:
    given = _argument(call, 0, "input")
    values = given.data if isinstance(given, PackedSequence) else given
    steps = values.numel() // module.input_size
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    state = module.proj_size or module.hidden_size
    directions = 2 if module.bidirectional else 1
    total = 0
    for layer in range(module.num_layers):
        features = module.input_size if layer == 0 else state * directions
        total += directions * (gates * module.hidden_size * (features + state) + module.proj_size * module.hidden_size)
    return int(steps * total)


def _cell(module: nn.RNNCellBase, call: Call) -> int:
    rows = _argument(call, 0, "input").numel() // module.input_size
    gates = module.weight_hh.shape[0] // module.hidden_size
    return int(rows * gates * module.hidden_size * (module.input_size + module.hidden_size))


def _along_edges(module: GraphOperation, call: Call) -> int:
    return module.macs(*call[0])


_FORMULAS: tuple[tuple[type[nn.Module], Callable[[Any, Call], int]], ...] = (
    (nn.Linear, _linear),
    (nn.modules.conv._ConvNd, _convolution),
    (nn.MultiheadAttention, _attention),
    (nn.RNNBase, _recurrent),
    (nn.RNNCellBase, _cell),
    (nn.Bilinear, _bilinear),
    (GraphOperation, _along_edges),
)
_MISSED = (nn.RNNBase, nn.Bilinear, GraphOperation)


def _formula(module: nn.Module) -> Callable[[Any, Call], int] | None:
    return next((formula for kind, formula in _FORMULAS if isinstance(module, kind)), None)


_SAME_SHAPE: frozenset[Callable[..., Any]] = frozenset(
    {
        *(F.batch_norm, F.instance_norm, F.layer_norm, F.group_norm, F.rms_norm),
        *(F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus),
        *(F.hardswish, F.hardsigmoid, F.hardtanh, torch.relu, torch.sigmoid, torch.tanh),
        *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout),
    }
)


class _ShapesOnly(TorchFunctionMode):
    """Skip functions that keep shape and type and count as zero: on the meta device they are most of the time."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _SAME_SHAPE and args and isinstance(args[0], Tensor) and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode with the fused attention path off, so that every layer is really called; all restored after."""
    modes = [(module, module.training) for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, mode in modes:
            module.training = mode


class _Attention(TorchFunctionMode):
    """Counts the products of functional attention by formula, for the innermost module that is running.

    ``B H T S (D + D_v)`` for queries ``(B, H, T, D)``, keys ``(B, H, S, D)`` and values ``(B, H, S, D_v)``; masks save
    nothing.
    """

    def __init__(self, counts: dict[str, int]) -> None:
        super().__init__()
        self.counts = counts
        self.running: list[str] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        call = args, kwargs or {}, None
        if func is F.scaled_dot_product_attention:
            query, key, value = (_argument(call, at, name) for at, name in enumerate(("query", "key", "value")))
            pairs = math.prod(query.shape[:-1]) * key.shape[-2]
            name = self.running[-1]
            self.counts[name] = self.counts.get(name, 0) + int(pairs * (query.shape[-1] + value.shape[-1]))
        return func(*args, **call[1])


def layer_macs(model: nn.Module, inputs: Sequence[Tensor], *, attention: bool = False) -> dict[str, int]:
    """Return the MACs of every layer that has a formula, by module name, from one forward pass over ``inputs``.

    A layer that is called several times is counted each time. Products outside such layers are not seen;
    :func:`operator_macs` sees them.

    Args:
        model: what runs.
        inputs: positional.
        attention: count ``scaled_dot_product_attention`` too, under the name of the module that calls it.
    """
    counts: dict[str, int] = {}
    functional = _Attention(counts)

    def hook(name: str, formula: Callable[[Any, Call], int]) -> Callable[..., None]:
        def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            counts[name] = counts.get(name, 0) + formula(module, (args, kwargs, output))

        return record

    with ExitStack() as stack:
        for name, module in model.named_modules():
            formula = _formula(module)
            if formula is not None:
                handle = module.register_forward_hook(hook(name, formula), with_kwargs=True)
                stack.callback(handle.remove)
            elif attention:
                enter = module.register_forward_pre_hook(lambda _, __, name=name: functional.running.append(name))
                leave = module.register_forward_hook(lambda _, __, ___: functional.running.pop() and None)
                stack.callback(enter.remove)
                stack.callback(leave.remove)
        stack.enter_context(_evaluating(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_ShapesOnly())
        if attention:
            stack.enter_context(functional)
        model(*inputs)
    return counts


def operator_macs(model: nn.Module, inputs: Sequence[Tensor]) -> int:
    """Return the MACs of one forward pass as ``FlopCounterMode`` sees the matrix products and convolutions in it.

    Attention runs on the math backend, without its fused path and in gradient mode, because the counter misses fused
    kernels. Recurrent and bilinear layers, and products along the edges of graphs, are added by their formula where it
    misses their kernel.
    """
    counter = FlopCounterMode(display=False)
    missed = 0
    entered: list[int] = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        entered.append(counter.get_total_flops())

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal missed
        if counter.get_total_flops() == entered.pop():
            formula = _formula(module)
            missed += formula(module, (args, kwargs, output)) if formula else 0

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, _MISSED):
                stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        stack.enter_context(_evaluating(model))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_ShapesOnly())
        with counter:
            model(*inputs)
    return counter.get_total_flops() // 2 + missed


def functional_macs(model: nn.Module, inputs: Sequence[Tensor]) -> dict[str, int]:
    """Return the MACs that a module multiplies itself, outside modules inside it and layers that have a formula.

    By module name; an attention between queries and keys that are layers of their own is one. Together with
    :func:`layer_macs` these are :func:`operator_macs` where layers and operators agree.
    """
    counter = FlopCounterMode(display=False)
    counts: dict[str, int] = {}
    entered: list[list[int]] = []  # flops at the start, and those of modules inside

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        entered.append([counter.get_total_flops(), 0])

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            start, inside = entered.pop()
            spent = counter.get_total_flops() - start
            if entered:
                entered[-1][1] += spent
            if _formula(module) is None and spent > inside:
                counts[name] = counts.get(name, 0) + (spent - inside) // 2

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after(name), with_kwargs=True).remove)
        stack.enter_context(_evaluating(model))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_ShapesOnly())
        with counter:
            model(*inputs)
    return counts
