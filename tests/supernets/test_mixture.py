"""Mixtures of experts: the equations, what keeps experts apart, kept mixtures, and what is refused."""

import copy
import threading
from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from search_spaces import Architecture, ConvNetSpace, FactorySpace, MLPSpace, SearchSpace, Stage
from supernets import Classification, MixtureWeights, SharedWeights, Supernet


def mlp() -> MLPSpace:
    return MLPSpace(5, 3, widths=(4, 6), depths=(1, 2), batch_norm=False)


def convnet() -> ConvNetSpace:
    return ConvNetSpace([Stage((4, 6), (1, 2), (3, 5), (1, 2), block="residual")], 3, resolutions=(6,))


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, width)
        self.fc2 = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.fc2(self.fc1(x).relu())
        return outputs


class Stack(nn.Module):
    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(FeedForward(width) for _ in range(blocks))
        self.skips = nn.ModuleList(nn.Linear(4, 4) for _ in range(blocks))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block, skip in zip(self.blocks, self.skips, strict=True):
            x = skip(x) + block(x)
        outputs: Tensor = self.head(x)
        return outputs


def stack() -> FactorySpace:
    return FactorySpace(Stack, {"width": [4, 8], "blocks": [1, 2]}, input_shape=(4,))


def shaken(source: MixtureWeights) -> MixtureWeights:
    """Move every parameter, so that nothing is zero or symmetric by its initial value."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return source


def numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def hidden_units(source: MixtureWeights, place: int, encoding: np.ndarray) -> np.ndarray:
    state = source.router.state_dict()
    weight, bias = numbers(state["hidden.weight"][place]), numbers(state["hidden.bias"][place])
    return np.array([max(0.0, sum(weight[u] * encoding) + bias[u]) for u in range(len(bias))])


def layer_weights(source: MixtureWeights, place: int, architecture: Architecture) -> np.ndarray:
    """``softmax(A2 relu(A1 e + a1) + a2)`` of one layer, from the state alone."""
    state = source.router.state_dict()
    units = hidden_units(source, place, numbers(source.space.encode(architecture)))
    return softmax(numbers(state["head.weight"][place]) @ units + numbers(state["head.bias"][place]))


def expert_values(source: MixtureWeights, name: str) -> list[np.ndarray]:
    """Every full-size expert of one tensor, from the state alone."""
    owner, _, leaf = name.rpartition(".")
    state = source.state_dict()
    others = state[f"bank.layers./{owner.replace('.', '/')}.{leaf}"]
    return [numbers(state[f"shared.largest.{name}"]), *(numbers(other) for other in others)]


def architectures(space: SearchSpace, count: int = 4) -> list[Architecture]:
    generator = torch.Generator().manual_seed(1)
    return [space.smallest(), space.largest(), *(space.sample(generator) for _ in range(count))]


@pytest.mark.parametrize("experts", [2, 3])
def test_layer_routing_mixes_every_tensor_of_a_layer_by_one_softmax(experts: int) -> None:
    space = mlp()
    source = shaken(MixtureWeights(space, experts=experts, hidden=7, seed=3))
    layers = ["linear1", "linear2", "head"]
    for architecture in architectures(space):
        tensors = source(architecture)
        for name, tensor in tensors.items():
            weights = layer_weights(source, layers.index(name.partition(".")[0]), architecture)
            cut = tuple(slice(size) for size in tensor.shape)
            expected = sum(p * expert[cut] for p, expert in zip(weights, expert_values(source, name), strict=True))
            np.testing.assert_allclose(numbers(tensor), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("experts", [2, 3])
def test_neuron_routing_mixes_each_row_and_its_bias_by_its_own_softmax(experts: int) -> None:
    space = mlp()
    source = shaken(MixtureWeights(space, experts=experts, routing="neuron", hidden=7, seed=3))
    state = source.router.state_dict()
    for architecture in architectures(space):
        tensors, encoding = source(architecture), numbers(space.encode(architecture))
        for name, tensor in tensors.items():
            place = ["linear1", "linear2", "head"].index(name.partition(".")[0])
            units = hidden_units(source, place, encoding)
            weight, bias = numbers(state[f"heads.{place}.weight"]), numbers(state[f"heads.{place}.bias"])
            values = expert_values(source, name)
            for row in range(len(tensor)):
                shares = softmax(weight[row] @ units + bias[row])
                cut = (row, *(slice(size) for size in tensor.shape[1:]))
                expected = sum(p * expert[cut] for p, expert in zip(shares, values, strict=True))
                np.testing.assert_allclose(numbers(tensor[row]), expected, rtol=1e-5, atol=1e-6)


def full_mixtures(source: MixtureWeights, architecture: Architecture) -> dict[str, Tensor]:
    """Every mixed tensor at its largest shape, row by row and expert by expert."""
    zero = torch.zeros(source.experts)
    decisions = [numbers(d) for d in source.router.decisions(source.space.encode(architecture), zero)]
    mixed = {}
    for name in source.bank.names:
        stored = source.shared.stored()[name]
        if source.rank is None:
            values = expert_values(source, name)
        else:
            parameters = dict(source.bank.named_parameters())
            key = f"layers./{name.rpartition('.')[0].replace('.', '/')}.{name.rpartition('.')[2]}"
            rows, columns = numbers(parameters[f"{key}_rows"]), numbers(parameters[f"{key}_columns"].flatten(1))
            values = []
            for expert in range(source.experts):
                units = range(expert * source.rank, (expert + 1) * source.rank)
                product = sum(np.outer(rows[:, unit], columns[unit]) for unit in units)
                values.append(numbers(stored) + product.reshape(stored.shape))
        place = source.router._places[name]
        result = np.zeros(stored.shape)
        for row in range(len(stored)):
            shares = decisions[0][place] if source.routing == "layer" else decisions[place][row]
            result[row] = sum(p * value[row] for p, value in zip(shares, values, strict=True))
        mixed[name] = torch.tensor(result, dtype=torch.float32)
    return mixed


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"experts": 3},
        {"routing": "neuron"},
        {"kernel_transform": True},
        {"kernel_transform": True, "routing": "neuron", "experts": 3},
        {"rank": 2, "experts": 3},
        {"rank": 2, "routing": "neuron", "kernel_transform": True},
    ],
    ids=str,
)
def test_cutting_experts_before_they_are_mixed_changes_nothing(options: dict[str, Any]) -> None:
    space = convnet()
    source = shaken(MixtureWeights(space, hidden=4, group_bias=0.0, mixed=["stage*conv?.weight"], **options))
    assert any("conv" in name for name in source.bank.names)
    for architecture in architectures(space):
        tensors = source(architecture)
        mixed_first = source.shared.cut(architecture, source.shared.stored() | full_mixtures(source, architecture))
        for name, expected in mixed_first.items():
            torch.testing.assert_close(tensors[name], expected, rtol=1e-5, atol=1e-5)


def test_the_middle_of_three_groups_is_biased_towards_the_middle_expert() -> None:
    space = MLPSpace(5, 3, widths=(4, 6, 8), depths=(1,))
    source = MixtureWeights(space, experts=3, rank=2)
    assert source.group_bias is None
    for width, logits in ((4, [3, 0, 0]), (6, [0, 3, 0]), (8, [0, 0, 3])):
        architecture = space.architecture({"depth": 1, "layer1.width": width})
        (decided,) = source.router.decisions(*source._code(architecture))
        expected = softmax(np.array(logits, float))
        np.testing.assert_allclose(numbers(decided), np.broadcast_to(expected, decided.shape), rtol=1e-5)
    stronger = MixtureWeights(space, experts=2, group_bias=5.0)
    (decided,) = stronger.router.decisions(*stronger._code(space.middle()))  # half way between two groups
    np.testing.assert_allclose(numbers(decided), np.full(decided.shape, 0.5), rtol=1e-5)


def test_low_rank_experts_start_at_the_shared_weights() -> None:
    space = mlp()
    source, shared = MixtureWeights(space, rank=2, seed=4), SharedWeights(space, seed=4)
    for architecture in architectures(space):
        expected = shared(architecture)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in source(architecture).items())


@pytest.mark.parametrize("options", [{}, {"routing": "neuron"}, {"rank": 2, "group_bias": 2.0}], ids=str)
@pytest.mark.parametrize("space", [mlp(), convnet()], ids=["mlp", "convnet"])
def test_a_relaxed_architecture_of_single_candidates_is_mixed_like_the_architecture(
    space: SearchSpace, options: dict[str, Any]
) -> None:
    source = shaken(MixtureWeights(space, hidden=4, mixed=["*.weight"], **options))
    for architecture in architectures(space, 1):
        relaxed = space.relax(architecture)
        tensors, soft = source(architecture), source.relaxed(relaxed)
        assert soft.keys() >= set(dict(space.build(architecture).named_parameters()))
        ours = {name: soft[name] for name in source.shared.stored()}
        mine = source.shared.cut(architecture, ours)
        for name, tensor in mine.items():
            torch.testing.assert_close(tensor, tensors[name], rtol=1e-5, atol=1e-6)


def test_weights_of_choices_get_gradients_through_the_router() -> None:
    space = mlp()
    source = shaken(MixtureWeights(space, hidden=4))
    relaxed = space.relax(space.largest())
    for weights in relaxed.values():
        weights.requires_grad_()
    source.relaxed(relaxed)["linear1.bias"].sum().backward()
    assert relaxed["depth"].grad is not None
    assert relaxed["depth"].grad.abs().sum() > 0


def test_the_linear_maps_of_one_block_share_their_decision_and_list_items_do_not() -> None:
    source = MixtureWeights(stack(), hidden=4)
    places = source.router._places
    groups: dict[int, set[str]] = {}
    for name, place in places.items():
        groups.setdefault(place, set()).add(name.rpartition(".")[0])
    expected = [{"blocks.0.fc1", "blocks.0.fc2"}, {"blocks.1.fc1", "blocks.1.fc2"}, {"skips.0"}, {"skips.1"}, {"head"}]
    assert sorted(map(sorted, groups.values())) == sorted(map(sorted, expected))


def test_convolutions_are_mixed_by_default_and_linear_layers_where_there_are_none() -> None:
    assert set(mlp().mixed()) == {
        f"{layer}.{leaf}" for layer in ("linear1", "linear2", "head") for leaf in ("weight", "bias")
    }
    names = convnet().mixed()
    assert names
    kinds = dict(convnet().superset().named_modules())
    assert all(isinstance(kinds[name.rpartition(".")[0]], nn.Conv2d) for name in names)
    assert set(MixtureWeights(convnet()).bank.names) == set(names)


def test_experts_start_apart_and_the_global_random_state_is_left() -> None:
    state = torch.get_rng_state()
    source = MixtureWeights(mlp(), experts=3, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    for name in source.bank.names:
        if name.endswith("weight"):
            values = expert_values(source, name)
            assert not np.allclose(values[0], values[1])
            assert not np.allclose(values[1], values[2])
    again, other = MixtureWeights(mlp(), experts=3, seed=2).state_dict(), MixtureWeights(mlp(), experts=3, seed=5)
    assert all(torch.equal(value, again[name]) for name, value in source.state_dict().items())
    assert not torch.equal(next(other.bank.parameters()), next(source.bank.parameters()))


def regress(source: MixtureWeights, steps: int) -> None:
    """Train on a target that asks the widths for different things."""
    optimizer = torch.optim.SGD(source.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        inputs = torch.randn(16, 5, generator=generator)
        for sign, architecture in ((1, source.space.smallest()), (-1, source.space.largest())):
            module = source.space.build(architecture)
            outputs = torch.func.functional_call(module, source(architecture), (inputs,))
            (outputs - sign * inputs[:, :3]).square().mean().backward()
        optimizer.step()


def test_equal_experts_under_equal_weights_never_part_and_others_do() -> None:
    source = MixtureWeights(mlp(), hidden=4)
    with torch.no_grad():
        for parameter in source.router.head.parameters():
            parameter.zero_()
        for name in source.bank.names:
            source.bank._get(name).copy_(source.shared.stored()[name])
    regress(source, 20)
    assert all(torch.equal(source.bank._get(name)[0], source.shared.stored()[name]) for name in source.bank.names)
    assert source.diagnostics()["expert_similarity"] == pytest.approx(1, abs=1e-6)
    assert source.diagnostics()["routing_entropy"] == pytest.approx(1)
    source.spread(0.1)
    apart = np.subtract(*expert_values(source, "linear1.weight"))
    regress(source, 60)
    further = np.subtract(*expert_values(source, "linear1.weight"))
    assert np.linalg.norm(further - apart) > 1e-2 * np.linalg.norm(apart)
    assert source.router.head.weight.any()


def test_spreading_starts_experts_near_the_loaded_weights() -> None:
    space = mlp()
    trained = SharedWeights(space, seed=8)
    source = MixtureWeights(space, experts=3, seed=1)
    source.shared.largest.load_state_dict(trained.largest.state_dict())
    source.spread(0.1)
    for name, stored in trained.stored().items():
        first, *others = expert_values(source, name)
        np.testing.assert_array_equal(first, numbers(stored))
        if name.endswith("weight"):
            for other in others:
                assert np.std(other - first) == pytest.approx(0.1 * np.std(first), rel=0.5)
            assert not np.array_equal(others[0], others[1])


def test_the_constant_encoding_hides_the_architecture_from_the_router() -> None:
    space = mlp()
    for options in ({}, {"rank": 2}, {"routing": "neuron"}):
        source = shaken(MixtureWeights(space, encoding="constant", hidden=4, **options))
        small, large = source(space.smallest()), source(space.largest())
        open_source = shaken(MixtureWeights(space, hidden=4, **options))
        assert torch.allclose(small["linear1.weight"], large["linear1.weight"][:4], atol=1e-6)
        told = open_source(space.smallest())["linear1.weight"]
        assert not torch.allclose(told, open_source(space.largest())["linear1.weight"][:4], atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}])
def test_training_between_two_evaluations_is_seen(options: dict[str, bool]) -> None:
    space = mlp()
    source = MixtureWeights(space)
    optimizer = torch.optim.AdamW(source.parameters(), lr=0.1, **options)  # type: ignore[arg-type]
    for _ in range(3):
        source.eval()
        with torch.no_grad():
            kept = {name: tensor.clone() for name, tensor in source(space.largest()).items()}
        fresh = copy.deepcopy(source)(space.largest())
        assert all(torch.equal(kept[name], fresh[name]) for name in fresh)
        source.train()
        source(space.largest())["linear1.weight"].square().sum().backward()
        optimizer.step()


def test_a_mixture_is_kept_until_a_weight_changes() -> None:
    space = mlp()
    source = MixtureWeights(space).eval()
    architecture = space.middle()
    with torch.no_grad():
        first, again = source(architecture), source(architecture)
        assert all(again[name] is first[name] for name in first)
        optimizer = torch.optim.AdamW(source.parameters(), lr=0.1)
    source(architecture)["head.weight"].sum().backward()
    assert source(architecture)["head.weight"].requires_grad
    optimizer.step()
    with torch.no_grad():
        stepped = source(architecture)
        assert not torch.equal(stepped["head.weight"], first["head.weight"])
        source.load_state_dict(MixtureWeights(space, seed=6).state_dict())
        loaded = source(architecture)
    expected = MixtureWeights(space, seed=6)(architecture)
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert source.double()(architecture)["head.weight"].dtype == torch.float64
    with torch.no_grad():
        assert source(architecture)["head.weight"].dtype == torch.float64


def test_tensors_of_inference_mode_are_not_handed_to_training() -> None:
    space = mlp()
    source = MixtureWeights(space)
    source.eval()
    with torch.inference_mode():
        assert source(space.smallest())["head.weight"].is_inference()
    with torch.no_grad():
        tensors = source(space.smallest())
    inputs = torch.randn(2, 5, requires_grad=True)
    torch.func.functional_call(space.build(space.smallest()), tensors, (inputs,)).sum().backward()
    assert inputs.grad is not None


def test_buffers_are_never_kept() -> None:
    space = MLPSpace(5, 3, widths=(4, 6), depths=(1,))
    source = MixtureWeights(space)
    with torch.no_grad():
        source(space.smallest())["norm1.running_mean"].add_(1)
        assert not source(space.smallest())["norm1.running_mean"].any()


def test_many_threads_mix_without_getting_in_each_others_way() -> None:
    space = convnet()
    source = shaken(MixtureWeights(space, routing="neuron", hidden=4))
    wanted = architectures(space, 6)
    with torch.no_grad():
        expected = [{name: tensor.clone() for name, tensor in source(a).items()} for a in wanted]
    wrong: list[object] = []

    def work(offset: int) -> None:
        try:
            with torch.no_grad():
                for turn in range(24):
                    place = (turn * 5 + offset) % len(wanted)
                    tensors = source(wanted[place])
                    wrong.extend(n for n, tensor in expected[place].items() if not torch.equal(tensors[n], tensor))
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_extracted_subnetwork_is_a_plain_module_that_costs_what_it_always_costs() -> None:
    space = convnet()
    supernet = Supernet(space, Classification(3), source=lambda given: MixtureWeights(given, experts=4))
    for architecture in architectures(space, 1):
        extracted, plain = supernet.extract(architecture), space.build(architecture)
        assert type(extracted) is type(plain)
        shapes = {name: tensor.shape for name, tensor in extracted.state_dict().items()}
        assert shapes == {name: tensor.shape for name, tensor in plain.state_dict().items()}


def test_diagnostics_are_logged_at_validation(labelled: Callable[..., Any], fit: Callable[..., Any]) -> None:
    space = MLPSpace(12, 4, widths=(6, 10), depths=(1, 2))
    supernet = Supernet(space, Classification(4), source=MixtureWeights)

    class Given(L.LightningDataModule):
        def train_dataloader(self) -> Any:
            return labelled(space)

        def val_dataloader(self) -> Any:
            return labelled(space)

    trainer = fit(supernet, None, 1, datamodule=Given(), val_check_interval=1)
    assert 0.5 < trainer.callback_metrics["val/source/routing_entropy"] <= 1
    assert -0.5 < trainer.callback_metrics["val/source/expert_similarity"] < 0.9


def test_diagnostics_tell_a_single_expert_from_an_even_mixture() -> None:
    source = MixtureWeights(mlp(), experts=4, routing="neuron", hidden=4)
    with torch.no_grad():
        for head in source.router.heads:
            head.weight.zero_()
            head.bias.zero_()
        assert source.diagnostics()["routing_entropy"] == pytest.approx(1)
        for head in source.router.heads:
            head.bias[:, 2] = 50.0
    assert source.diagnostics()["routing_entropy"] == pytest.approx(0, abs=1e-6)
    first, second = source.bank._get("head.weight").detach()[:2]
    lone = MixtureWeights(mlp(), mixed=["head.weight"], experts=3)
    with torch.no_grad():
        lone.bank._get("head.weight").copy_(torch.stack([first, second]))
    values = [value.ravel() for value in expert_values(lone, "head.weight")]
    pairs = [(0, 1), (0, 2), (1, 2)]
    cosine = [values[i] @ values[j] / np.linalg.norm(values[i]) / np.linalg.norm(values[j]) for i, j in pairs]
    assert lone.diagnostics()["expert_similarity"] == pytest.approx(np.mean(cosine), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 1}, "experts must be at least 2, got 1; use SharedWeights"),
        ({"hidden": 0}, "hidden must be at least 1, got 0"),
        ({"routing": "token"}, "routing must be 'layer' or 'neuron', got 'token'"),
        ({"encoding": "one-hot"}, "encoding must be 'architecture' or 'constant', got 'one-hot'"),
        ({"mixed": ["*.weight", "fc*"]}, r"\['fc\*'\] match none; choose among .*'linear1.weight'"),
        ({"mixed": []}, "must be globs"),
        ({"mixed": ["*.bias"], "rank": 1}, "nothing to mix: .* of 2 or more dimensions"),
        ({"rank": 0}, "rank must be at least 1 .* got 0"),
        ({"rank": 4}, "got 4 where 'head.weight' has 3; choose a smaller rank"),
    ],
)
def test_what_cannot_be_mixed_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixtureWeights(mlp(), **options)


def test_spreading_that_does_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="noise > 0, got 0"):
        MixtureWeights(mlp()).spread(0)
    with pytest.raises(ValueError, match="leave it out"):
        MixtureWeights(mlp(), rank=2).spread()


def test_tied_tensors_are_mixed_once(tied_space: SearchSpace) -> None:
    source = shaken(MixtureWeights(tied_space, hidden=4))
    assert source.bank.names == ("encode.weight",)
    tensors = source(tied_space.smallest())
    assert tensors["decode.weight"] is tensors["encode.weight"]


@pytest.mark.parametrize("options", [{}, {"rank": 2, "routing": "neuron"}], ids=str)
def test_a_mixture_has_the_precision_of_its_weights_under_autocast(options: dict[str, Any]) -> None:
    source = shaken(MixtureWeights(mlp(), hidden=4, **options))
    architecture = source.space.middle()
    expected = source(architecture)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tensors = source(architecture)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())


def test_biases_of_experts_and_routers_are_spared_weight_decay(
    labelled: Callable[..., Any], fit: Callable[..., L.Trainer]
) -> None:
    space = MLPSpace(12, 4, widths=(6, 10), depths=(1, 2), batch_norm=False)
    supernet = Supernet(space, Classification(4), source=lambda given: MixtureWeights(given, hidden=4))
    spared = set(map(id, fit(supernet, labelled(space), 1).optimizers[0].param_groups[1]["params"]))
    parameters = dict(supernet.source.named_parameters())
    assert spared == {id(parameter) for name, parameter in parameters.items() if name.endswith("bias")}


def test_scales_of_norms_are_spared_in_every_expert(
    labelled: Callable[..., Any], fit: Callable[..., L.Trainer]
) -> None:
    space = MLPSpace(12, 4, widths=(6, 10), depths=(1,))
    supernet = Supernet(space, Classification(4), source=lambda given: MixtureWeights(given, mixed=["*"], hidden=4))
    spared = set(map(id, fit(supernet, labelled(space), 1).optimizers[0].param_groups[1]["params"]))
    scales = [parameter for name, parameter in supernet.source.named_parameters() if "norm1" in name]
    assert len(scales) == 4
    assert {id(parameter) for parameter in scales} <= spared
