"""Implicit hypernetworks: positions, resampling, order of channels, and the function of each tensor."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from hypernets import (
    ImplicitHyperNetwork,
    Parametrization,
    Size,
    Target,
    Unit,
    interpolation,
    load,
    path_length,
    resample,
    save_hypernetwork,
    shortest_path,
)
from hypernets.coordinates import bounded_frequencies, fourier, positions


def network(width):
    return nn.Sequential(nn.Conv2d(2, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width, 3))


def made(width=8, **options):
    torch.manual_seed(0)
    return ImplicitHyperNetwork(Target.of(network(width)), {"width": Size(4, 8)}, width=5, **options)


# Positions ---------------------------------------------------------------------------------------------------------


def test_positions_are_centres_of_cells_and_noise_stays_within_them():
    assert positions(4).tolist() == [0.125, 0.375, 0.625, 0.875]
    generator = torch.Generator().manual_seed(0)
    jittered = torch.stack([positions(4, noise=1.0, generator=generator) for _ in range(50)])
    cells = (jittered * 4).floor()
    assert torch.equal(cells, torch.arange(4.0).expand(50, 4))
    assert jittered.std(0).min() > 0.03
    half = torch.stack([positions(4, noise=0.5, generator=generator) for _ in range(50)])
    assert ((half - positions(4)).abs() <= 0.5 / 2 / 4 + 1e-6).all()


def test_fourier_features_are_sines_and_cosines_of_doubling_frequency_with_norm_one():
    places = torch.tensor([0.0, 0.3, 1.0])
    found = fourier(places, 3)
    for row, place in zip(found.tolist(), places.tolist(), strict=True):
        expected = [math.sin(2**k * math.pi * place) for k in range(3)]
        expected += [math.cos(2**k * math.pi * place) for k in range(3)]
        assert row == pytest.approx([value / math.sqrt(3) for value in expected], abs=1e-5)
    assert found.norm(dim=1).tolist() == pytest.approx([1, 1, 1])


def test_frequencies_are_bounded_by_the_widest_axis():
    assert [bounded_frequencies(size) for size in (1, 2, 32, 33, 64)] == [1, 2, 6, 7, 7]
    assert made().functions.axes.shape[-1] == 2 * 4
    assert made(frequencies=2).functions.axes.shape[-1] == 2 * 2


# Resampling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "full"), [(3, 8), (7, 8), (8, 8), (11, 8), (1, 5)])
def test_interpolation_is_linear_between_the_centres_of_channels(size, full):
    values = torch.randn(full)
    found = resample(values, 0, interpolation(size, full))
    for j, value in enumerate(found.tolist()):
        place = min(max((j + 0.5) / size * full - 0.5, 0), full - 1)
        low = int(place)
        high = min(low + 1, full - 1)
        expected = values[low] * (1 - (place - low)) + values[high] * (place - low)
        assert value == pytest.approx(float(expected), abs=1e-5)


def test_an_axis_that_is_summed_over_keeps_the_size_of_its_sums():
    weight = torch.ones(2, 8, 3)
    found = resample(weight, 1, interpolation(5, 8, reads=True))
    assert found.shape == (2, 5, 3)
    torch.testing.assert_close(found.sum(1), weight.sum(1))


def test_packed_blocks_are_resampled_each_by_itself():
    values = torch.randn(12, 2)
    found = resample(values, 0, interpolation(6, 12, blocks=3))
    for block in range(3):
        alone = resample(values[4 * block : 4 * block + 4], 0, interpolation(2, 4))
        torch.testing.assert_close(found[2 * block : 2 * block + 2], alone)


@pytest.mark.parametrize("wrong", [{"size": 0, "full": 4}, {"size": 3, "full": 4, "blocks": 2}])
def test_sizes_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="multiples of the number of blocks"):
        interpolation(**wrong)


# Order of channels -------------------------------------------------------------------------------------------------


def test_channels_on_a_line_are_put_in_the_order_of_the_line():
    shuffled = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    order = shortest_path(shuffled[:, None].float())
    found = shuffled[order].tolist()
    assert found in (list(range(40)), list(range(39, -1, -1)))


@pytest.mark.parametrize("seed", range(4))
def test_the_path_is_nearly_the_shortest_of_all_and_always_a_permutation(seed):
    points = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed))
    order = shortest_path(points)
    assert sorted(order.tolist()) == list(range(6))
    apart = [[sum(abs(a - b) for a, b in zip(p, q, strict=True)) for q in points.tolist()] for p in points.tolist()]
    best = min(sum(apart[a][b] for a, b in itertools.pairwise(path)) for path in itertools.permutations(range(6)))
    assert best - 1e-4 <= path_length(points, order) <= 1.1 * best
    assert torch.equal(order, shortest_path(points))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_channels(count):
    assert sorted(shortest_path(torch.rand(count, 2)).tolist()) == list(range(count))


# The functions -----------------------------------------------------------------------------------------------------


def test_the_values_are_the_equation_evaluated_weight_by_weight():
    hypernet = made(layers=3)
    with torch.no_grad():
        for parameter in hypernet.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    asked = {"0.weight": (6, 2, 3, 3), "3.weight": (3, 6), "1.weight": (6,)}
    found = hypernet.deltas({"width": 6.0}, asked)
    code = hypernet.encoder(hypernet.encoder.read({"width": 6.0}, like=torch.zeros(1)))[0].double().detach().numpy()
    state = {key: value.double().numpy() for key, value in hypernet.functions.state_dict().items()}
    for name, shape in asked.items():
        place = hypernet.target.names.index(name)
        outputs = [math.prod(spec.shape[2:]) for spec in hypernet.target]
        head = slice(sum(outputs[:place]), sum(outputs[: place + 1]))
        full = hypernet.target[name]
        rows = range(shape[0])
        columns = range(shape[1]) if len(shape) > 1 else [None]
        for o, i in itertools.product(rows, columns):
            hidden = state["constant"][place] @ code + state["shift"][place]
            for axis, (index, size) in enumerate([(o, shape[0])] + ([] if i is None else [(i, shape[1])])):
                angles = np.pi * 2.0 ** np.arange(4) * (index + 0.5) / size
                features = np.concatenate([np.sin(angles), np.cos(angles)]) / 2
                hidden = hidden + state["axes"][axis, place] @ features
            hidden = np.maximum(hidden, 0)
            for layer in range(2):
                inner = state["hidden"][layer, place] @ hidden + state["hidden_shift"][layer, place]
                hidden = hidden + state["gates"][layer, place] * np.maximum(inner, 0)
            values = state["head"][head] @ hidden + state["head_shift"][head]
            values = values * (full.deviation or 0.1) / math.sqrt(5)
            if i is not None:
                values = values * full.shape[1] / shape[1]
            given = found[name][0, o] if i is None else found[name][0, o, i]
            np.testing.assert_allclose(given.detach().numpy().reshape(-1), values, atol=1e-5)


def test_smooth_deltas_do_not_drown_the_random_residual_beside_them():
    """Of a deep network, whose activations would grow with the operator norm of every layer."""
    target = Target.of(nn.Sequential(*(nn.Linear(48, 48) for _ in range(6))))
    torch.manual_seed(0)
    shares = []
    for _ in range(3):
        hypernet = ImplicitHyperNetwork(target, {"g": Unit()})
        for name, delta in hypernet.deltas({"g": 0.5}).items():
            if name.endswith("weight"):
                shares.append(
                    torch.linalg.matrix_norm(delta[0], 2) / torch.linalg.matrix_norm(hypernet.residual(name), 2)
                )
    assert 0.1 < torch.stack(shares).median() < 1


def test_weights_of_another_size_are_the_residual_resampled_and_the_delta():
    hypernet = made()
    weight = dict(hypernet.named_parameters())["residual.3/weight"].detach()
    asked = Target.of(network(5))
    found, deltas = hypernet.generate({"width": 5.0}, asked), hypernet.deltas({"width": 5.0}, asked)
    expected = resample(weight, 1, interpolation(5, 8, reads=True)) + deltas["3.weight"][0]
    torch.testing.assert_close(found["3.weight"][0], expected)
    assert {name: tuple(value.shape[1:]) for name, value in found.items()} == asked.shapes
    same = hypernet.generate({"width": 8.0})["3.weight"][0] - hypernet.deltas({"width": 8.0})["3.weight"][0]
    torch.testing.assert_close(same, weight)


def test_transposed_kernels_are_read_along_their_first_dimension():
    hypernet = ImplicitHyperNetwork(Target.of(nn.ConvTranspose2d(8, 4, 3)), {"g": Unit()}, width=4)
    weight = dict(hypernet.named_parameters())["residual.weight"].detach()
    found = hypernet.base(hypernet.specs({"weight": (6, 2, 3, 3)})[0])
    expected = resample(resample(weight, 0, interpolation(6, 8, reads=True)), 1, interpolation(2, 4))
    torch.testing.assert_close(found, expected)


def test_only_sizes_of_the_first_two_dimensions_may_differ_and_only_downwards():
    hypernet = made()
    for shape in ((9, 2, 3, 3), (8, 2, 5, 5), (0, 2, 3, 3), (8, 2, 3)):
        with pytest.raises(ValueError, match=r"at most those of the target.*0.weight is .* instead of \(8, 2, 3, 3\)"):
            hypernet.generate({"width": 8.0}, {"0.weight": shape})
    with pytest.raises(ValueError, match="must lie in"):
        hypernet.generate({"width": 9.0}, {"0.weight": (8, 2, 3, 3)})
    wide = made(extrapolate=True)
    assert wide.generate({"width": 8.0}, {"0.weight": (9, 2, 3, 3)})["0.weight"].shape == (1, 9, 2, 3, 3)


def test_noise_is_drawn_in_training_alone_and_never_reaches_another_tensor():
    hypernet = made(noise=1.0)
    condition = {"width": 8.0}

    def deltas(seed):
        return hypernet.deltas(condition, generator=None if seed is None else torch.Generator().manual_seed(seed))

    assert torch.equal(deltas(1)["0.weight"], deltas(1)["0.weight"])
    assert (deltas(1)["0.weight"] != deltas(2)["0.weight"]).any()
    assert (deltas(1)["0.weight"] != deltas(None)["0.weight"]).any()
    before = deltas(1)
    with torch.no_grad():
        place = hypernet.target.names.index("0.weight")
        for parameter in (hypernet.functions.constant, hypernet.functions.axes[0], hypernet.functions.hidden[0]):
            parameter[place] += 1.0
    after = deltas(1)
    assert [name for name in before if (before[name] != after[name]).any()] == ["0.weight"]
    hypernet.eval()
    assert torch.equal(deltas(1)["0.weight"], deltas(None)["0.weight"])


def test_the_average_is_the_mean_of_one_set_without_noise_and_others_with_it():
    hypernet = made(noise=1.0)
    generator = torch.Generator().manual_seed(3)
    condition = {"width": torch.tensor([4.0, 8.0])}
    sets = [hypernet.generate(condition), *(hypernet.generate(condition, generator=generator) for _ in range(2))]
    found = hypernet.eval().average(condition, samples=3, generator=torch.Generator().manual_seed(3))
    for name, value in found.items():
        torch.testing.assert_close(value, sum(each[name] for each in sets) / 3)
    with pytest.raises(ValueError, match="samples must be >= 1"):
        hypernet.average(condition, samples=0, generator=generator)


def test_it_is_saved_and_loaded_with_its_options(tmp_path):
    hypernet = made(layers=1, noise=0.5, extrapolate=True, parametrization=Parametrization(head_init="zero"))
    assert all(float(value.detach().abs().max()) == 0 for value in hypernet.deltas({"width": 5.0}).values())
    restored = load(save_hypernetwork(hypernet, tmp_path / "it.safetensors"))
    assert (restored.layers, restored.noise, restored.extrapolate) == (1, 0.5, True)
    asked = {"3.weight": (3, 9)}
    expected = hypernet.eval().generate({"width": 5.0}, asked)["3.weight"]
    assert torch.equal(restored.generate({"width": 5.0}, asked)["3.weight"], expected)


@pytest.mark.parametrize("wrong", [{"layers": 0}, {"frequencies": 0}, {"noise": -0.1}, {"noise": 1.5}])
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        made(**wrong)
