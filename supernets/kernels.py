"""The learned kernel transform of Once-for-All."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from search_spaces import SlicePlan, TensorSlice

__all__ = ["KernelTransform"]


class KernelTransform(nn.Module):
    """Maps each centre-cropped kernel to the next smaller one by a learned matrix.

    With ``c`` the flattened centre crop, ``w_{k-2} = M_{k -> k-2} c(w_k)`` step by step down to the wanted size
    (Once-for-All, arXiv 1908.09791, section 3.2). One matrix per tensor and step, shared over its channels, identity
    at the start; the largest kernel is untouched.

    Args:
        shapes: stored tensor -> shape in the largest build.
        plans: plans that between them reach every kernel size of the space.

    Raises:
        ValueError: a cropped kernel is not of equal extent in all its dimensions.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], plans: Iterable[SlicePlan]) -> None:
        super().__init__()
        smallest: dict[str, int] = {}
        for plan in plans:
            for part in plan:
                if part.kernel:
                    if len(set(part.shape[2:])) > 1 or len(set(shapes[part.source][2:])) > 1:
                        raise ValueError(
                            f"kernel_transform needs kernels of equal extent in all dimensions, but {part.name!r} "
                            f"has {part.shape[2:]} of {shapes[part.source][2:]}; turn kernel_transform off"
                        )
                    smallest[part.source] = min(smallest.get(part.source, part.shape[2]), part.shape[2])
        self.matrices = nn.ParameterDict(
            {
                self._key(name, size): nn.Parameter(torch.eye(size ** (len(shapes[name]) - 2)))
                for name, low in smallest.items()
                for size in range(low, shapes[name][2], 2)
            }
        )

    @staticmethod
    def _key(name: str, size: int) -> str:
        return f"{name.replace('.', '/')}->{size}"

    def forward(self, part: TensorSlice, tensor: Tensor) -> Tensor:
        """Cut ``part`` out of its stored ``tensor``, transforming the kernel where it shrinks."""
        if not part.kernel:
            return part(tensor)
        channels = tuple(cut for cut in part.cuts if cut[0] < 2)
        kernel = TensorSlice(part.name, part.source, part.shape, channels)(tensor)
        for size in range(tensor.shape[2] - 2, part.shape[2] - 1, -2):
            for dim in range(2, kernel.ndim):
                kernel = kernel.narrow(dim, 1, size)
            flat = kernel.flatten(2) @ self.matrices[self._key(part.source, size)].T
            kernel = flat.reshape(*kernel.shape)
        return kernel
