"""The layers of a network as single operators of ONNX Runtime: what they are, and a model of each to time."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from search_spaces import FULL_PRECISION, Architecture, InputQuantizer, SearchSpace, skeleton
from supernets.lowbit_layers import block_size

__all__ = ["Operator", "operator_model", "operators"]

_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d)
_PASSING: tuple[Callable[..., Any], ...] = (
    *(F.batch_norm, F.relu, torch.relu, torch.relu_, Tensor.relu, F.dropout, F.max_pool1d, F.max_pool2d),
    *(torch.max_pool1d, torch.max_pool2d, torch.flatten, Tensor.flatten, Tensor.view, Tensor.reshape),
)


@dataclass(frozen=True)
class Operator:
    """One linear or convolutional layer at one place of a network.

    Attributes:
        shape: of its input, one example: ``(..., in)`` of a linear layer, ``(in, length)`` or ``(in, height, width)``.
        outputs: features or channels.
        kernel: sizes; empty for a linear layer.
        stride: likewise.
        padding: likewise.
        dilation: likewise.
        groups: of a convolution.
        bits: of the weights; 32 for single precision.
        input_bits: of the input.
        output: whether the output is quantised, once, before anything but batch norm, ReLU and max pooling, so that a
            convolution of 8 bits stays among integers.
    """

    shape: tuple[int, ...]
    outputs: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    bits: int = FULL_PRECISION
    input_bits: int = FULL_PRECISION
    output: bool = False

    @property
    def key(self) -> str:
        """Spelling in a table, e.g. ``conv 16x8x8>32 k3x3 s1x1 p1x1 d1x1 g1 w8a8``."""
        shape = "x".join(map(str, self.shape))
        bits = f"w{self.bits}a{self.input_bits}" + ("q" if self.output and self.kernel else "")
        if not self.kernel:
            return f"linear {shape}>{self.outputs} {bits}"
        sizes = (self.kernel, self.stride, self.padding, self.dilation)
        spelt = " ".join(letter + "x".join(map(str, size)) for letter, size in zip("kspd", sizes, strict=True))
        return f"conv {shape}>{self.outputs} {spelt} g{self.groups} {bits}"

    @property
    def is_product(self) -> bool:
        """Whether it runs as a product of packed weights where they have few bits."""
        pointwise = set(self.kernel) == {1} and self.groups == 1 and not any(self.padding)
        return not self.kernel or (pointwise and not self.is_integer)

    @property
    def is_integer(self) -> bool:
        """Whether it is a convolution that the runtime fuses into one over integers."""
        return bool(self.kernel) and self.bits <= 8 and self.input_bits <= 8 and self.output

    @property
    def timed_shape(self) -> tuple[int, ...]:
        """Shape of the input that is timed: a product drops the pixels between its strides first."""
        if not self.kernel or self.bits > 8 or not self.is_product:
            return self.shape
        pixels = zip(self.shape[1:], self.stride, strict=True)
        return self.shape[0], *(-(-size // step) for size, step in pixels)


class _Flow(TorchFunctionMode):
    """Follows what layers return to the quantisers of later ones."""

    def __init__(self) -> None:
        super().__init__()
        self.origins: dict[int, int] = {}  # id of a tensor -> the call that it came from
        self.kept: list[Tensor] = []  # alive, so that no id is used twice
        self.quantized: set[int] = set()
        self.widened: set[int] = set()
        self.inside = False

    def begin(self, tensor: Tensor, call: int) -> None:
        """Note that ``tensor`` is the output of a layer, or came from it."""
        self.origins[id(tensor)] = call
        self.kept.append(tensor)

    def enter(self, quantizer: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Note that a quantiser is called, what happens in it not counting; a second one has other steps."""
        self.inside = True
        if id(args[0]) in self.origins:
            call = self.origins[id(args[0])]
            (self.widened if call in self.quantized else self.quantized).add(call)

    def leave(self, quantizer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Note that it has returned, and let what it returns be a tensor of its own, which is its input on ``meta``."""
        own = output.detach()
        self.inside = False
        return own

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and not self.inside:
            values = [*args, *(kwargs or {}).values()]
            calls = {self.origins[id(x)] for x in values if isinstance(x, Tensor) and id(x) in self.origins}
            if func in _PASSING:
                for call in calls:
                    self.begin(made, call)
            else:
                self.widened |= calls
        return made


def operators(space: SearchSpace, architecture: Architecture) -> list[Operator]:
    """Return every linear and convolutional layer of a network as often as it is called, for one example.

    Everything else a network does is left out.
    """
    widths = space.bitwidths(architecture)
    calls: list[tuple[nn.Module, tuple[int, ...], tuple[int, int]]] = []
    flow = _Flow()
    with torch.device("meta"):
        module = skeleton(space, architecture).eval()
        inputs = space.inputs(architecture)

    def watch(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            flow.begin(output, len(calls))
            calls.append((layer, tuple(args[0].shape[1:]), widths.get(name, (FULL_PRECISION,) * 2)))

        return hook

    with ExitStack() as stack, torch.no_grad():
        for name, layer in module.named_modules():
            if isinstance(layer, _KINDS):
                stack.callback(layer.register_forward_hook(watch(name)).remove)
            elif isinstance(layer, InputQuantizer):
                stack.callback(layer.register_forward_pre_hook(flow.enter).remove)
                stack.callback(layer.register_forward_hook(flow.leave).remove)
        stack.enter_context(flow)
        module(*inputs)
    fused = flow.quantized - flow.widened
    return [_described(*call, output=number in fused) for number, call in enumerate(calls)]


def _described(layer: nn.Module, shape: tuple[int, ...], widths: tuple[int, int], *, output: bool) -> Operator:
    if isinstance(layer, nn.Linear):
        return Operator(shape, layer.out_features, bits=widths[0], input_bits=widths[1])
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)  # noqa: S101 - for the type checker
    if isinstance(layer.padding, str):
        total = [
            d * (k - 1) if layer.padding == "same" else 0
            for d, k in zip(layer.dilation, layer.kernel_size, strict=True)
        ]
        padding = tuple(size // 2 for size in total)
    else:
        padding = tuple(layer.padding)
    sizes = tuple(layer.kernel_size), tuple(layer.stride), padding, tuple(layer.dilation)
    return Operator(shape, layer.out_channels, *sizes, layer.groups, *widths, output)


def operator_model(operator: Operator) -> bytes:
    """Return an ONNX model of one operator with made-up weights: inputs quantised as an export of its bits has them.

    Its input is one example of ``operator.timed_shape``.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    nodes: list[Any] = []
    arrays: dict[str, Any] = {"step": np.float32(0.02), "zero": np.int8(0)}

    def quantized(name: str) -> str:
        """Append a quantiser of ``name``."""
        codes, made = f"{name}.codes", f"{name}.values"
        nodes.append(helper.make_node("QuantizeLinear", [name, "step", "zero"], [codes]))
        nodes.append(helper.make_node("DequantizeLinear", [codes, "step", "zero"], [made]))
        return made

    integer = operator.bits <= 8
    x = quantized("x") if operator.input_bits <= 8 else "x"
    if integer and operator.is_product:
        y = _product(operator, x, nodes, arrays, generator)
    elif not operator.kernel:
        arrays["weight"] = generator.normal(size=(operator.shape[-1], operator.outputs)).astype(np.float32)
        nodes.append(helper.make_node("MatMul", [x, "weight"], ["y"]))
        y = "y"
    else:
        weights = operator.outputs, operator.shape[0] // operator.groups, *operator.kernel
        if integer:
            arrays["weight.codes"] = generator.integers(-127, 128, weights, dtype=np.int8)
            arrays["weight.scale"] = np.full(operator.outputs, 0.01, np.float32)
            nodes.append(helper.make_node("DequantizeLinear", ["weight.codes", "weight.scale"], ["weight"], axis=0))
        else:
            arrays["weight"] = generator.normal(size=weights).astype(np.float32)
        arrays["bias"] = np.zeros(operator.outputs, np.float32)
        geometry: dict[str, Any] = {
            "strides": operator.stride,
            "dilations": operator.dilation,
            "group": operator.groups,
        }
        pads = [*operator.padding, *operator.padding]
        nodes.append(helper.make_node("Conv", [x, "weight", "bias"], ["y"], pads=pads, **geometry))
        y = quantized("y") if operator.is_integer else "y"
    graph = helper.make_graph(
        nodes,
        "operator",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, *operator.timed_shape])],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    made: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return made


def _product(operator: Operator, x: str, nodes: list[Any], arrays: dict[str, Any], generator: Any) -> str:
    """Append a product of packed weights, with channels last for a 1x1 convolution, and return its output."""
    import numpy as np
    from onnx import helper

    stored = next(bits for bits in (2, 4, 8) if bits >= operator.bits)
    features = operator.shape[0] if operator.kernel else operator.shape[-1]
    block = block_size(features)
    blocks = -(-features // block)
    arrays["codes"] = generator.integers(0, 256, (operator.outputs, blocks, block * stored // 8), dtype=np.uint8)
    arrays["scale"] = np.full((operator.outputs, blocks), 0.01, np.float32)
    order = [0, *range(2, len(operator.shape) + 1), 1]
    back = [0, len(operator.shape), *range(1, len(operator.shape))]
    if operator.kernel:
        nodes.append(helper.make_node("Transpose", [x], ["last"], perm=order))
        x = "last"
    attributes: dict[str, Any] = {
        "K": features,
        "N": operator.outputs,
        "bits": stored,
        "block_size": block,
        "accuracy_level": 4,
    }
    nodes.append(
        helper.make_node("MatMulNBits", [x, "codes", "scale"], ["product"], domain="com.microsoft", **attributes)
    )
    if operator.kernel:
        nodes.append(helper.make_node("Transpose", ["product"], ["y"], perm=back))
        return "y"
    return "product"
