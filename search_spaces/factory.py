"""Bring your own model: any constructor with size arguments as a search space."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from search_spaces.architecture import Architecture
from search_spaces.choice import Candidate, Choice
from search_spaces.report import SharingReport, sharing_report
from search_spaces.slicing import TensorRule
from search_spaces.space import SearchSpace
from search_spaces.spec import load

__all__ = ["FactorySpace", "from_config"]

_ELEMENT = re.compile(r"(?P<argument>\w+)\.(?P<place>\d+|length|\*)")


@final
class FactorySpace(SearchSpace):
    """The architectures that one builder makes of different arguments.

    ``builder(**fixed, **chosen)`` is the module: a class of the user's, ``timm.create_model``, :func:`from_config` with
    a Hugging Face configuration. The supernet stores the tensors of the largest build, and every smaller build reads
    its part of the tensor of the same name. At construction every candidate is built on ``meta`` and its plan derived,
    so a builder that cannot be shared is an error here and never a wrong answer later. ``timm`` needs a torchvision
    made for the installed torch, and the rule ``{"*.qkv.*": {"blocks": {0: 3}}}`` for its vision transformers.

    A list argument is written element by element: ``widths.length`` gives the candidates for its length, ``widths.0``,
    ``widths.1``, ... those of each element, or ``widths.*`` those of all. Elements beyond the shortest length exist
    only where the list is long enough.

    Args:
        builder: returns a module; works under ``torch.device("meta")``. A callable, or its import path as in YAML.
        choices: argument -> list of candidates, ``{low, high, step}`` or :class:`Choice`; or the choices themselves.
        input_shape: shape of one example, without the batch dimension, for a module that takes one tensor.
        input_dtype: name of the dtype of the examples, e.g. ``"int64"`` for token ids.
        example_inputs: in place of ``input_shape`` for a module that takes other inputs, several tensors say: a
            function from the batch size to a tuple of tensors, one for each argument, or its import path as in YAML.
        fixed: arguments that are the same for all architectures.
        requires: choice -> ``(choice, minimum)``: the argument is passed only where that ordinal choice is at least
            ``minimum``; elsewhere the builder's default holds.
        slicing: glob over tensor names -> :class:`TensorRule` or its fields as a mapping, where a prefix is wrong.

    Raises:
        ValueError: the builder has no argument of that name, a choice changes nothing in what is built, an argument is
            both fixed and chosen, the builder fails, or there is not one of ``input_shape`` and ``example_inputs``.
        SlicingError: a tensor of some candidate has no place in the largest build; the message names it and the rule
            that would help.

    >>> space = FactorySpace(nn.Linear, {"out_features": [4, 8, 16]}, input_shape=(3,), fixed={"in_features": 3})
    >>> space.build(space.smallest())
    Linear(in_features=3, out_features=4, bias=True)
    """

    def __init__(
        self,
        builder: str | Callable[..., nn.Module],
        choices: Mapping[str, Any] | Sequence[Choice],
        *,
        input_shape: tuple[int, ...] | None = None,
        input_dtype: str = "float32",
        example_inputs: str | Callable[[int], tuple[Tensor, ...]] | None = None,
        fixed: Mapping[str, Any] | None = None,
        requires: Mapping[str, tuple[str, float]] | None = None,
        slicing: Mapping[str, TensorRule | Mapping[str, Any]] | None = None,
    ) -> None:
        if (input_shape is None) == (example_inputs is None):
            raise ValueError(
                "FactorySpace needs the shape of its inputs: give input_shape, that of one example without the batch "
                f"dimension, or example_inputs, a function; got {input_shape=}, {example_inputs=}"
            )
        self.builder = builder
        self.input_shape = None if input_shape is None else tuple(input_shape)
        self.input_dtype = input_dtype
        self.example_inputs = example_inputs
        self.fixed = dict(fixed or {})
        self.requires = {name: (str(choice), minimum) for name, (choice, minimum) in (requires or {}).items()}
        self.slicing = {
            glob: rule if isinstance(rule, TensorRule) else TensorRule(**rule) for glob, rule in (slicing or {}).items()
        }
        self._builder: Callable[..., nn.Module] = load(builder) if isinstance(builder, str) else builder
        self._example: Callable[[int], tuple[Tensor, ...]] | None = (
            load(example_inputs) if isinstance(example_inputs, str) else example_inputs
        )
        self._dtype = getattr(torch, input_dtype, None)
        if not isinstance(self._dtype, torch.dtype):
            raise ValueError(f"input_dtype must name a torch dtype, e.g. 'float32' or 'int64', got {input_dtype!r}")
        self.choices = self._parse(choices)
        self._check_arguments()
        self._check_effects()
        self._report = sharing_report(self)

    def _parse(self, choices: Mapping[str, Any] | Sequence[Choice]) -> tuple[Choice, ...]:
        if not isinstance(choices, Mapping):
            return tuple(choices)
        lengths = {
            name.removesuffix(".length"): Choice.parse(name, given)
            for name, given in choices.items()
            if name.endswith(".length")
        }
        parsed: dict[str, Choice] = {choice.name: choice for choice in lengths.values()}
        for name, given in choices.items():
            element = _ELEMENT.fullmatch(name)
            if name in parsed:
                continue
            if element is None:
                parsed[name] = self._conditional(Choice.parse(name, given))
                continue
            argument, place = element["argument"], element["place"]
            length = lengths.get(argument)
            if place == "*" and length is None:
                raise ValueError(
                    f"choice {name!r} needs a choice '{argument}.length' to say how many elements there are"
                )
            places = range(_integer(length.candidates[-1])) if place == "*" and length else [int(place)]
            for position in places:
                choice = Choice.parse(f"{argument}.{position}", given)
                if length is not None and position >= _integer(length.candidates[0]):
                    choice = Choice(choice.name, choice.candidates, choice.kind, (length.name, position + 1))
                parsed[choice.name] = self._conditional(choice)
        unknown = self.requires.keys() - parsed.keys()
        if unknown:
            raise ValueError(
                f"requires names choices that do not exist: {sorted(unknown)}; choices are {sorted(parsed)}"
            )
        return tuple(sorted(parsed.values(), key=lambda c: c.requires is not None))

    def _conditional(self, choice: Choice) -> Choice:
        """Add the condition of ``requires``."""
        if choice.name not in self.requires:
            return choice
        return Choice(choice.name, choice.candidates, choice.kind, self.requires[choice.name])

    def _check_arguments(self) -> None:
        """Every argument must be accepted and given once, and lists must have no gaps."""
        chosen = {name.partition(".")[0] for name in (choice.name for choice in self.choices)}
        twice = sorted(chosen & self.fixed.keys())
        if twice:
            raise ValueError(f"arguments {twice} are both fixed and chosen; remove them from one of the two")
        largest = self.arguments(self.largest())
        try:
            signature = inspect.signature(self._builder)
        except ValueError:
            return
        if any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
            return
        accepted = [n for n, p in signature.parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        unknown = sorted(largest.keys() - set(accepted))
        if unknown:
            raise ValueError(f"builder {self._name} has no argument {unknown}; it accepts {accepted}")
        missing = [
            name
            for name in accepted
            if signature.parameters[name].default is inspect.Parameter.empty
            and name not in self.arguments(self.smallest())
        ]
        if missing:
            raise ValueError(f"builder {self._name} needs the arguments {missing}; give them in fixed or as choices")

    @property
    def _name(self) -> str:
        return getattr(self._builder, "__qualname__", repr(self._builder))

    def _check_effects(self) -> None:
        """A choice must change a shape, a layer or an attribute of a module; otherwise the builder ignores it."""
        largest = self.largest()
        seen: dict[str, bool] = {}
        reference = self._fingerprint(largest)
        for probe in self.probes():
            own = [n for n, value in probe.items() if largest.get(n) != value]
            if len(own) == 1:
                seen[own[0]] = seen.get(own[0], False) or self._fingerprint(probe) != reference
        ignored = [name for name, changes in seen.items() if not changes]
        if ignored:
            raise ValueError(
                f"choices {ignored} change nothing in what builder {self._name} builds: no tensor shape, layer or "
                "module attribute; does it use the argument?"
            )

    def _fingerprint(self, architecture: Architecture) -> list[object]:
        """All that tells two builds apart without comparing weights."""
        with torch.device("meta"):
            module = self.build(architecture)
        return [
            [
                (name, type(layer), layer.extra_repr()),
                [(key, tuple(p.shape)) for key, p in layer._parameters.items() if p is not None],
                [(key, *shown) for key, value in vars(layer).items() if (shown := _shown(value)) is not None],
            ]
            for name, layer in module.named_modules()
        ]

    def arguments(self, architecture: Architecture) -> dict[str, Any]:
        """Return the keyword arguments that ``builder`` gets for ``architecture``."""
        arguments: dict[str, Any] = dict(self.fixed)
        lists: dict[str, dict[int, Candidate]] = {}
        for choice in self.choices:
            if choice.name not in architecture:
                continue
            element = _ELEMENT.fullmatch(choice.name)
            if element is None:
                arguments[choice.name] = architecture[choice.name]
            elif element["place"] != "length":
                lists.setdefault(element["argument"], {})[int(element["place"])] = architecture[choice.name]
        for argument, elements in lists.items():
            if sorted(elements) != list(range(len(elements))):
                raise ValueError(
                    f"elements of {argument!r} must be numbered 0, 1, ... without gaps, got {sorted(elements)}"
                )
            arguments[argument] = [elements[place] for place in range(len(elements))]
        return arguments

    def build(self, architecture: Architecture) -> nn.Module:
        """Return ``builder(**arguments)``.

        Raises:
            ValueError: the builder fails or returns something else than a module.
        """
        arguments = self.arguments(architecture)
        try:
            module = self._builder(**arguments)
        except Exception as error:
            raise ValueError(f"builder {self._name} failed with {arguments}: {error!r}") from error
        if not isinstance(module, nn.Module):
            raise ValueError(f"builder {self._name} must return an nn.Module, got {type(module).__name__}")
        return module

    def rules(self) -> Mapping[str, TensorRule]:
        """Return ``slicing``."""
        return self.slicing

    def inputs(self, architecture: Architecture, batch_size: int = 1) -> tuple[Tensor, ...]:
        """Return zeros ``(batch_size, *input_shape)`` of ``input_dtype``, or what ``example_inputs`` gives.

        Raises:
            ValueError: ``example_inputs`` gives something else than a tuple of tensors.
        """
        del architecture
        if self._example is None:
            return (torch.zeros(batch_size, *(self.input_shape or ()), dtype=self._dtype),)
        given = self._example(batch_size)
        if not isinstance(given, tuple) or not all(isinstance(value, Tensor) for value in given):
            raise ValueError(
                "FactorySpace.example_inputs must return a tuple of tensors, one for each positional argument of the "
                f"module, got {type(given).__name__}"
            )
        return given

    def report(self) -> SharingReport:
        """Return what is elastic, shared as a view, copied and fixed; ``print`` it."""
        return self._report


def _shown(value: object) -> tuple[object, ...] | None:
    """Return what tells an attribute from others: a plain value, or the name of a function or class; else ``None``."""
    if isinstance(value, bool | int | float | str | tuple) or value is None:
        return (value,)
    if isinstance(value, list) and all(_shown(item) is not None for item in value):
        return ([_shown(item) for item in value],)
    name = getattr(value, "__qualname__", None) if callable(value) else None
    return None if name is None else (getattr(value, "__module__", None), name)


def _integer(value: Candidate) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"the length of a list must be an integer, got {value!r}")
    return value


@final
class _Output(nn.Module):
    """A model that returns one field of what another returns."""

    def __init__(self, model: nn.Module, field: str) -> None:
        super().__init__()
        self.model = model
        self.field = field

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the field of ``model(*args, **kwargs)``."""
        output: Tensor = getattr(self.model(*args, **kwargs), self.field)
        return output


def from_config(
    config: Callable[..., Any] | str, model: Callable[[Any], nn.Module] | str, output: str | None = None, **sizes: Any
) -> nn.Module:
    """Return ``model(config(**sizes))``: a builder for models that take a configuration object.

    For Hugging Face transformers: ``FactorySpace(from_config, {"num_hidden_layers": [2, 3, 4]}, fixed={"config":
    "transformers.ViTConfig", "model": "transformers.ViTForImageClassification", "output": "logits"}, ...)``.

    Args:
        config: class of the configuration, or its import path.
        model: class of the model, or its import path.
        output: field of the model's output to return, e.g. ``"logits"``; the model is then the submodule ``model`` of
            what is returned. ``None``: return the model itself.
        sizes: arguments of ``config``.
    """
    make_config = load(config) if isinstance(config, str) else config
    make_model = load(model) if isinstance(model, str) else model
    module: nn.Module = make_model(make_config(**sizes))
    return module if output is None else _Output(module, output)
