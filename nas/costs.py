"""Costs of an architecture that follow from its structure: parameters, multiply-accumulates and size on disk."""

import functools
from collections.abc import Mapping, Sequence
from typing import Literal, final

import torch
from torch import Tensor, nn

from nas.counting import layer_macs, operator_macs
from search_spaces import FULL_PRECISION, Architecture, ArchitectureCost, FactorySpace, SearchSpace, skeleton
from search_spaces.quantized_sites import representatives
from trials import Direction, Metric

__all__ = ["Cost", "CostMeter", "MACs", "ModelSize", "Parameters", "materialise", "measure"]

_REMAINDER = "(outside known layers)"


class Cost(ArchitectureCost):
    """A number that an architecture has before anything is trained, for a study and for rules that weigh costs.

    A subclass states ``name``, ``unit`` and ``direction``, takes the search space as first constructor argument, and
    says how a build is measured (:meth:`__call__`).
    """

    name: str
    unit: str
    direction: Direction

    @property
    def metric(self) -> Metric:
        """The cost as a metric, for objectives and records."""
        return Metric(self.name, self.unit, self.direction)


def _on_meta(model: nn.Module) -> bool:
    return all(t.is_meta for t in (*model.parameters(), *model.buffers()))


def _meta_skeleton(space: SearchSpace, architecture: Architecture) -> nn.Module:
    with torch.device("meta"):
        return skeleton(space, architecture)


def materialise(space: SearchSpace, architecture: Architecture) -> nn.Module:
    """Build ``architecture`` with initialised weights on the CPU, leaving torch's global random state as it was."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        return space.build(architecture)


@final
class Parameters(Cost):
    """Number of parameters, each tied one counted once; buffers are not parameters.

    Args:
        space: the search space.
    """

    name = "params"
    unit = "1"
    direction: Direction = "minimize"

    def __init__(self, space: SearchSpace) -> None:
        self.space = space

    def __call__(self, architecture: Architecture, model: nn.Module) -> float:
        """Return the number of elements of all parameters."""
        del architecture
        return float(sum(parameter.numel() for parameter in model.parameters()))


@final
class ModelSize(Cost):
    """Bytes of the tensors of the exported model: parameters and persistent buffers, each shared one once.

    A module named by ``space.bitwidths`` stores its weights (its parameters of two or more dimensions) in
    ``ceil(elements * bits / 8)`` bytes plus one 32-bit scale for each output channel, which is what ``onnx-lowbit``
    writes: also where a quantiser has one scale for the whole tensor, because runtimes want one for each channel. All
    other floating-point tensors take ``bits`` bits an element, integer buffers their own width. Headers, padding of
    rows and manifests are not counted.

    Args:
        space: the search space.
        bits: width of tensors in floating point.

    Raises:
        ValueError: ``bits`` is not in 1..64.
    """

    name = "model_size"
    unit = "byte"
    direction: Direction = "minimize"

    def __init__(self, space: SearchSpace, bits: int = 32) -> None:
        if not 1 <= bits <= 64:
            raise ValueError(f"bits must be between 1 and 64, got {bits}")
        self.space = space
        self.bits = bits

    def __call__(self, architecture: Architecture, model: nn.Module) -> float:
        """Return the bytes.

        Raises:
            ValueError: the space gives a bitwidth to a module that the model does not have.
        """
        widths = self.space.bitwidths(architecture)
        modules = dict(model.named_modules())
        unknown = sorted(widths.keys() - modules.keys())
        if unknown:
            raise ValueError(f"bitwidths must name modules of the model, got {unknown}; modules are {sorted(modules)}")
        quantised = {
            id(parameter): bits
            for name, (bits, _) in widths.items()
            for parameter in modules[name].parameters(recurse=False)
            if parameter.dim() >= 2 and bits < FULL_PRECISION
        }
        tensors = {id(t): t for t in model.state_dict(keep_vars=True).values() if isinstance(t, Tensor)}
        return float(sum(self._bytes(tensor, quantised.get(key)) for key, tensor in tensors.items()))

    def _bytes(self, tensor: Tensor, quantised: int | None) -> int:
        if not tensor.is_floating_point():
            return tensor.numel() * tensor.element_size()
        if quantised is None:
            return -(-tensor.numel() * self.bits // 8)
        return -(-tensor.numel() * quantised // 8) + 4 * tensor.shape[0]


@final
class MACs(Cost):
    """Multiply-accumulates of one example, from closed formulas over the shapes of one forward pass on meta.

    The formulas are checked when the cost is made, against an operator counter, on the smallest and largest
    architecture and on every candidate of every categorical choice. Where they disagree because the model multiplies
    outside known layers, operators are counted instead, so the number is right either way.

    Attributes:
        method: ``"layers"`` for closed formulas, ``"operators"`` for counted operators.
        attends: whether calls of ``scaled_dot_product_attention`` are counted as layers, by a formula of their own.
        device: ``"meta"``, or ``"cpu"`` for models that cannot run without real values.

    Args:
        space: the search space.

    Raises:
        ValueError: a network of the space cannot run on the space's own example inputs.
    """

    name = "macs"
    unit = "MAC"
    direction: Direction = "minimize"

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.device: Literal["meta", "cpu"] = "meta"
        self.method: Literal["layers", "operators"] = "layers"
        self.attends = False
        for architecture in representatives(space):
            layers, operators = self._both(architecture)
            if layers != operators and not self.attends:
                self.attends = True
                layers, operators = self._both(architecture)
            if layers != operators:
                self.method = "operators"
                break

    def __call__(self, architecture: Architecture, model: nn.Module) -> float:
        """Return the MACs of one example; a model that is not on meta is rebuilt there from ``architecture``."""
        model, inputs = self._prepare(architecture, model)
        if self.method == "operators":
            return float(operator_macs(model, inputs))
        return float(sum(layer_macs(model, inputs, attention=self.attends).values()))

    def layers(self, architecture: Architecture, model: nn.Module) -> dict[str, int]:
        """Return the MACs by module name; what is multiplied outside known layers has one entry in parentheses."""
        model, inputs = self._prepare(architecture, model)
        counts = layer_macs(model, inputs, attention=self.attends)
        if self.method == "operators":
            counts[_REMAINDER] = operator_macs(model, inputs) - sum(counts.values())
        return counts

    def _prepare(self, architecture: Architecture, model: nn.Module | None) -> tuple[nn.Module, tuple[Tensor, ...]]:
        if self.device == "cpu":
            if model is None or any(t.device.type != "cpu" for t in (*model.parameters(), *model.buffers())):
                model = materialise(self.space, architecture)
        elif model is None or not _on_meta(model):
            model = _meta_skeleton(self.space, architecture)
        with torch.device(self.device):
            return model, self.space.inputs(architecture)

    def _both(self, architecture: Architecture) -> tuple[int, int]:
        """Count by formulas and by operators; the first network that cannot run on meta moves the cost to the CPU."""
        try:
            model, inputs = self._prepare(architecture, None)
            return sum(layer_macs(model, inputs, attention=self.attends).values()), operator_macs(model, inputs)
        except Exception as error:
            if self.device == "meta":
                self.device = "cpu"
                return self._both(architecture)
            given = "input_shape or example_inputs" if isinstance(self.space, FactorySpace) else "inputs()"
            raise ValueError(
                f"macs needs a network that runs on space.inputs(), got {type(error).__name__}: {error} "
                f"for {dict(architecture)}; mend build() or {given} of {type(self.space).__name__}"
            ) from error


def measure(costs: Sequence[Cost], space: SearchSpace, architecture: Architecture) -> dict[str, float]:
    """Return every cost of ``architecture`` by name, building its skeleton once on the meta device."""
    model = _meta_skeleton(space, architecture)
    return {cost.name: cost(architecture, model) for cost in costs}


@final
class CostMeter:
    """Several costs of one space under one call, remembered by architecture.

    Args:
        space: the search space.
        costs: costs with distinct names.
        remembered: how many architectures to remember, the least recently used being forgotten first.

    Raises:
        ValueError: two costs have one name.
    """

    def __init__(self, space: SearchSpace, costs: Sequence[Cost], *, remembered: int = 4096) -> None:
        names = [cost.name for cost in costs]
        if len(set(names)) < len(names):
            raise ValueError(f"costs must have distinct names, got {names}")
        self.space = space
        self.costs = tuple(costs)
        self.remembered = remembered
        self._cached = functools.lru_cache(maxsize=remembered)(functools.partial(measure, self.costs, space))

    def __call__(self, architecture: Architecture) -> Mapping[str, float]:
        """Return cost name -> value of ``architecture``."""
        return dict(self._cached(architecture))
