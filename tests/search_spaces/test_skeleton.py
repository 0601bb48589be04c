import threading

import pytest
import torch
from torch import nn

from search_spaces import MLPSpace, fill, skeleton
from search_spaces.bare import bare_layers, layer


@pytest.fixture
def space():
    return MLPSpace(4, 2, widths=(4, 8), depths=(1, 2))


def test_a_layer_is_that_of_torch_with_and_without_initialisation():
    real = layer(nn.Conv2d, 3, 4, 3, bias=False)
    with bare_layers():
        before = torch.get_rng_state()
        bare = layer(nn.Conv2d, 3, 4, 3, bias=False)
        assert torch.equal(torch.get_rng_state(), before)
    assert type(bare) is type(real) is nn.Conv2d
    assert vars(bare).keys() == vars(real).keys()
    bare.reset_parameters()
    assert bare.weight.std() > 0


def test_leaving_initialisers_out_ends_with_the_block_even_after_an_error():
    with pytest.raises(RuntimeError, match="stop"), bare_layers():
        raise RuntimeError("stop")
    before = torch.get_rng_state()
    layer(nn.Linear, 2, 2)
    assert not torch.equal(torch.get_rng_state(), before)


def test_another_thread_initialises_while_this_one_does_not(space):
    spread: list[float] = []

    def build() -> None:
        module = space.build(space.largest())
        spread.append(module.get_parameter("linear1.weight").detach().std().item())
        spread.append(module.get_parameter("norm1.weight").detach().mean().item())

    with bare_layers():
        thread = threading.Thread(target=build)
        thread.start()
        thread.join()
    assert spread[0] > 0.05
    assert spread[1] == 1


def test_many_threads_build_the_right_modules(space):
    problems: list[Exception] = []

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        try:
            for _ in range(25):
                architecture = space.sample(generator)
                donor = space.build(architecture)
                module = fill(skeleton(space, architecture), donor.state_dict()).eval()
                x = torch.randn(2, 4, generator=generator)
                assert torch.equal(module(x), donor.eval()(x))
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_fill_names_every_difference_and_replaces_nothing(space):
    module = space.build(space.largest())
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    tensors = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
    del tensors["norm1.running_mean"]
    tensors["head.weight"] = torch.zeros(1, 1)
    tensors["stray"] = torch.zeros(1)
    with pytest.raises(ValueError, match="tensors do not fit the module") as caught:
        fill(module, tensors)
    for part in ("norm1.running_mean: missing", "head.weight: expected (2, 8), got (1, 1)", "stray: unexpected"):
        assert part in str(caught.value)
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in before.items())


def test_fill_ties_what_is_given_the_same_tensor():
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    shared = torch.ones(2, 2)
    fill(module, {"0.weight": shared, "1.weight": shared})
    assert module[0].weight is module[1].weight
    assert module.get_parameter("0.weight").data_ptr() == shared.data_ptr()


def test_fill_reaches_recurrent_layers_and_leaves_other_buffers_alone():
    donor, module = nn.LSTM(2, 3), nn.LSTM(2, 3)
    module.register_buffer("scratch", torch.ones(1), persistent=False)
    fill(module, donor.state_dict())
    x = torch.randn(4, 1, 2)
    assert torch.equal(module(x)[0], donor(x)[0])
    assert module.get_buffer("scratch").item() == 1


def test_fill_copies_into_memory_of_the_modules_own_when_asked():
    donor, module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    module.get_parameter("0.bias").requires_grad_(False)
    own = {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}
    given = {name: torch.full_like(tensor, 3) for name, tensor in donor.state_dict().items()}
    fill(module, given, copy=True)
    assert {name: tensor.data_ptr() for name, tensor in module.state_dict().items()} == own
    assert all(torch.equal(tensor, given[name]) for name, tensor in module.state_dict().items())
    assert [p.requires_grad for p in module.parameters()] == [True, False, True, True]


def test_fill_copies_where_the_module_has_no_memory_or_another_type():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module.get_parameter("0.weight").untyped_storage().resize_(0)
    given = {name: torch.randn(tensor.shape) for name, tensor in module.state_dict().items()}
    given["0.bias"] = torch.ones(2, dtype=torch.float64)
    fill(module, given, copy=True)
    for name, tensor in module.state_dict().items():
        assert tensor.dtype == given[name].dtype
        assert torch.equal(tensor, given[name])
        assert tensor.data_ptr() != given[name].data_ptr()


def test_fill_by_copy_gives_every_name_its_own_tensor_even_where_the_module_was_tied():
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    module[1].weight = module[0].weight
    fill(module, {"0.weight": torch.zeros(2, 2), "1.weight": torch.ones(2, 2)}, copy=True)
    assert torch.equal(module.get_parameter("0.weight"), torch.zeros(2, 2))
    assert torch.equal(module.get_parameter("1.weight"), torch.ones(2, 2))
    shared = torch.full((2, 2), 2.0)
    fill(module, {"0.weight": shared, "1.weight": shared}, copy=True)
    assert module[0].weight is module[1].weight
    assert module.get_parameter("0.weight").data_ptr() != shared.data_ptr()
