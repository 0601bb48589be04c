"""A model as its author wrote it, knowing nothing of architecture search."""

from collections.abc import Sequence

from torch import Tensor, nn


class MyNet(nn.Module):
    """A small residual network: images ``(B, 1, H, W)`` to logits ``(B, 10)``.

    Args:
        width: channels of the trunk.
        hidden: channels inside each residual block, one entry per block.
        kernel: size of the kernels.
    """

    def __init__(self, width: int = 32, hidden: Sequence[int] = (32, 32, 32), kernel: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, inner, kernel, padding=kernel // 2),
                nn.BatchNorm2d(inner),
                nn.ReLU(),
                nn.Conv2d(inner, width, 1),
                nn.BatchNorm2d(width),
            )
            for inner in hidden
        )
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        features = self.stem(images)
        for block in self.blocks:
            features = features + block(features)
        return self.head(features.relu().mean((-2, -1)))
