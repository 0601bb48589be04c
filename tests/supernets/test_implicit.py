"""Implicit weights: resampling over coupled channels, sizes that were never candidates, order, teacher, functions."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from hypernets import interpolation, path_length, resample
from search_spaces import (
    Candidate,
    ConvNetSpace,
    FactorySpace,
    InvalidArchitectureError,
    MLPSpace,
    SearchSpace,
    Stage,
    TransformerSpace,
    couplings,
)
from supernets import (
    Classification,
    ImplicitWeights,
    ProgressiveRule,
    SharedWeights,
    ShrinkingStage,
    Supernet,
    UniformRule,
    load,
    save,
    sort_channels,
)
from supernets.implicit import path_of
from tests.supernets.conftest import Batches, random_inputs

Fit = Callable[..., L.Trainer]


def perceptron() -> MLPSpace:
    return MLPSpace(3, 4, widths=(4, 8), depths=(1, 2), batch_norm=False)


def residual() -> ConvNetSpace:
    return ConvNetSpace([Stage((4, 8), (1, 2), (3, 5), (1.0, 2.0), block="residual")], 4, resolutions=(6,))


def shaken(source: ImplicitWeights, functions: bool = True) -> ImplicitWeights:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in source.named_parameters():
            if functions or not name.startswith("hypernet"):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return source


def outputs(source: ImplicitWeights, values: Mapping[str, Candidate] | None = None) -> Tensor:
    """What the largest network, or one of these sizes, computes from its own batch statistics."""
    space = source.space
    architecture = space.largest() if values is None else source.sized(values)
    module = space.build(architecture).train()
    result: Tensor = torch.func.functional_call(module, source(architecture), (random_inputs(space),))
    return result.detach()


def test_at_first_every_network_is_the_largest_one_resampled() -> None:
    source = ImplicitWeights(perceptron(), width=4, seed=3)
    stored = {name: tensor.detach() for name, tensor in SharedWeights(perceptron(), seed=3).stored().items()}
    found = source(source.sized({"depth": 2, "layer1.width": 4, "layer2.width": 7}))
    rows, first, second = interpolation(7, 8), interpolation(4, 8), interpolation(4, 8, reads=True)
    torch.testing.assert_close(found["linear1.weight"], resample(stored["linear1.weight"], 0, first))
    expected = resample(resample(stored["linear2.weight"], 0, rows), 1, second)
    torch.testing.assert_close(found["linear2.weight"], expected)
    torch.testing.assert_close(found["linear2.bias"], resample(stored["linear2.bias"], 0, rows))
    torch.testing.assert_close(
        found["head.weight"], resample(stored["head.weight"], 1, interpolation(7, 8, reads=True))
    )
    assert torch.equal(found["head.bias"], stored["head.bias"])
    largest = source(source.space.largest())
    assert all(torch.equal(largest[name], tensor) for name, tensor in stored.items())


def test_functions_add_what_the_hypernetwork_generates_for_the_size_and_kernels_are_cut_at_their_centre() -> None:
    source = shaken(ImplicitWeights(residual(), width=4))
    architecture = source.sized({"stage1.width": 5, "stage1.depth": 1, "stage1.kernel": 3, "stage1.expansion": 2})
    name = "stage1.block1.conv1.weight"
    found = source(architecture)[name]
    stored = source.shared.stored()[name]
    code = torch.tensor([0.25, 0.0, 0.0, 1.0])  # width 5 of 4 to 8, depth 1 of 1 to 2, kernel 3 of 5, expansion 2 of 2
    delta = source.hypernet.deltas({"architecture": code[None]}, {name: (10, 16, 5, 5)})[name][0]
    whole = resample(stored, 0, interpolation(10, 16)) + delta
    assert found.shape == (10, 16, 3, 3)
    torch.testing.assert_close(found, whole[:, :, 1:4, 1:4])


def test_sizes_that_are_no_candidates_run_train_and_can_be_taken_away(
    fit: Fit, labelled: Callable[..., Batches]
) -> None:
    space = residual()
    supernet = Supernet(
        space, Classification(4), source=lambda given: ImplicitWeights(given, width=4), rule=UniformRule()
    )
    fit(supernet, labelled(space), 2)
    architecture = supernet.source.sized(
        {"stage1.width": 7, "stage1.depth": 2, "stage1.kernel": 3, "stage1.expansion": 1.5}
    )
    extracted: Any = supernet.extract(architecture)
    assert extracted.stage1.block1.conv1.out_channels == 11
    inputs = random_inputs(space)
    assert torch.equal(extracted(inputs), supernet.bind(architecture)(inputs))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depth": 1, "layer1.width": 9}, r"'layer1.width'\] must lie in \[4, 8\].*got 9; set extrapolate: true"),
        ({"depth": 1, "layer1.width": 3}, r"must lie in \[4, 8\]"),
        ({"depth": 1, "layer1.width": 5.5}, r"must be a whole number or one of \(4, 8\), got 5.5"),
        ({"depth": 1}, r"'layer1.width'\] is missing"),
        ({"depth": 1, "width": 4}, "no choice 'width'"),
    ],
)
def test_other_sizes_are_refused(values: Mapping[str, Candidate], message: str) -> None:
    source = ImplicitWeights(perceptron(), width=4)
    with pytest.raises(InvalidArchitectureError, match=message):
        source.sized(values)


def test_sizes_outside_the_range_are_given_where_they_are_asked_for() -> None:
    source = shaken(ImplicitWeights(perceptron(), width=4, extrapolate=True))
    for width in (2, 11):
        found = source(source.sized({"depth": 1, "layer1.width": width}))
        assert found["linear1.weight"].shape == (width, 3)
    deep = source.sized({"depth": 3, "layer1.width": 4, "layer2.width": 4})
    with pytest.raises(ValueError, match=r"linear3|layer3"):
        source(deep)


def test_depth_outside_the_range_and_kernels_that_would_grow_are_refused() -> None:
    source = ImplicitWeights(residual(), width=4, extrapolate=True)
    values = {"stage1.width": 8, "stage1.depth": 2, "stage1.kernel": 5, "stage1.expansion": 2}
    with pytest.raises(ValueError, match="are not in the largest build"):
        source(source.sized(values | {"stage1.depth": 3}))
    with pytest.raises(ValueError, match="its dimension 2 cannot be resampled"):
        source(source.sized(values | {"stage1.kernel": 7}))


def test_heads_are_cut_and_not_mixed() -> None:
    space = TransformerSpace(7, 5, widths=(8,), depths=(1,), heads=(1, 2), ffn_ratios=(1, 2), head_dim=4, num_classes=4)
    source = ImplicitWeights(space, width=4)
    found, stored = source(space.smallest()), source.shared.stored()
    assert torch.equal(found["blocks.0.attention.query.weight"], stored["blocks.0.attention.query.weight"][:4])
    expected = resample(stored["blocks.0.ffn.fc1.weight"], 0, interpolation(8, 16))
    torch.testing.assert_close(found["blocks.0.ffn.fc1.weight"], expected)


# Order -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [perceptron, residual])
def test_sorting_shortens_the_path_through_all_channels_and_leaves_the_largest_as_it_was(
    make: Callable[[], SearchSpace],
) -> None:
    source = shaken(ImplicitWeights(make(), width=4))
    before = outputs(source)
    lengths = []

    def measure() -> None:
        for coupling in couplings(source.space).verified:
            rows = [
                source.shared.stored()[site.tensor].detach().transpose(0, site.dim).reshape(coupling.size, -1)
                for site in coupling.sites
                if site.tensor in source.shared.stored()
            ]
            lengths.append(path_length(torch.cat(rows, 1), torch.arange(coupling.size)))

    source.teach()
    measure()
    found = sort_channels(source)
    measure()
    torch.testing.assert_close(outputs(source), before, rtol=1e-4, atol=1e-5)
    half = len(lengths) // 2
    assert half == len(found.verified)
    assert all(after <= earlier + 1e-4 for earlier, after in zip(lengths[:half], lengths[half:], strict=True))
    assert sum(lengths[half:]) < 0.99 * sum(lengths[:half])
    assert source.diagnostics()["delta"] == 0


def test_rows_of_packed_channels_belong_together() -> None:
    coupling = couplings(
        FactorySpace(Packed, {"width": [2, 4]}, input_shape=(3,), slicing={"pair.*": {"blocks": {0: 2}}})
    ).verified
    sites = {(site.tensor, site.dim): site.blocks for each in coupling for site in each.sites}
    assert sites["pair.weight", 0] == 2
    source = ImplicitWeights(
        FactorySpace(Packed, {"width": [2, 4]}, input_shape=(3,), slicing={"pair.*": {"blocks": {0: 2}}}), width=4
    )
    with torch.no_grad():
        source.shared.stored()["pair.weight"].zero_()
        source.shared.stored()["pair.bias"].copy_(torch.tensor([3.0, 1, 2, 0, 30, 10, 20, 0]))
        source.shared.stored()["head.weight"].zero_()
    order = path_of(source.shared.stored(), coupling[0])
    assert order.tolist() in ([0, 2, 1, 3], [3, 1, 2, 0])


class Packed(nn.Module):
    """Two packed projections whose product is read."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pair = nn.Linear(3, 2 * width)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.pair(x).chunk(2, dim=-1)
        logits: Tensor = self.head(first * second.sigmoid())
        return logits


def test_a_stage_of_progressive_shrinking_sorts_and_teaches(fit: Fit, labelled: Callable[..., Batches]) -> None:
    space = perceptron()
    rule = ProgressiveRule([ShrinkingStage(until=2), ShrinkingStage(elastic={"*": "all"}, sort_channels=True)])
    supernet = Supernet(
        space, Classification(4), source=lambda given: ImplicitWeights(given, width=4, reconstruction=1.0), rule=rule
    )
    fit(supernet, labelled(space), 4)
    source = supernet.source
    assert isinstance(source, ImplicitWeights)
    assert float(source.distance(space.largest(), source(space.largest())).detach()) < 0.1
    assert source.penalty(space.smallest(), source(space.smallest())) is not None


# Teacher ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["learned", "none"])
def test_the_distance_is_the_relative_error_to_the_resampled_teacher(kind: Literal["learned", "none"]) -> None:
    source = shaken(ImplicitWeights(perceptron(), width=4, residual=kind, reconstruction=0.5))
    architecture = source.sized({"depth": 1, "layer1.width": 5})
    assert source.penalty(architecture, source(architecture)) is None
    with pytest.raises(RuntimeError, match="no teacher to reconstruct"):
        source.distance(architecture, source(architecture))
    source.teach()
    teacher = {name: tensor.detach().clone() for name, tensor in source.shared.stored().items()}
    shaken(source)
    if kind == "none":
        assert not any(tensor.requires_grad for tensor in source.shared.stored().values())
        teacher = {name: tensor.detach() for name, tensor in source.shared.stored().items()}
    tensors = {name: tensor.detach() for name, tensor in source(architecture).items()}
    rows, columns = interpolation(5, 8), interpolation(5, 8, reads=True)
    wanted = {
        "linear1.weight": resample(teacher["linear1.weight"], 0, rows),
        "linear1.bias": resample(teacher["linear1.bias"], 0, rows),
        "head.weight": resample(teacher["head.weight"], 1, columns),
        "head.bias": teacher["head.bias"],
    }
    errors = [
        float(((tensors[name] - value) ** 2).mean() / (value**2).mean().clamp(min=1e-3))
        for name, value in wanted.items()
    ]
    assert float(source.distance(architecture, tensors)) == pytest.approx(sum(errors) / 4, rel=1e-4)
    penalty = source.penalty(architecture, tensors)
    assert penalty is not None
    assert float(penalty) == pytest.approx(sum(errors) / 8, rel=1e-4)


def test_functions_alone_learn_the_resampled_teacher_at_all_sizes() -> None:
    source = ImplicitWeights(MLPSpace(3, 4, widths=(4, 6, 8), depths=(1,), batch_norm=False), width=24, residual="none")
    source.sort()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(source.hypernet.parameters(), 1e-2)
    errors = []
    for _ in range(80):
        architecture = source.space.sample(generator)
        error = source.distance(architecture, source(architecture))
        optimizer.zero_grad()
        error.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        errors.append(float(error.detach()))
    assert sum(errors[-10:]) < 0.25 * sum(errors[:10])


def test_the_penalty_trains_towards_the_teacher(fit: Fit, labelled: Callable[..., Batches]) -> None:
    space = perceptron()
    source = ImplicitWeights(space, width=4, reconstruction=1e4)
    source.teach()
    with torch.no_grad():
        source.shared.stored()["linear1.weight"].add_(1.0)
    before = float(source.distance(space.largest(), source(space.largest())).detach())
    supernet = Supernet(space, Classification(4), source=lambda given: source, rule=UniformRule())
    fit(supernet, labelled(space), 4)
    assert float(source.distance(space.largest(), source(space.largest())).detach()) < before


# Noise -----------------------------------------------------------------------------------------------------------


def test_noise_is_for_training_and_evaluation_averages_the_same_draws_every_time() -> None:
    source = shaken(ImplicitWeights(perceptron(), width=4, noise=1.0, samples=3))
    plain = shaken(ImplicitWeights(perceptron(), width=4))
    small = source.space.smallest()
    torch.manual_seed(0)
    first, second = source(small)["linear1.weight"].detach(), source(small)["linear1.weight"]
    torch.manual_seed(0)
    assert torch.equal(source(small)["linear1.weight"], first)
    assert not torch.equal(first, second)
    source.eval()
    averaged = source(small)["linear1.weight"].detach()
    assert torch.equal(source(small)["linear1.weight"], averaged)
    without = plain(small)["linear1.weight"].detach()
    assert 0 < float((averaged - without).norm()) < float((first - without).norm())


def test_coupled_channels_are_read_at_the_same_jittered_positions_once_there_is_an_order() -> None:
    source = ImplicitWeights(MLPSpace(3, 4, widths=(4, 8), depths=(1,), batch_norm=False), width=4, noise=1.0)
    small, stored = source.space.smallest(), source.shared.stored()
    before = source(small)
    torch.testing.assert_close(before["linear1.bias"], resample(stored["linear1.bias"], 0, interpolation(4, 8)))
    source.teach()
    with torch.no_grad():
        stored["linear1.bias"].copy_(torch.arange(8.0))
        stored["head.weight"].copy_(torch.arange(8.0).expand(4, 8))
    positions = source(small)["linear1.bias"].detach()
    assert ((positions - torch.tensor([0.5, 2.5, 4.5, 6.5])).abs() <= 1.0).all()
    assert (positions != torch.tensor([0.5, 2.5, 4.5, 6.5])).all()
    torch.manual_seed(5)
    found = source(small)
    torch.testing.assert_close(found["head.weight"], 2 * found["linear1.bias"].expand(4, 4))
    assert torch.equal(source(source.space.largest())["linear1.bias"], stored["linear1.bias"])


# The rest --------------------------------------------------------------------------------------------------------


def test_diagnostics_say_how_much_the_functions_do() -> None:
    source = shaken(ImplicitWeights(perceptron(), width=4))
    largest = source.space.largest()
    with torch.no_grad():
        tensors, deltas = source(largest), source.deltas(largest)
    weights = torch.cat([tensors[name].flatten() for name in deltas])
    added = torch.cat([delta.flatten() for delta in deltas.values()])
    assert source.diagnostics()["delta"] == pytest.approx(float(added.norm() / weights.norm()), rel=1e-4)


def test_a_saved_one_gives_sizes_that_are_no_candidates(tmp_path: Path) -> None:
    source = shaken(ImplicitWeights(perceptron(), width=4, reconstruction=0.1))
    source.sort()
    supernet = Supernet(source.space, Classification(4), source=lambda given: source)
    restored = load(save(supernet, tmp_path / "saved")).source
    assert isinstance(restored, ImplicitWeights)
    architecture = source.sized({"depth": 2, "layer1.width": 5, "layer2.width": 6})
    expected, found = source(architecture), restored(architecture)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert float(restored.distance(architecture, found).detach()) < 1e-6


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"residual": "frozen"}, "must be 'learned' or 'none'"), ({"samples": 0}, "samples >= 1"),
     ({"reconstruction": -1.0}, "reconstruction >= 0"), ({"width": 0}, "width")],
)  # fmt: skip
def test_options_out_of_range_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImplicitWeights(perceptron(), **wrong)  # type: ignore[arg-type]
