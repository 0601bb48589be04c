"""Skeletons: what of the user's build they keep, and what they cost."""

import pytest
import torch
from torch import Tensor, nn

from search_spaces import FactorySpace
from supernets import Classification, Slot, Supernet


class PartlyFrozen(nn.Module):
    """A fixed feature map under a trained head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = nn.Linear(6, width).requires_grad_(False)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.features(x).relu())
        return outputs


@pytest.fixture
def supernet() -> Supernet:
    return Supernet(FactorySpace(PartlyFrozen, {"width": [4, 8]}, input_shape=(6,)), Classification(4))


def train(supernet: Supernet) -> None:
    batch = torch.randn(3, 6), torch.tensor([0, 1, 2])
    for architecture in supernet.anchors().values():
        loss, _ = supernet.step_loss(Slot(architecture, "labels"), batch, None)
        loss.backward()


@pytest.mark.parametrize("trained", [False, True])
def test_what_is_frozen_in_the_build_is_frozen_in_what_is_extracted(supernet: Supernet, trained: bool) -> None:
    if trained:
        train(supernet)
    for architecture in supernet.anchors().values():
        module = supernet.extract(architecture)
        trainable = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
        assert trainable == {"head.weight", "head.bias"}


def test_skeletons_kept_for_training_hold_no_weights(supernet: Supernet) -> None:
    train(supernet)
    for architecture in supernet.anchors().values():
        skeleton = supernet.source.skeletons.borrow(architecture, supernet.source.device)
        assert sum(parameter.untyped_storage().nbytes() for parameter in skeleton.parameters()) == 0


def test_subnetworks_are_whole_after_training(supernet: Supernet) -> None:
    train(supernet)
    inputs = torch.randn(2, 6)
    for architecture in supernet.anchors().values():
        expected = supernet(architecture, inputs)
        assert torch.equal(supernet.bind(architecture)(inputs), expected)
        assert torch.equal(supernet.extract(architecture)(inputs), expected)
