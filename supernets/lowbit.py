"""ONNX with real low bits: packed weights for ``MatMulNBits``, 8-bit convolutions, and what is real of them."""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from search_spaces import InputQuantizer
from supernets.deployment import Deployed, QuantizedLayer, is_product
from supernets.format import Format, Loaded, Subject, quiet, require_onnx, tidy, traced
from supernets.lowbit_graph import at_level, fold_batch_norms, multiplying_operators, strip, uses
from supernets.lowbit_layers import InputCodes, IntegerConv, NBitsLinear

__all__ = ["LowBitOnnxFormat"]

_STORED = (2, 4, 8)
_KINDS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_EXACT = 1e-3  # of the outputs' norm, without the runtime's own rounding
_TIES = 3.0  # times what the ties of the quantisers do, which may fall either way
_JITTER = 1e-5


@dataclass(frozen=True)
class _Planned:
    """How one layer is written: as which module, its weights in how many bits; not at all where there is a reason."""

    layer: QuantizedLayer
    stored: int
    as_product: bool
    reason: str = ""


@final
class LowBitOnnxFormat(Format):
    """ONNX for ONNX Runtime in which quantised weights are integers of 2, 4 or 8 bits.

    Linear layers and 1x1 convolutions become ``MatMulNBits``; other convolutions take dequantised integers, which the
    runtime fuses into integer convolutions where weights have 8 bits and inputs and outputs are quantised, batch norm
    folded into the scales. Other bits are stored in the next larger of these, and more than 8 as floating point. What
    became of each layer is read from the graph that the runtime optimised, never assumed.

    Args:
        layers: module name -> its integers.
        accuracy_level: of ``MatMulNBits``: 4 multiplies 8-bit integers, 0 single precision, which is exact and slow.
        real_only: refuse a network in which some bits are stored only or simulated.

    Raises:
        ValueError: the level is neither, or nothing is quantised.
    """

    name = "onnx-lowbit"
    filename = "model.lowbit.onnx"
    usage = (
        "import onnxruntime",
        "session = onnxruntime.InferenceSession('model.lowbit.onnx')",
        "outputs = session.run(None, {session.get_inputs()[0].name: inputs})  # NumPy arrays",
    )

    def __init__(
        self, layers: Mapping[str, QuantizedLayer], *, accuracy_level: int = 4, real_only: bool = False
    ) -> None:
        if accuracy_level not in (0, 4):
            raise ValueError(f"accuracy_level must be 0 or 4, got {accuracy_level}")
        if not layers:
            raise ValueError(
                "the onnx-lowbit format needs a quantised subnetwork, but no layer of this one has weights of fewer "
                "than 32 bits from supernets.QuantizedWeights; wrap the space in search_spaces.QuantizedSpace and its "
                "weights in QuantizedWeights (bits of GraphSpace are simulated), or use the onnx format"
            )
        self.layers = dict(layers)
        self.accuracy_level = accuracy_level
        self.real_only = real_only
        coarse = any(layer.input_bits < 8 for layer in layers.values())
        self.tolerance = 0.5 if coarse else 0.1  # a value on the edge of a coarse step moves by all of it

    def require(self) -> None:
        """Check for onnx, onnxscript and onnxruntime; see :class:`Format`."""
        require_onnx(self.name)

    def write(self, subject: Subject, path: Path, metadata: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write the packed network and return ``{"layers": {name: ...}}``, what became of each quantised layer.

        Raises:
            ValueError: a layer is missing, or does not hold the values of its integers, or the file does not compute
                what the module does, or bits are not real though asked to be.
        """
        module, inputs = subject.module, subject.inputs
        planned = {name: _plan(name, module, layer) for name, layer in self.layers.items()}
        self._save(module, planned, inputs, path, metadata)
        found = multiplying_operators(path, _tensors(planned))
        pointwise = {
            name: _Planned(plan.layer, plan.stored, True)
            for name, plan in planned.items()
            if plan.stored and not plan.as_product and name not in found and is_product(module.get_submodule(name))
        }
        if pointwise:  # 1x1 convolutions that the runtime does not run on integers are matrix products after all
            planned |= pointwise
            self._save(module, planned, inputs, path, metadata)
            found = multiplying_operators(path, _tensors(planned))
        deployed = {name: self._deployed(plan, found.get(name)) for name, plan in planned.items()}
        short = [f"{name!r}, {made.bits} bits: {made.reason}" for name, made in deployed.items() if made.reason]
        if short and self.real_only:
            raise ValueError(
                f"not all bits are real ({'; '.join(short)}); ONNX Runtime has 2, 4 and 8 bits for linear layers and "
                "1x1 convolutions, and 8 bits for other convolutions whose inputs and outputs are quantised"
            )
        return {"layers": {name: made.record() for name, made in deployed.items()}}

    def read(self, module: nn.Module, path: Path) -> Loaded:
        """Open the file in onnxruntime; see :class:`Format`."""
        del module
        return Loaded(_session(str(path)), None)

    def _save(
        self,
        module: nn.Module,
        planned: Mapping[str, _Planned],
        inputs: tuple[Tensor, ...],
        path: Path,
        metadata: Mapping[str, Any],
    ) -> None:
        import onnx

        twin = copy.deepcopy(module)
        for name, plan in planned.items():
            if plan.stored:
                _replace(twin, name, self._packed(module.get_submodule(name), plan))
        with quiet():
            program = torch.onnx.export(traced(twin, inputs), inputs, dynamo=True, optimize=False, verbose=False)
            assert program is not None  # noqa: S101 - only the legacy exporter returns nothing
            tidy(program.model.graph)
            program.save(str(path))
        model = onnx.load(str(path))
        _check_layers(model, planned)
        fold_batch_norms(model)
        strip(model)
        _check_values(model, module, inputs)
        entry = model.metadata_props.add()
        entry.key, entry.value = "weightloom", json.dumps(metadata, sort_keys=True, separators=(",", ":"))
        onnx.save(model, str(path))

    def _packed(self, layer: nn.Module, plan: _Planned) -> nn.Module:
        """Return the module that is exported in place of ``layer``."""
        given = getattr(layer, "input_quantizer", None)
        quantizer: nn.Module = nn.Identity()
        if isinstance(given, InputQuantizer):
            quantizer = InputCodes(given, again=not plan.as_product) if given.bits <= 8 else copy.deepcopy(given)
        codes = plan.layer.codes.detach().to("cpu", torch.int64)
        scale = plan.layer.scale.detach().to("cpu", torch.float32)
        scale = scale.expand(*codes.shape[:1], *[1] * (codes.ndim - 1)).reshape(-1).contiguous()
        if not plan.as_product:
            assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)  # noqa: S101 - for the type checker
            return IntegerConv(layer, codes, scale, offset=plan.layer.offset, bits=plan.stored, quantizer=quantizer)
        bias = layer.bias
        return NBitsLinear(
            codes.flatten(1),
            scale,
            offset=plan.layer.offset,
            bias=bias.detach().clone() if isinstance(bias, Tensor) else None,
            bits=plan.stored,
            accuracy_level=self.accuracy_level,
            quantizer=quantizer,
            stride=None if isinstance(layer, nn.Linear) else tuple(layer.stride),  # type: ignore[arg-type]
        )

    def _deployed(self, plan: _Planned, operator: str | None) -> Deployed:
        layer = plan.layer
        exact = operator is not None and (operator != "MatMulNBits" or self.accuracy_level == 4)
        integers = "int8" if exact else "float32"
        made = operator or ("MatMul" if plan.as_product else "Conv")
        if not plan.stored:
            return Deployed(layer.weight_bits, layer.input_bits, 32, "simulated", "float32", made, plan.reason)
        if plan.stored != layer.weight_bits:
            reason = f"there is no kernel of {layer.weight_bits} bits: weights take {plan.stored}"
            return Deployed(layer.weight_bits, layer.input_bits, plan.stored, "simulated", integers, made, reason)
        reason = ""
        if not plan.as_product and plan.stored < 8:
            reason = f"there is no {plan.stored}-bit convolution: weights are widened when the file is loaded"
        elif not exact:
            reason = _why_widened(layer, operator)
        kind = "storage" if reason else "real"
        return Deployed(layer.weight_bits, layer.input_bits, plan.stored, kind, integers, made, reason)  # type: ignore[arg-type]


def _why_widened(layer: QuantizedLayer, operator: str | None) -> str:
    if operator is not None:
        return "accuracy level 0 multiplies in single precision"
    if layer.offset:
        return "the runtime has no convolution over a mid-rise grid of 8 bits"
    if layer.input_bits > 8:
        return f"inputs of {layer.input_bits} bits are not integers"
    return "its output is not quantised before it is added, averaged or transformed"


def _plan(name: str, module: nn.Module, layer: QuantizedLayer) -> _Planned:
    """Decide how a layer is written.

    Raises:
        ValueError: it is missing, or does not hold the values of its integers.
    """
    try:
        own = module.get_submodule(name)
    except AttributeError:
        raise ValueError(f"the quantised layer {name!r} must be a module of the network, but there is none") from None
    weight = getattr(own, "weight", None)
    values = layer.scale * (layer.codes + layer.offset)
    if not isinstance(weight, Tensor) or weight.shape != values.shape or not torch.allclose(weight, values.float()):
        raise ValueError(
            f"the weight of {name!r} must be scale * (codes + offset) of its {layer.weight_bits} bits, but is not; "
            "extract the subnetwork and take its codes from the same weight source"
        )
    half = 2 ** (layer.weight_bits - 1)
    if layer.weight_bits <= 8 and not -half <= int(layer.codes.min()) <= int(layer.codes.max()) < half:
        raise ValueError(
            f"the codes of {name!r} must fit {layer.weight_bits} bits, {-half} to {half - 1}, got "
            f"{int(layer.codes.min())} to {int(layer.codes.max())}"
        )
    stored = next((bits for bits in _STORED if bits >= layer.weight_bits), 0)
    kind = next((kind for kind in _KINDS if isinstance(own, kind)), None)
    reason = ""
    if kind is None or type(own).forward is not kind.forward:
        reason = f"the runtime has no integers for {type(own).__name__}"
    elif getattr(own, "padding_mode", "zeros") != "zeros":
        reason = f"the runtime has no integers for padding of mode {own.padding_mode!r}"
    elif not stored:
        reason = f"the runtime has no integers of {layer.weight_bits} bits"
    if reason:
        return _Planned(layer, 0, isinstance(own, nn.Linear), reason)
    whole = stored == 8 and layer.input_bits <= 8 and not layer.offset  # as an integer convolution, if it fuses
    return _Planned(layer, stored, is_product(own) and (isinstance(own, nn.Linear) or not whole))


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` in place of the submodule called ``name``."""
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)


def _tensors(planned: Mapping[str, _Planned]) -> dict[str, tuple[str, str]]:
    return {name: (f"{name}.codes", f"{name}.scale") for name, plan in planned.items() if plan.stored}


def _check_layers(model: Any, planned: Mapping[str, _Planned]) -> None:
    """Check that every layer was called.

    Raises:
        ValueError: one was not, e.g. because its weight is used without calling it.
    """
    count = uses(model)
    lost = sorted(name for name, (codes, _) in _tensors(planned).items() if not count[codes])
    if lost:
        raise ValueError(f"the quantised layers {lost} must be called by the network's forward, but are not")


def _moved_by_ties(module: nn.Module, inputs: tuple[Tensor, ...], wanted: list[Tensor]) -> list[float]:
    """Return how far each output moves, as a share of its norm, when the last digits of the inputs change.

    Sums in another order do the same to the quantisers behind them, the more the deeper the network.
    """
    generator = torch.Generator().manual_seed(0)
    moved = [0.0] * len(wanted)
    for _ in range(4):
        other = tuple(
            x * (1 + _JITTER * torch.randn(x.shape, generator=generator, dtype=x.dtype)) if x.is_floating_point() else x
            for x in inputs
        )
        with torch.no_grad():
            given = _flat(module(*other))
        for index, (left, right) in enumerate(zip(wanted, given, strict=True)):
            moved[index] = max(moved[index], float((left - right).norm() / left.norm().clamp(min=1e-12)))
    return moved


def _check_values(model: Any, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Check the written network against ``module``, the products of packed weights being exact.

    Raises:
        ValueError: it computes something else.
    """
    with torch.no_grad():
        wanted = _flat(module(*inputs))
        given = _session(at_level(model, 0).SerializeToString(), optimised=False)(*inputs)
    for left, right, tied in zip(wanted, given, _moved_by_ties(module, inputs, wanted), strict=True):
        bound = max(_EXACT, _TIES * tied)
        difference = float((left - right).norm() / left.norm().clamp(min=1e-12))
        if not difference <= bound:
            raise ValueError(
                f"the packed network must compute what the quantised one does within {bound:g} of the outputs' norm, "
                f"but differs by {difference:.1e}"
            )


def _flat(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    values = outputs.values() if isinstance(outputs, Mapping) else outputs
    return [tensor for value in values for tensor in _flat(value)]


def _session(source: str | bytes, *, optimised: bool = True) -> Any:
    """Return a function that runs a model in onnxruntime, positional tensors in and a list of tensors out."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if not optimised:  # each operator as written: fused ones round biases, which moves values over edges of a grid
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]

    def call(*inputs: Tensor) -> list[Tensor]:
        arrays = (tensor.numpy() for tensor in inputs)
        return [torch.from_numpy(a) for a in session.run(None, dict(zip(names, arrays, strict=True)))]

    return call
