"""The contract of every weight source, over every kind of space."""

import functools

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from search_spaces import Architecture, ConvNetSpace, MLPSpace, SearchSpace, Stage
from supernets import Classification, SharedWeights, Supernet, TemplateWeights, WeightSource
from tests.supernets.family import SOURCES


def supernet_of(source: WeightSource) -> Supernet:
    return Supernet(source.space, Classification(4), source=lambda space: source).eval()


@functools.cache
def built(space: SearchSpace, architecture: Architecture) -> nn.Module:
    """A module of the space's own; calling it functionally leaves it as it is."""
    return space.build(architecture).eval()


def call(source: WeightSource, architecture: Architecture, inputs: Tensor) -> Tensor:
    """The plainest possible use of a source: a module, called functionally."""
    outputs: Tensor = functional_call(built(source.space, architecture), source(architecture), (inputs,))
    return outputs


def summed_gradients(source: WeightSource, inputs: Tensor, architectures: list[Architecture]) -> dict[str, Tensor]:
    source.zero_grad()
    for architecture in architectures:
        call(source, architecture, inputs).square().sum().backward()
    return {name: p.grad.clone() for name, p in source.named_parameters() if p.grad is not None}


def test_tensors_have_exactly_the_keys_shapes_and_types_of_the_module(
    source: WeightSource, space: SearchSpace, architectures: list[Architecture]
) -> None:
    for architecture in [*architectures, *space.probes()]:
        expected = built(space, architecture).state_dict()
        given = source(architecture)
        assert given.keys() == expected.keys()
        assert {n: (t.shape, t.dtype) for n, t in given.items()} == {n: (t.shape, t.dtype) for n, t in expected.items()}


def test_bind_extract_and_functional_call_give_the_same_outputs_to_the_bit(
    source: WeightSource, architectures: list[Architecture], inputs: Tensor
) -> None:
    supernet = supernet_of(source)
    for architecture in architectures:
        expected = call(source, architecture, inputs)
        for module in (supernet.bind(architecture), supernet.extract(architecture)):
            assert type(module) is type(built(source.space, architecture))
            assert not module.training
            assert torch.equal(module(inputs), expected)
        assert torch.equal(supernet(architecture, inputs), expected)


def test_the_tensors_load_into_a_plain_module(
    source: WeightSource, architectures: list[Architecture], inputs: Tensor
) -> None:
    for architecture in architectures:
        plain = source.space.build(architecture).eval()
        plain.load_state_dict(source(architecture))
        assert torch.equal(plain(inputs), call(source, architecture, inputs))


def test_two_calls_give_the_same_tensors(source: WeightSource, architectures: list[Architecture]) -> None:
    for architecture in architectures:
        first, second = source(architecture), source(architecture)
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_exception_in_between_changes_nothing(
    source: WeightSource, architectures: list[Architecture], inputs: Tensor
) -> None:
    supernet = supernet_of(source)
    architecture = architectures[-1]
    before = supernet(architecture, inputs)
    state = {name: value.clone() for name, value in source.state_dict().items()}
    with pytest.raises((RuntimeError, ValueError)):
        supernet(architecture, torch.zeros(3, 5, 7, 9, 2))
    assert torch.equal(supernet(architecture, inputs), before)
    assert all(torch.equal(value, state[name]) for name, value in source.state_dict().items())


def test_summed_gradients_do_not_depend_on_the_order_of_architectures(
    source: WeightSource, architectures: list[Architecture], inputs: Tensor
) -> None:
    forwards = summed_gradients(source, inputs, architectures)
    backwards = summed_gradients(source, inputs, architectures[::-1])
    assert forwards.keys() == backwards.keys()
    for name, gradient in forwards.items():
        torch.testing.assert_close(gradient, backwards[name], rtol=1e-5, atol=1e-6 * float(gradient.abs().max()))


def test_a_state_dict_restores_the_source(
    source: WeightSource, architectures: list[Architecture], inputs: Tensor, request: pytest.FixtureRequest
) -> None:
    twin = SOURCES[request.node.callspec.params["source"]](source.space, 99)
    assert not torch.equal(call(twin, architectures[1], inputs), call(source, architectures[1], inputs))
    twin.load_state_dict(source.state_dict())
    for architecture in architectures:
        assert torch.equal(call(twin, architecture, inputs), call(source, architecture, inputs))


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_random_state(space: SearchSpace) -> None:
    state = torch.get_rng_state()
    first, second, other = (SharedWeights(space, seed=seed).state_dict() for seed in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


def numbered(source: SharedWeights) -> SharedWeights:
    """Give every stored number its own value, so that a part tells where it was cut from."""
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.copy_(torch.arange(parameter.numel()).reshape(parameter.shape) + 1.0)
    return source


def test_gradients_are_zero_on_the_whole_complement_of_the_slice_and_not_inside(
    space: SearchSpace, architectures: list[Architecture]
) -> None:
    source = numbered(SharedWeights(space))
    for architecture in architectures:
        source.zero_grad()
        tensors = source(architecture)
        parameters = dict(space.build(architecture).named_parameters())
        sum(tensors[name].sum() for name in parameters).backward()
        for name, stored in source.largest.named_parameters():
            selected = torch.zeros(stored.numel())
            if name in parameters:
                selected[tensors[name].detach().long().flatten() - 1] = 1
            gradient = torch.zeros_like(stored) if stored.grad is None else stored.grad
            assert torch.equal(gradient, selected.reshape(stored.shape)), name


def test_a_training_loss_moves_no_weight_outside_the_slice(space: SearchSpace, inputs: Tensor) -> None:
    source = SharedWeights(space, seed=1)
    small = space.smallest()
    marked = numbered(SharedWeights(space))(small)
    module = space.build(small).train()
    outputs = functional_call(module, source(small), (inputs,))
    nn.functional.cross_entropy(outputs, torch.arange(len(inputs)) % 4).backward()
    names = dict(module.named_parameters())
    for name, stored in source.largest.named_parameters():
        outside = torch.ones(stored.numel(), dtype=torch.bool)
        if name in names:
            outside[marked[name].detach().long().flatten() - 1] = False
        if stored.grad is not None:
            assert not stored.grad.flatten()[outside].any(), name
        assert (stored.grad is not None and bool(stored.grad.any())) == (name in names), name


def test_a_perceptron_is_cut_by_prefix() -> None:
    space = MLPSpace(12, 4, widths=(6, 10), depths=(1, 2), batch_norm=False)
    source = SharedWeights(space)
    tensors = source(space.architecture({"depth": 2, "layer1.width": 6, "layer2.width": 10}))
    stored = dict(source.largest.named_parameters())
    assert torch.equal(tensors["linear1.weight"], stored["linear1.weight"][:6])
    assert torch.equal(tensors["linear2.weight"], stored["linear2.weight"][:, :6])
    assert torch.equal(tensors["linear2.bias"], stored["linear2.bias"])


def test_kernels_are_cut_from_the_centre(space: SearchSpace) -> None:
    source = SharedWeights(space)
    stored = dict(source.largest.named_parameters())
    small = source(space.smallest())
    for name, tensor in small.items():
        if tensor.ndim == 4 and tensor.shape[2] > 1:
            margin = (stored[name].shape[2] - tensor.shape[2]) // 2
            centre = stored[name][..., margin : margin + tensor.shape[2], margin : margin + tensor.shape[3]]
            assert torch.equal(tensor, centre[: tensor.shape[0], : tensor.shape[1]])


def test_the_largest_architecture_is_the_stored_module_itself(space: SearchSpace) -> None:
    source = SharedWeights(space)
    tensors = source(space.largest())
    for name, stored in source.largest.named_parameters():
        assert tensors[name].data_ptr() == stored.data_ptr()
        assert torch.equal(tensors[name], stored)


def test_zero_residual_gamma_makes_blocks_with_a_shortcut_start_as_the_shortcut(space: SearchSpace) -> None:
    source = SharedWeights(space, zero_residual_gamma=True)
    plain = dict(SharedWeights(space).largest.named_parameters())
    zeroed = {name for name, p in source.largest.named_parameters() if not p.any() and plain[name].any()}
    globs = set(space.zero_init())
    assert zeroed == {name for name in plain if name in globs}
    assert bool(zeroed) == bool(globs)


def test_weights_given_to_an_architecture_are_its_own_and_change_no_other_weight(
    space: SearchSpace, architectures: list[Architecture]
) -> None:
    for architecture in architectures:
        source = numbered(SharedWeights(space))
        before = {name: value.clone() for name, value in source.stored().items()}
        names = dict(space.build(architecture).named_parameters())
        given = {name: -tensor.detach() for name, tensor in source(architecture).items() if name in names}
        source.assign(architecture, given)
        now = source(architecture)
        assert all(torch.equal(now[name], value) for name, value in given.items())
        changed = sum(int((value != before[name]).sum()) for name, value in source.stored().items())
        assert changed == sum(value.numel() for value in given.values())


def test_a_source_that_makes_its_weights_takes_none() -> None:
    space = ConvNetSpace([Stage((4,), (1,), (3, 5), block="residual")], 4, resolutions=(6,))
    with pytest.raises(TypeError, match=r"TemplateWeights cannot be given weights .* use SharedWeights"):
        TemplateWeights(space, share="layer").assign(space.smallest(), {})
    source = SharedWeights(space, kernel_transform=True)
    with pytest.raises(TypeError, match=r"made by kernel_transform .* use an architecture of the largest kernels"):
        source.assign(space.smallest(), source(space.smallest()))
