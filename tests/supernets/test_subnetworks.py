"""bind, extract and sample: what a supernet hands out."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from search_spaces import Architecture, Choice, MLPSpace, SearchSpace
from supernets import Classification, SharedWeights, Supernet


@pytest.fixture
def supernet(space: SearchSpace) -> Supernet:
    return Supernet(space, Classification(4)).eval()


def storages(tensors: list[Tensor]) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def test_bind_shares_storage_and_extract_does_not(supernet: Supernet, architectures: list[Architecture]) -> None:
    held = storages(list(supernet.parameters()))
    for architecture in architectures:
        bound, extracted = supernet.bind(architecture), supernet.extract(architecture)
        assert isinstance(supernet.source, SharedWeights)
        views = {part.name for part in supernet.source.plan(architecture) if part.is_view}
        shared = {n for n, p in bound.named_parameters() if p.untyped_storage().data_ptr() in held}
        assert shared == views
        assert not any("qkv" not in name for name in dict(bound.named_parameters()).keys() - views)
        assert not storages(list(extracted.state_dict().values())) & held
        for name, tensor in extracted.state_dict().items():
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size(), name
        assert not any(parameter.requires_grad for parameter in bound.parameters())
        assert all(parameter.requires_grad for parameter in extracted.parameters())


def test_an_architecture_in_training_can_be_extracted(supernet: Supernet, inputs: Tensor) -> None:
    small = supernet.space.smallest()
    expected = supernet(small, inputs)
    for _ in range(2):
        assert torch.equal(supernet.extract(small)(inputs), expected)
        assert torch.equal(supernet(small, inputs), expected)


def test_batch_norm_buffers_belong_to_one_subnetwork(supernet: Supernet, architectures: list[Architecture]) -> None:
    first, second = (supernet.bind(architectures[1]) for _ in range(2))
    held = storages(list(supernet.buffers()))
    assert not storages(list(first.buffers())) & (storages(list(second.buffers())) | held)


def test_training_an_extracted_subnetwork_leaves_the_supernet_alone(supernet: Supernet, inputs: Tensor) -> None:
    before = copy.deepcopy(supernet.state_dict())
    module = supernet.extract(supernet.space.largest()).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    module(inputs).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in supernet.state_dict().items())


def test_weights_written_to_the_supernet_show_in_what_is_bound_but_not_in_what_was_extracted(
    supernet: Supernet, inputs: Tensor
) -> None:
    small = supernet.space.smallest()
    bound, extracted = supernet.bind(small), supernet.extract(small)
    before = extracted(inputs)
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.mul_(1.5)
    assert torch.equal(extracted(inputs), before)
    assert not torch.equal(bound(inputs), before)
    assert torch.equal(supernet.bind(small)(inputs), supernet.extract(small)(inputs))
    assert isinstance(supernet.source, SharedWeights)
    views = [part.name for part in supernet.source.plan(small) if part.is_view]
    assert views
    assert all(torch.equal(bound.get_parameter(name), supernet.source(small)[name]) for name in views)


def test_tied_parameters_stay_tied(tied_space: SearchSpace) -> None:
    for transform in (False, True):
        source = partial(SharedWeights, kernel_transform=transform)
        supernet = Supernet(tied_space, Classification(4), source=source).eval()
        architecture = tied_space.smallest()
        for module in (supernet.bind(architecture), supernet.extract(architecture)):
            state = module.state_dict(keep_vars=True)
            assert state["encode.weight"] is state["decode.weight"]
            assert len(list(module.parameters())) == 1


def test_many_threads_get_the_same_answers_as_one(
    supernet: Supernet, architectures: list[Architecture], inputs: Tensor
) -> None:
    expected = {a: supernet.extract(a)(inputs) for a in architectures}
    start = threading.Barrier(8)

    def serve(worker: int) -> int:
        torch.set_grad_enabled(False)
        start.wait()
        wrong = 0
        for request in range(12):
            architecture = architectures[(worker + request) % len(architectures)]
            match request % 3:
                case 0:
                    outputs = supernet.bind(architecture)(inputs)
                case 1:
                    outputs = supernet.extract(architecture)(inputs)
                case _:
                    outputs = supernet(architecture, inputs)
            wrong += not torch.equal(outputs, expected[architecture])
        return wrong

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(serve, range(8))) == 0


def test_sample_gives_distinct_architectures_that_satisfy_every_constraint() -> None:
    supernet = Supernet(MLPSpace(12, 4, widths=(4, 8, 12), depths=(1, 2, 3)), Classification(4))
    drawn = supernet.sample(
        5,
        [lambda a: cast(int, a["depth"]) >= 2, lambda a: a["layer1.width"] == 8],
        generator=torch.Generator().manual_seed(0),
    )
    assert len(set(drawn)) == 5
    assert all(a["depth"] in (2, 3) and a["layer1.width"] == 8 for a in drawn)
    again = supernet.sample(5, generator=torch.Generator().manual_seed(1))
    assert again == supernet.sample(5, generator=torch.Generator().manual_seed(1))


def test_sample_says_how_many_it_found_when_constraints_leave_too_few() -> None:
    supernet = Supernet(MLPSpace(12, 4, widths=(4, 8), depths=(1,)), Classification(4))
    with pytest.raises(ValueError, match=r"found 2 of 3 distinct architectures .* loosen the constraints"):
        supernet.sample(3, generator=torch.Generator(), tries=200)


def test_bad_settings_are_refused() -> None:
    space = MLPSpace(12, 4)
    with pytest.raises(ValueError, match=r"calibration >= 1 and clip > 0, got calibration=0"):
        Supernet(space, Classification(4), calibration=0)
    with pytest.raises(ValueError, match=r"clip=-1"):
        Supernet(space, Classification(4), clip=-1.0)


class HalfFrozen(SearchSpace):
    choices = (Choice("width", (2, 4)),)

    def build(self, architecture: Architecture) -> nn.Module:
        width = architecture.integer("width")
        module = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 4))
        module[0].requires_grad_(False)
        return module

    def inputs(self, architecture: Architecture, batch_size: int = 1) -> tuple[Tensor, ...]:
        return (torch.zeros(batch_size, 3),)


def test_parameters_that_the_space_freezes_stay_frozen_when_extracted() -> None:
    space = HalfFrozen()
    module = Supernet(space, Classification(4)).extract(space.smallest())
    trainable = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trainable == {"1.weight", "1.bias"}
