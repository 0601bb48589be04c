"""A cost for small devices: how much memory activations need at the worst moment."""

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nas.costs import Cost
from search_spaces import Architecture, SearchSpace, skeleton
from trials import Direction


@final
class PeakActivations(Cost):
    """The most bytes that the inputs and outputs of one layer take together, for one example.

    This is what the memory arena of a microcontroller must hold beside the weights when layers run one after another
    and in-place work is not exploited (Lin et al., MCUNet, arXiv 2007.10319). It is a lower bound for networks with
    long shortcuts, whose tensors stay alive meanwhile.

    Args:
        space: the search space.
        bytes_per_value: 4 for float32, 1 for int8.
    """

    name = "peak_activations"
    unit = "byte"
    direction: Direction = "minimize"

    def __init__(self, space: SearchSpace, *, bytes_per_value: int = 4) -> None:
        self.space = space
        self.bytes_per_value = bytes_per_value

    def __call__(self, architecture: Architecture, model: nn.Module) -> float:
        """Return the peak of one forward pass on meta, where nothing is computed; ``model`` is not needed."""
        del model
        peak = 0

        def watch(layer: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
            nonlocal peak
            tensors = [leaf for leaf in tree_leaves((inputs, outputs)) if isinstance(leaf, Tensor)]
            peak = max(peak, sum(tensor.numel() for tensor in tensors))

        with torch.device("meta"), torch.no_grad():
            module = skeleton(self.space, architecture).eval()
            for layer in module.modules():
                if not any(layer.children()):
                    layer.register_forward_hook(watch)
            module(*self.space.inputs(architecture))
        return float(peak * self.bytes_per_value)
