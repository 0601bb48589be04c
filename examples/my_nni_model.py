"""A model space as its author wrote it for NNI: nothing of ours."""

import nni
from nni.nas.nn.pytorch import LayerChoice, ModelSpace, MutableLinear, Repeat
from torch import Tensor, nn


class DigitsModelSpace(ModelSpace):
    """Some layers of one width, each with an activation of its own."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64)) -> None:
        super().__init__()
        width = nni.choice("width", list(widths))
        self.stem = MutableLinear(64, width)
        self.layers = Repeat(lambda index: self.layer(width, index), (1, 3), label="depth")
        self.head = MutableLinear(width, 10)

    @staticmethod
    def layer(width: nni.mutable.Categorical, index: int) -> nn.Module:
        """Return one layer."""
        activations = {"relu": nn.ReLU(), "prelu": nn.PReLU(), "tanh": nn.Tanh()}
        return nn.Sequential(MutableLinear(width, width), LayerChoice(activations, label=f"activation{index}"))

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(B, 1, 8, 8)`` to logits ``(B, 10)``."""
        logits: Tensor = self.head(self.layers(self.stem(x.flatten(1))))
        return logits
