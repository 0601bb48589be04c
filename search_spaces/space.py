"""The base of every search space."""

import hashlib
import itertools
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from search_spaces.architecture import Architecture, InvalidArchitectureError
from search_spaces.choice import Candidate, Choice
from search_spaces.encoding import encode, one_hot, presence
from search_spaces.relaxed import RelaxedArchitecture
from search_spaces.slicing import TensorRule
from search_spaces.spec import describe

__all__ = ["SearchSpace"]


class SearchSpace(ABC):
    """A finite set of architectures and the recipe that builds each as a plain, static module.

    A subclass gives ``choices``, :meth:`build` and :meth:`inputs`, and :meth:`rules` where a prefix is the wrong slice
    of a tensor. Everything else follows: validity, sampling, neighbours, crossover, size and encoding. Spaces are
    immutable and hold no weights, so one instance serves any number of supernets, controllers and threads.

    Randomness comes only through the generator that is passed in.
    """

    choices: tuple[Choice, ...]

    bare: bool = False
    """Whether :meth:`build` makes every layer through :func:`search_spaces.bare.layer`, so that a skeleton need not
    look for initialisers elsewhere: a quarter less time for a skeleton, never needed."""

    mixes_operations: ClassVar[bool] = False
    """Whether the module of :meth:`superset` takes a :class:`RelaxedArchitecture` as its last argument and weights the
    operations of categorical choices by it. Differentiable search of such choices needs it."""

    @abstractmethod
    def build(self, architecture: Architecture) -> nn.Module:
        """Return a new static module for ``architecture``.

        Called under ``torch.device("meta")``, under :func:`search_spaces.skeleton` (parameters uninitialised) and for
        real; it must have no side effect but the consumption of torch's global random state by initialisers.
        """

    @abstractmethod
    def inputs(self, architecture: Architecture, batch_size: int = 1) -> tuple[Tensor, ...]:
        """Return example inputs (zeros, on the current default device) for the module of ``architecture``."""

    def superset(self) -> nn.Module:
        """Return a new module that holds every tensor of every architecture; by default the largest build.

        A space whose candidates have tensors of their own (operations, say) returns a module with all of them under
        the names they have where they are built.
        """
        return self.build(self.largest())

    def weighted(self) -> tuple[str, ...]:
        """Return the choices whose candidates the module of :meth:`superset` weights itself.

        Default: the categorical ones of a space that ``mixes_operations``.
        """
        return tuple(c.name for c in self.choices if c.kind == "categorical") if self.mixes_operations else ()

    def superposition(self, architecture: Architecture) -> nn.Module:
        """Return a new module of the sizes of ``architecture``, with every candidate of the :meth:`weighted` choices.

        Default: that of ``architecture``, for spaces whose weighted candidates have no size to choose.
        """
        return self.build(architecture)

    def rules(self) -> Mapping[str, TensorRule]:
        """Return slicing rules by glob over tensor names; the first match wins. Default: none, all prefixes."""
        return {}

    def bitwidths(self, architecture: Architecture) -> Mapping[str, tuple[int, int]]:
        """Return module name -> (weight bits, activation bits); modules left out stay in full precision."""
        del architecture
        return {}

    def canonical(self, values: Mapping[str, Candidate]) -> Mapping[str, Candidate]:
        """Return the valid values that stand for all that describe the same network; by default ``values`` themselves.

        Called with a value for every active choice. Everything that makes an architecture passes through here, so that
        one network has one ``arch_id``. What it returns stays as it is: ``canonical(canonical(v)) == canonical(v)``.
        """
        return values

    def motifs(self, architecture: Architecture) -> Mapping[str, int]:
        """Return counts of named parts, the same for architectures that compute the same; predictors compare them."""
        del architecture
        return {}

    def zero_init(self) -> tuple[str, ...]:
        """Return globs over tensor names that the BigNAS recipe sets to zero before training.

        The last norm scale of every residual block (Yu et al. 2020, arXiv 2003.11142), so that each block
        starts as its shortcut. Default: none.
        """
        return ()

    def mixed(self) -> tuple[str, ...]:
        """Return globs over tensor names that a mixture of experts mixes unless told otherwise.

        Default: weights and biases of all convolutions, or of all linear layers where there are none.
        """
        with torch.device("meta"):
            module = self.superset()
            names = dict(module.named_parameters())  # tied ones once
        for kind in (_ConvNd, nn.Linear):
            found = [
                name
                for prefix, layer in module.named_modules()
                if isinstance(layer, kind)
                for leaf in layer._parameters
                if (name := f"{prefix}.{leaf}" if prefix else leaf) in names
            ]
            if found:
                return tuple(found)
        return ()

    @cached_property
    def digest(self) -> str:
        """Identity of the space: 16 hexadecimal digits, equal in every process.

        Over its class, its constructor arguments and its choices; over class and choices alone where the arguments
        cannot be described, e.g. a builder that is a local function.
        """
        choices = [[c.name, list(c.candidates), c.kind, c.requires] for c in self.choices]
        try:
            arguments = describe(self)
        except ValueError:
            arguments = type(self).__name__
        text = json.dumps([arguments, choices], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def _by_name(self) -> dict[str, Choice]:
        names = [c.name for c in self.choices]
        if len(set(names)) < len(names):
            raise ValueError(f"choices must have distinct names, got {names}")
        known: dict[str, Choice] = {}
        for choice in self.choices:
            if choice.requires is not None:
                parent = known.get(choice.requires[0])
                if parent is None or parent.kind != "ordinal":
                    raise ValueError(
                        f"choice {choice.name!r} requires {choice.requires[0]!r}, which must be an ordinal choice "
                        "listed before it"
                    )
            known[choice.name] = choice
        return known

    def choice(self, name: str) -> Choice:
        """Return the choice called ``name``.

        Raises:
            InvalidArchitectureError: the space has no such choice.
        """
        if name not in self._by_name:
            raise InvalidArchitectureError(f"this space has no choice {name!r}; it has {sorted(self._by_name)}")
        return self._by_name[name]

    @staticmethod
    def _active(choice: Choice, values: Mapping[str, Candidate]) -> bool:
        if choice.requires is None:
            return True
        parent, minimum = choice.requires
        value = values.get(parent)
        return isinstance(value, int | float) and value >= minimum

    def architecture(self, values: Mapping[str, Candidate]) -> Architecture:
        """Validate ``values`` and return them in canonical form, without inactive choices.

        Inactive choices may be given (they are checked, then dropped) or left out.

        Raises:
            InvalidArchitectureError: a choice is unknown, missing, or has a value that is not a candidate.
        """
        problems = [
            f"architecture[{name!r}] is not a choice of this space; choices are {sorted(self._by_name)}"
            for name in values
            if name not in self._by_name
        ]
        canonical: dict[str, Candidate] = {}
        for name, choice in self._by_name.items():
            active = self._active(choice, canonical)
            if name not in values:
                if active:
                    problems.append(f"architecture[{name!r}] is missing; candidates are {choice.candidates}")
                continue
            try:
                candidate = choice.candidates[choice.index(values[name])]
            except ValueError as error:
                problems.append(str(error))
                continue
            if active:
                canonical[name] = candidate
        if problems:
            raise InvalidArchitectureError("; ".join(problems))
        return Architecture(self.canonical(canonical))

    def contains(self, architecture: Mapping[str, Candidate]) -> bool:
        """Return whether ``architecture`` is valid here and already in canonical form."""
        try:
            return self.architecture(architecture) == Architecture(architecture)
        except InvalidArchitectureError:
            return False

    def _pick(self, indices: Mapping[str, int]) -> Architecture:
        values: dict[str, Candidate] = {}
        for name, choice in self._by_name.items():
            if choice.requires is None or self._active(choice, values):
                values[name] = choice.candidates[indices[name]]
        return Architecture(self.canonical(values))

    def smallest(self) -> Architecture:
        """Return the architecture of every choice's first candidate."""
        return self._pick(dict.fromkeys(self._by_name, 0))

    def largest(self) -> Architecture:
        """Return the architecture of every choice's last candidate; a supernet stores weights of this build."""
        return self._pick({name: choice.size - 1 for name, choice in self._by_name.items()})

    def middle(self) -> Architecture:
        """Return the architecture of every choice's middle candidate (the lower one of two)."""
        return self._pick({name: (choice.size - 1) // 2 for name, choice in self._by_name.items()})

    def sample(self, generator: torch.Generator) -> Architecture:
        """Draw every choice uniformly and independently, then drop the inactive ones.

        Where several values make one network (:meth:`canonical`), it is drawn as often as they all together.
        """
        sizes = self._sizes
        draws = (torch.rand(len(sizes), generator=generator, dtype=torch.float64) * sizes).long().tolist()
        return self._pick(dict(zip(self._by_name, draws, strict=True)))

    def _complete(self, architecture: Architecture, generator: torch.Generator | None = None) -> dict[str, int]:
        """Index of every choice, active or not; inactive ones are drawn, or smallest without a generator."""
        filler = self.sample_indices(generator) if generator is not None else dict.fromkeys(self._by_name, 0)
        known = {name: self._by_name[name].index(value) for name, value in architecture.items()}
        return filler | known

    def sample_indices(self, generator: torch.Generator) -> dict[str, int]:
        """Draw the position of a candidate for every choice, inactive ones included."""
        sizes = self._sizes.tolist()
        multiple = math.lcm(*sizes)
        if multiple < 2**24:  # one call instead of many, for the same numbers: remainders of a multiple are uniform
            draws = torch.randint(multiple, (len(sizes),), generator=generator).tolist()
        else:
            draws = [int(torch.randint(size, (), generator=generator)) for size in sizes]
        return {name: draw % size for name, draw, size in zip(self._by_name, draws, sizes, strict=True)}

    @cached_property
    def _sizes(self) -> Tensor:
        return torch.tensor([choice.size for choice in self._by_name.values()], device="cpu")

    def neighbours(self, architecture: Architecture) -> Iterator[Architecture]:
        """Yield every architecture that differs in the value of one active choice.

        Choices that become active take their smallest candidate; the result never repeats and never is the input. A
        neighbour is given in canonical form, which may differ in more.
        """
        base = self._complete(architecture)
        seen = {architecture}
        for name in architecture:
            for index in range(self._by_name[name].size):
                if index != base[name] and (other := self._pick(base | {name: index})) not in seen:
                    seen.add(other)
                    yield other

    def mutate(
        self,
        architecture: Architecture,
        generator: torch.Generator,
        probability: float | None = None,
    ) -> Architecture:
        """Redraw each choice with ``probability`` (default: one over the number of choices), at least one changing.

        In a space of a single architecture the input comes back.
        """
        if self.size() == 1:
            return architecture
        probability = 1 / len(self.choices) if probability is None else probability
        while True:
            indices = self._complete(architecture, generator)
            flips = torch.rand(len(self._by_name), generator=generator) < probability
            if not bool(flips.any()):
                flips[int(torch.randint(len(flips), (), generator=generator))] = True
            fresh = self.sample_indices(generator)
            mutated = self._pick(
                {n: fresh[n] if flip else indices[n] for n, flip in zip(self._by_name, flips.tolist(), strict=True)}
            )
            if mutated != architecture:
                return mutated

    def crossover(self, first: Architecture, second: Architecture, generator: torch.Generator) -> Architecture:
        """Take each choice from either parent with equal probability (uniform crossover)."""
        parents = self._complete(first, generator), self._complete(second, generator)
        for name in self._by_name:  # a choice only one parent has comes from that parent
            for mine, other, parent in ((0, 1, first), (1, 0, second)):
                if name not in parent:
                    parents[mine][name] = parents[other][name]
        picks = torch.randint(2, (len(self._by_name),), generator=generator).tolist()
        return self._pick({n: parents[pick][n] for n, pick in zip(self._by_name, picks, strict=True)})

    def size(self) -> int:
        """Return the number of distinct (canonical) architectures."""
        return self._size

    @cached_property
    def _size(self) -> int:
        if type(self).canonical is not SearchSpace.canonical:
            return sum(1 for _ in self.architectures())
        return self._count()

    def _count(self) -> int:
        """Count the valid combinations of values, each standing for itself."""
        children: dict[str | None, list[Choice]] = {}
        for choice in self._by_name.values():
            children.setdefault(choice.requires[0] if choice.requires else None, []).append(choice)

        def ways(choice: Choice) -> int:
            total = 0
            for value in choice.candidates:
                present = [c for c in children.get(choice.name, ()) if self._active(c, {choice.name: value})]
                total += math.prod(ways(c) for c in present)
            return total

        return math.prod(ways(choice) for choice in children.get(None, ()))

    def architectures(self) -> Iterator[Architecture]:
        """Yield every distinct architecture once, smallest first; meant for small spaces."""

        def extend(values: dict[str, Candidate], rest: Sequence[Choice]) -> Iterator[Architecture]:
            if not rest:
                if self.canonical(values) == values:
                    yield Architecture(values)
                return
            choice, *others = rest
            if not self._active(choice, values):
                yield from extend(values, others)
                return
            for candidate in choice.candidates:
                yield from extend(values | {choice.name: candidate}, others)

        yield from extend({}, tuple(self._by_name.values()))

    def relax(self, architecture: Architecture) -> RelaxedArchitecture:
        """Return ``architecture`` with all weight on its own candidates; inactive choices are at their smallest."""
        return one_hot(self._by_name, self._complete(architecture))

    def presence(self, relaxed: RelaxedArchitecture) -> dict[str, Tensor]:
        """Return choice -> probability ``()`` that it exists, the choices being independent."""
        return presence(self._by_name, relaxed)

    def encode(self, architecture: Architecture | RelaxedArchitecture) -> Tensor:
        """Return the architecture as numbers for predictors and routers.

        Each ordinal choice gives one number, ``(v - min) / (max - min)``; each categorical choice a one-hot vector;
        each conditional choice one more number, 1 where it is present. Absent choices are all zeros, so distinct
        architectures have distinct encodings. A relaxed architecture gives the expectation, differentiably.

        Returns:
            ``(D,)`` float32 in [0, 1].
        """
        relaxed = architecture if isinstance(architecture, RelaxedArchitecture) else self.relax(architecture)
        return encode(self._by_name, relaxed)

    def probes(self) -> Iterator[Architecture]:
        """Yield architectures that between them shrink every choice: smallest, largest, and each choice alone.

        Used to check at construction that weights of the largest build cover the whole space.
        """
        top = {name: choice.size - 1 for name, choice in self._by_name.items()}
        alone = (self._pick(top | {name: index}) for name, c in self._by_name.items() for index in range(c.size - 1))
        seen: set[Architecture] = set()
        for candidate in itertools.chain((self.largest(), self.smallest()), alone):
            if candidate not in seen:
                seen.add(candidate)
                yield candidate
