"""A model space written for NNI 3.0 as one of our search spaces."""

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor, nn

from search_spaces import Architecture, Candidate, Choice, SearchSpace, TensorRule, load

with warnings.catch_warnings():  # NNI 3.0 does not know two classes of torch 2.13, and needs neither
    warnings.simplefilter("ignore", RuntimeWarning)
    from nni.mutable import Categorical, CategoricalMultiple, Mutable, frozen_context
    from nni.nas.nn.pytorch import Cell, LayerChoice, ModelSpace, MutableModule, Repeat
    from nni.nas.space import model_context

__all__ = ["NNISpace"]

_CONTEXTS = threading.Lock()  # NNI keeps the sample that is being built in a stack that all threads share
_NESTED = ("", 0.0)
_ALWAYS = None
_Condition = tuple[str, float] | None


@final
class NNISpace(SearchSpace):
    """A ``ModelSpace`` of NNI 3.0, so that our supernets, controllers and exports work on it unchanged.

    Choices carry NNI's labels. A value choice of numbers is ordinal, ascending; a ``LayerChoice``, an ``InputChoice``
    and other values are categorical, values that are no numbers or texts by their ``repr``. A choice that only blocks
    beyond the smallest depth of a ``Repeat`` have exists only at such depths.

    A build is what NNI builds for that sample: layers of PyTorch in your own class. Value choices share weights as
    everywhere, by prefix; every candidate of a ``LayerChoice`` keeps weights of its own (:meth:`superset`).

    Args:
        model_space: your subclass of ``ModelSpace``, or its import path.
        input_shape: of one example, without the batch.
        arguments: of the constructor.
        input_dtype: dtype of the example input.

    Raises:
        ValueError: it is no ``ModelSpace``, or has something that is not supported: values without end, constraints,
            choices within a candidate of a ``LayerChoice``, or a ``Cell``.
    """

    def __init__(
        self,
        model_space: str | Callable[..., nn.Module],
        *,
        input_shape: tuple[int, ...],
        arguments: Mapping[str, Any] | None = None,
        input_dtype: str = "float32",
    ) -> None:
        self.model_space = model_space
        self.input_shape = tuple(input_shape)
        self.arguments = dict(arguments or {})
        self.input_dtype = input_dtype
        self._dtype = getattr(torch, input_dtype, None)
        if not isinstance(self._dtype, torch.dtype):
            raise ValueError(f"input_dtype must name a torch dtype, e.g. 'float32' or 'int64', got {input_dtype!r}")
        conditions, self._operations = self._conditions()
        self._values: dict[str, tuple[Any, ...]] = {}
        choices = []
        for label, mutable in self._prototype.simplify().items():
            if label not in conditions or conditions[label] == _NESTED:
                raise ValueError(
                    f"choice {label!r} lies within a candidate of a LayerChoice, or in a Repeat whose depth is an "
                    "expression, and exists for some samples only; give every candidate plain layers, and every "
                    "Repeat a plain choice of its depth"
                )
            named = label in self._operations
            choice, self._values[label] = _read(label, mutable, conditions[label], ordered=not named)
            choices.append(choice)
        self.choices = tuple(sorted(choices, key=lambda choice: choice.requires is not None))

    def build(self, architecture: Architecture) -> nn.Module:
        """Return the module that NNI builds for the sample ``architecture``."""
        built: nn.Module = self._made(model_context(self.sample_of(architecture)))
        return built

    def superset(self) -> nn.Module:
        """Return the model space with every candidate of every ``LayerChoice``, at the largest values."""
        built: nn.Module = self._made(frozen_context(self.sample_of(self.largest())))
        return built

    def rules(self) -> Mapping[str, TensorRule]:
        """Return one rule, which finds a tensor among the candidates and the blocks of the superset."""
        return {"*": TensorRule(source=self._source)}

    def inputs(self, architecture: Architecture, batch_size: int = 1) -> tuple[Tensor, ...]:
        """Return zeros ``(batch_size, *input_shape)`` of ``input_dtype``."""
        del architecture
        return (torch.zeros(batch_size, *self.input_shape, dtype=self._dtype),)

    def sample_of(self, architecture: Mapping[str, Candidate]) -> dict[str, Any]:
        """Return the sample of NNI, label -> value; choices that do not exist take their first value."""
        return {
            choice.name: self._values[choice.name][
                choice.index(architecture[choice.name]) if choice.name in architecture else 0
            ]
            for choice in self.choices
        }

    def architecture_of(self, sample: Mapping[str, Any]) -> Architecture:
        """Return the architecture of a sample of NNI, e.g. of a model that one of its strategies found.

        Raises:
            InvalidArchitectureError: a label or a value is not of this space.
        """
        values: dict[str, Candidate] = {}
        for label, value in sample.items():
            known = self._values.get(label, ())
            values[label] = self.choice(label).candidates[known.index(value)] if value in known else str(value)
        return self.architecture(values)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_prototype"}

    @cached_property
    def _prototype(self) -> Any:
        """The model space as its author wrote it, on meta."""
        with torch.device("meta"):
            made = self._made(frozen_context())
        if not isinstance(made, ModelSpace):
            raise ValueError(
                f"model_space must make a ModelSpace of nni.nas.nn.pytorch, got {type(made).__name__} from "
                f"{self.model_space!r}"
            )
        return made

    def _made(self, context: AbstractContextManager[Any]) -> Any:
        make = load(self.model_space) if isinstance(self.model_space, str) else self.model_space
        with _CONTEXTS, context:
            return make(**self.arguments)

    def _conditions(self) -> tuple[dict[str, _Condition], frozenset[str]]:
        """Return label -> the depth from which on it exists, ``None`` for always; and the labels of layer choices."""
        found: dict[str, _Condition] = {}
        operations = set()
        for label, condition, chooses_layer in _labels(self._prototype, _ALWAYS):
            operations |= {label} if chooses_layer else set()
            known = found.setdefault(label, condition)
            if known is _ALWAYS or condition is _ALWAYS:
                found[label] = _ALWAYS
            elif known[0] == condition[0]:
                found[label] = min(known, condition)
            else:
                found[label] = _NESTED
        return found, frozenset(operations)

    def _source(self, architecture: Architecture, name: str) -> str:
        """Return the name in the superset of the tensor called ``name`` in a build."""
        module: Any = self._prototype
        path, rest = [], name.split(".")
        while rest:
            if isinstance(module, LayerChoice):
                value = self._values[module.label][self.choice(module.label).index(architecture[module.label])]
                path.append(str(value))
                module = module[value]
            elif isinstance(module, Repeat):
                path.append("blocks")
                module = module.blocks
            else:
                path.append(rest.pop(0))
                module = getattr(module, path[-1], None)
        return ".".join(path)


def _labels(module: nn.Module, condition: _Condition) -> Iterator[tuple[str, _Condition, bool]]:
    """Yield the label of every mutable below ``module``, when it exists, and whether it chooses a layer."""
    if isinstance(module, Cell):
        raise ValueError(
            "a Cell of NNI cannot be read: its samples do not say which tensors they share; use "
            "search_spaces.CellSpace or search_spaces.DARTSSpace, or write the cell with LayerChoice"
        )
    if isinstance(module, MutableModule):
        for mutable in module.mutables:
            for label in mutable.simplify():
                yield label, condition, isinstance(module, LayerChoice)
    if isinstance(module, LayerChoice):
        for candidate in module:
            yield from _labels(candidate, _NESTED)
    elif isinstance(module, Repeat):
        depth = module.depth_choice
        for index, block in enumerate(module.blocks):
            inner = condition
            if index >= module.min_depth:
                inner = (depth.label, index + 1) if isinstance(depth, Categorical) else _NESTED
            yield from _labels(block, inner)
    else:
        for child in module.children():
            yield from _labels(child, condition)


def _read(label: str, mutable: Mutable, condition: _Condition, *, ordered: bool) -> tuple[Choice, tuple[Any, ...]]:
    """Return the choice, and the values of NNI in the order of its candidates."""
    if isinstance(mutable, CategoricalMultiple):
        subsets = tuple(list(subset) for subset in mutable.grid())
        return Choice(label, tuple(_text(subset) for subset in subsets), "categorical", condition), subsets
    if not isinstance(mutable, Categorical):
        raise ValueError(
            f"choice {label!r} must have finitely many values, got {mutable}; give nni.choice a list of them, and "
            "express constraints as limits of the search"
        )
    values = tuple(mutable.values)
    if set(values) <= {False, True} and all(isinstance(value, bool) for value in values):
        values = tuple(sorted(values))  # the last candidate is the largest: with a bias, say
    if ordered and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        values = tuple(sorted(values))
        return Choice(label, values, "ordinal", condition), values
    candidates = tuple(value if isinstance(value, bool | int | float | str) else repr(value) for value in values)
    return Choice(label, candidates, "categorical", condition), values


def _text(subset: list[Any]) -> str:
    return "+".join(str(value) for value in subset) or "nothing"
