"""Template mixing: weights of many layers from a few templates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal, final

import torch
from torch import Tensor, nn

from search_spaces import Architecture, RelaxedArchitecture, SearchSpace, TensorSlice, derive_seed
from supernets.weights import SharedWeights, WeightSource

__all__ = ["Bank", "TemplateWeights"]


@dataclass(frozen=True)
class Bank:
    """What one tensor is mixed from.

    Attributes:
        coefficients: ``(T,)``.
        templates: ``(T, *shape)`` with the shape of the tensor.
    """

    coefficients: Tensor
    templates: Tensor


@final
class TemplateWeights(WeightSource):
    """Weight sharing in which matrices and kernels are mixed from templates.

    A tensor of the largest build is ``W_l = sum_t c_{l,t} T_t`` with learned templates ``T_t`` and coefficients ``c_l``
    of its own; the part that an architecture needs is cut from every template and then mixed, which is the same.
    All other tensors are shared plainly.

    - ``share="shape"``: tensors of equal shape share one bank of templates (Savarese & Maire, arXiv 1902.09701; Plummer
      et al., arXiv 2006.10598). Fewer numbers are stored: ``templates`` tensors in place of one per layer.
    - ``share="layer"``: every tensor has a bank of its own. ``templates`` times as many numbers are stored; what they
      buy is :func:`supernets.grow`, which makes new parts from the same templates (MixtureGrowth, Sec. 3, arXiv
      2311.04251).

    Templates start as independent draws of the layers' own initialisation, those of one bank scaled to a common root
    mean square. Coefficients start as orthogonal rows, of length one or, in a shared bank, of the root mean square of
    their tensor over the common one. So mixed tensors start in the size of plain ones, and at zero where those do.

    Args:
        space: the space whose architectures are filled.
        templates: in a bank; one that serves fewer tensors has as many as it serves where ``share="shape"``, without
            those that start at zero.
        share: what has a bank in common.
        tensors: globs over tensors of the largest build that are mixed; default every matrix and kernel that can be.
        seed: of the initial weights. The global random state is left as it was.

    Raises:
        ValueError: an argument is out of range, or there is nothing to mix.
        SlicingError: see :class:`SharedWeights`.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        templates: int = 2,
        share: Literal["layer", "shape"] = "shape",
        tensors: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        if templates < 1:
            raise ValueError(f"TemplateWeights.templates must be >= 1, got {templates}")
        if share not in ("layer", "shape"):
            raise ValueError(f"TemplateWeights.share must be 'layer' or 'shape', got {share!r}")
        shared = SharedWeights(space, seed=seed)
        super().__init__(space, skeletons=shared.skeletons)
        self.templates = templates
        self.share = share
        self.tensors = None if tensors is None else tuple(tensors)
        self.seed = seed
        self.shared = shared
        groups = self._groups(shared.stored())
        self._plain = sum(tensor.numel() for tensor in shared.stored().values())
        initial = shared.release([name for names in groups for name in names])
        draws = [initial]
        with torch.random.fork_rng(devices=[]):
            if share == "layer":
                for number in range(1, templates):
                    torch.manual_seed(derive_seed(seed, "template", number))
                    draws.append(dict(space.superset().named_parameters()))
            torch.manual_seed(derive_seed(seed, "coefficients"))
            starts = [
                _own_bank([draw[names[0]] for draw in draws])
                if share == "layer"
                else _shared_bank([initial[name] for name in names], templates)
                for names in groups
            ]
        self.coefficients = nn.ParameterList(start.coefficients for start in starts)
        self.banks = nn.ParameterList(start.templates for start in starts)
        self._rows = {name: (bank, row) for bank, names in enumerate(groups) for row, name in enumerate(names)}

    def _groups(self, stored: Mapping[str, Tensor]) -> list[list[str]]:
        """Tensors by the bank that serves them."""
        eligible = {name: tensor for name, tensor in stored.items() if tensor.ndim > 1 and tensor.requires_grad}
        globs = ("*",) if self.tensors is None else self.tensors
        idle = [glob for glob in globs if not any(fnmatchcase(name, glob) for name in eligible)]
        if idle:
            raise ValueError(
                f"TemplateWeights.tensors must match matrices or kernels of the largest build, {idle} match none; "
                f"give globs over {sorted(eligible)}"
            )
        groups: dict[object, list[str]] = {}
        for name, tensor in eligible.items():
            if any(fnmatchcase(name, glob) for glob in globs):
                groups.setdefault(name if self.share == "layer" else tuple(tensor.shape), []).append(name)
        if self.share == "shape":
            groups = {shape: names for shape, names in groups.items() if len(names) > 1}
        if not groups:
            raise ValueError(
                "TemplateWeights with share='shape' needs two tensors of equal shape, but all of "
                f"{ {name: tuple(tensor.shape) for name, tensor in eligible.items()} } differ; "
                "use share='layer', or SharedWeights"
            )
        return list(groups.values())

    def forward(self, architecture: Architecture) -> dict[str, Tensor]:
        """Cut ``architecture`` out of the templates and mix; see :class:`WeightSource`."""
        stored = self.shared.stored() | {name: self.banks[bank] for name, (bank, _) in self._rows.items()}
        tensors = self.shared.plan(architecture)(stored, self._mix)
        return tensors | self.shared.shared_buffers(architecture)

    def _mix(self, part: TensorSlice, tensor: Tensor) -> Tensor:
        if part.source not in self._rows:
            return part(tensor)
        bank, row = self._rows[part.source]
        mixed: Tensor = torch.tensordot(self.coefficients[bank][row], _shifted(part)(tensor), 1)
        return mixed

    def relaxed(self, architecture: RelaxedArchitecture) -> dict[str, Tensor]:
        """Mix the tensors of the largest build and mask them; see :class:`WeightSource`."""
        mixed = {
            name: torch.tensordot(self.coefficients[bank][row], self.banks[bank], 1)
            for name, (bank, row) in self._rows.items()
        }
        return self.shared.soften(architecture, self.shared.stored() | mixed) | self.shared.relaxed_buffers()

    def mixtures(self, architecture: Architecture) -> dict[str, Bank]:
        """Return tensor -> coefficients and templates, cut for ``architecture``, of every tensor that is mixed."""
        found: dict[str, Bank] = {}
        for part in self.shared.plan(architecture):
            if part.source in self._rows:
                bank, row = self._rows[part.source]
                found[part.name] = Bank(self.coefficients[bank][row], _shifted(part)(self.banks[bank]))
        return found

    def diagnostics(self) -> Mapping[str, float]:
        """Return ``stored_ratio``: numbers stored, as a multiple of those that plain sharing stores."""
        return {"stored_ratio": sum(parameter.numel() for parameter in self.parameters()) / self._plain}


def _own_bank(draws: Sequence[Tensor]) -> Bank:
    """How the bank of one tensor starts: independent draws of its initialisation."""
    return Bank(_orthogonal(1, len(draws)), torch.stack([draw.detach() for draw in draws]))


def _shared_bank(tensors: Sequence[Tensor], most: int) -> Bank:
    """How the bank of several tensors starts: the first of them, scaled alike; each keeps its own root mean square."""
    sizes = torch.stack([tensor.detach().square().mean().sqrt() for tensor in tensors])
    common = sizes.square().mean().sqrt()
    if common == 0:
        return Bank(
            _orthogonal(len(tensors), min(most, len(tensors))), torch.stack([t.detach() for t in tensors[:most]])
        )
    first = torch.nonzero(sizes).flatten()[:most].tolist()
    coefficients = _orthogonal(len(tensors), len(first)) * (sizes / common)[:, None]
    return Bank(coefficients, torch.stack([tensors[row].detach() * (common / sizes[row]) for row in first]))


def _orthogonal(rows: int, columns: int) -> Tensor:
    """Rows of length one, orthogonal to each other where there are no more of them than columns."""
    return nn.functional.normalize(nn.init.orthogonal_(torch.empty(rows, columns)), dim=1)


def _shifted(part: TensorSlice) -> TensorSlice:
    """The same cut in a stack of tensors."""
    return replace(part, cuts=tuple((dim + 1, start, length, blocks) for dim, start, length, blocks in part.cuts))
