"""Every architecture of a space at once: one forward pass of the largest build with soft masks."""

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from search_spaces import Architecture, RelaxedArchitecture, SearchSpace, Slicer, skeleton
from supernets.laws import Branch, Laws, Presence, RelaxationError
from supernets.masked_network import Gate, MaskedNetwork
from supernets.masks import Crop, Mask, make_masks
from supernets.relaxation_check import check_relaxation
from supernets.skeletons import ThreadCache

__all__ = ["Relaxation", "RelaxationError"]

_FEATURES, _MODULE = -1, -2
Key = tuple[str, int]


def _read_dims(layer: nn.Module, leaf: str, ndim: int) -> tuple[int, ...]:
    """Return the dimensions of a weight that are read from: input features and the sides of a kernel."""
    if isinstance(layer, _ConvNd) and leaf == "weight":
        return ((0,) if isinstance(layer, _ConvTransposeNd) else (1,)) + tuple(range(2, ndim))
    if isinstance(layer, nn.Linear) and leaf == "weight":
        return (1,)
    if isinstance(layer, nn.RNNBase | nn.RNNCellBase | nn.MultiheadAttention) and "weight" in leaf:
        return (1,)
    return ()


@final
class Relaxation:
    """Soft masks that turn the largest build of a space into the weighted superposition of all its architectures.

    Candidates are nested, so that the weighted sum of padded candidates is a mask,
    ``sum_k p_k pad(W[:c_k]) = W * m`` with ``m_i = sum_{k: c_k > i} p_k`` (TangleNAS, arXiv 2312.10440, Sec. 3), and
    one pass of the largest build serves however many candidates there are:

    - A width is masked where it is read: the input features of linear, convolutional and recurrent weights, which is
      the same as masking the activations. Nothing in front of a norm is masked, because a norm that uses the statistics
      of its batch undoes any factor on its channels and the choice would get no gradient. Outputs need no mask.
    - Attention heads of fixed size are a width of the output projection: masking what it reads is a gate after each
      head.
    - ``LayerNorm`` and ``RMSNorm`` of elastic features use weighted moments, with weights ``m_i / sum m``.
    - Kernels are masked ring by ring.
    - Blocks that a smaller depth leaves out are gated, ``x + g (f(x) - x)`` with ``g`` the probability of their
      existence: for a residual block ``x + g r(x)``.
    - Operations that share no weights are summed by the space's own module, see ``SearchSpace.mixes_operations``.

    All of this is derived from builds of the space and then verified: with all weight on one candidate of each choice,
    the outputs are those of the subnetwork.

    Args:
        space: the space.

    Attributes:
        sources: parameter of the largest build -> the one it is tied to, or itself.
        shapes: of these parameters.
        operations: choices whose candidates are weighted by the space's own module.
        laws: sizes of tensors by (name, dimension).

    Raises:
        RelaxationError: some choice has no place for its mask, or the outputs differ; the message names the choice and
            the module.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        with torch.device("meta"):
            largest = space.superset()
        self._slicer = Slicer(largest, space.rules())
        self._cuts: dict[Key, tuple[int, bool]] = {}
        self.operations = space.weighted()
        self.laws: Laws[Key] = Laws(space, self._measure, skip=self.operations)
        layers = dict(largest.named_modules(remove_duplicate=False))
        self.sources: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._masks: list[Mask] = []
        self._sites: dict[str, list[tuple[int, list[int]]]] = {}
        plan = self._slicer.plan(largest, space.largest())
        seen: dict[tuple[object, ...], int] = {}
        for part in plan:
            self.sources[part.name], self.shapes[part.name] = part.source, part.shape
            prefix, _, leaf = part.name.rpartition(".")
            laws = self._elastic(part.name, part.shape, _read_dims(layers[prefix], leaf, len(part.shape)))
            for dims, mask in make_masks(laws, [choice.name for choice in space.choices]):
                view = [part.shape[dim] if dim in dims else 1 for dim in range(len(part.shape))]
                self._sites.setdefault(part.name, []).append((self._register(mask, seen), view))
        self._norms: dict[str, int] = {}
        for name, layer in layers.items():
            if self.laws.elastic((name, _FEATURES)):
                crop = Crop(0, int(layer.normalized_shape[-1]))
                ((_, mask),) = make_masks([(crop, self.laws.of((name, _FEATURES)))], [c.name for c in space.choices])
                self._norms[name] = self._register(mask, seen)
        self._gates = self._find_gates(largest)
        self._networks: ThreadCache[torch.device, MaskedNetwork] = ThreadCache(maxsize=2)
        self._refuse_unplaced()
        device = torch.device("cpu")
        network = self._networks.get(device, lambda: self.network(device))
        check_relaxation(
            space,
            self._slicer,
            lambda relaxed, stored, inputs: self(relaxed, self.soften(stored, relaxed), inputs, regularise=False),
            network.module,
        )

    def _register(self, mask: Mask, seen: dict[tuple[object, ...], int]) -> int:
        """Return the number of ``mask``, equal masks sharing one."""
        if mask.key not in seen:
            seen[mask.key] = len(self._masks)
            self._masks.append(mask)
        return seen[mask.key]

    def _measure(self, architecture: Architecture) -> Mapping[Key, int]:
        """Return the extents of all tensors, the features of norms, and 1 for each module of a build."""
        with torch.device("meta"):
            module = self.space.superposition(architecture)
        sizes: dict[Key, int] = {}
        for part in self._slicer.plan(module, architecture):
            for dim, size in enumerate(part.shape):
                sizes[part.name, dim] = size
            for dim, start, _, blocks in part.cuts:
                self._cuts[part.name, dim] = blocks, start > 0
        for name, layer in module.named_modules(remove_duplicate=False):
            sizes[name, _MODULE] = 1
            if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
                sizes[name, _FEATURES] = layer.normalized_shape[-1]
        return sizes

    def presences(self, tensor: str) -> tuple[Presence, ...]:
        """Return where a parameter of the largest build exists; everywhere if there are none."""
        dims = len(self.shapes[tensor])
        return self.laws.presences((tensor, 0) if dims else (tensor.rpartition(".")[0], _MODULE))

    def _elastic(
        self, name: str, shape: tuple[int, ...], dims: tuple[int, ...]
    ) -> list[tuple[Crop, tuple[Branch, ...]]]:
        return [
            (Crop(dim, shape[dim], *self._cuts[name, dim]), self.laws.of((name, dim)))
            for dim in dims
            if self.laws.elastic((name, dim))
        ]

    def _find_gates(self, largest: nn.Module) -> list[Gate]:
        """Return the runs of modules that are left out together."""
        groups: dict[tuple[str, object], list[str]] = {}
        for name, _ in largest.named_modules():
            presences = self.laws.presences((name, _MODULE))
            parent = name.rpartition(".")[0]
            if presences and (not name or self.laws.presences((parent, _MODULE)) != presences):
                groups.setdefault((parent, presences), []).append(name)
        return [Gate(tuple(names), self.laws.presences((names[0], _MODULE))) for names in groups.values()]

    def _refuse_unplaced(self) -> None:
        """Every choice must have a mask or a gate."""
        placed = {name for mask in self._masks for name in mask.choices} | set(self.operations)
        placed |= {presence.choice for gate in self._gates for presence in gate.presences}
        for choice in self.space.choices:
            if choice.size == 1 or choice.name in placed:
                continue
            touched = sorted(
                {
                    key[0]
                    for key in self.laws.largest
                    if self.laws.elastic(key) and any(choice.name in b.choices for b in self.laws.of(key))
                }
            )
            if touched:
                raise RelaxationError(
                    f"choice {choice.name!r} has no place for a mask: it shrinks {touched}, and no linear or "
                    "convolutional layer, behind a norm or without one, reads what they make. A mask on these outputs "
                    "themselves would stand in front of a norm in training mode, which cancels it, or change what is "
                    "computed from all of them; let such a layer follow, or fix the choice"
                )
            raise RelaxationError(
                f"choice {choice.name!r} has no place for a mask: it changes neither the size of a tensor nor whether "
                "a module exists, so no single pass can hold all its candidates; fix it, or use SandwichRule"
            )

    def soften(self, stored: Mapping[str, Tensor], relaxed: RelaxedArchitecture) -> dict[str, Tensor]:
        """Return the parameters of the largest build by name, masked; linear in ``stored``.

        Args:
            stored: parameters of the largest build, tied ones once.
            relaxed: weights of all candidates, on the device of ``stored``.
        """
        masks = [mask(relaxed) for mask in self._masks]
        tensors: dict[str, Tensor] = {}
        for name, source in self.sources.items():
            tensor = stored[source]
            for number, view in self._sites.get(name, ()):
                tensor = tensor * masks[number].view(view).to(tensor.dtype)
            tensors[name] = tensor
        return tensors

    def __call__(
        self,
        relaxed: RelaxedArchitecture,
        tensors: Mapping[str, Tensor],
        inputs: tuple[Any, ...],
        *,
        regularise: bool = True,
    ) -> Any:
        """Return the outputs of the largest build with gates and weighted norms.

        Norms use the statistics of the batch.

        Args:
            relaxed: weights of all candidates.
            tensors: what :meth:`soften` returns, and buffers.
            inputs: of the network.
            regularise: whether dropout is on.
        """
        device = next(iter(tensors.values())).device
        network = self._networks.get(device, lambda: self.network(device))
        return self.run(network, relaxed, tensors, inputs, regularise=regularise)

    def run(
        self,
        network: MaskedNetwork,
        relaxed: RelaxedArchitecture,
        tensors: Mapping[str, Tensor],
        inputs: tuple[Any, ...],
        *,
        regularise: bool,
    ) -> Any:
        """Return the outputs of ``network``, one that :meth:`network` has made; else like :meth:`__call__`."""
        features = {name: self._masks[number](relaxed) for name, number in self._norms.items()}
        return network(relaxed, features, tensors, inputs, regularise=regularise)

    def network(self, device: torch.device) -> MaskedNetwork:
        """Return a new copy of the largest build with gates and weighted norms, without values of its own."""
        with device:
            module = skeleton(self.space)
        return MaskedNetwork(module, self._gates, list(self._norms), mixes=self.space.mixes_operations)
