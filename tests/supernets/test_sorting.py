"""Channels in order of importance: what moves, and what must not change."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from search_spaces import ConvNetSpace, MLPSpace, SearchSpace, Stage, couplings
from supernets import (
    Classification,
    ProgressiveRule,
    SharedWeights,
    ShrinkingStage,
    Supernet,
    WeightSource,
    importance,
    sort_channels,
)
from tests.supernets.conftest import random_inputs, spaces

Fit = Callable[..., L.Trainer]


def shaken(space: SearchSpace, seed: int = 1) -> SharedWeights:
    source = SharedWeights(space, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return source


@pytest.mark.parametrize("name", ["mlp", "residual", "inverted", "factory"])
@pytest.mark.parametrize("training", [False, True])
def test_sorting_leaves_the_largest_as_it_was_and_puts_important_channels_first(name: str, training: bool) -> None:
    space = spaces()[name]
    source = shaken(space)
    inputs = random_inputs(space)

    def outputs() -> Tensor:
        module = source.largest.train(training)
        result: Tensor = torch.func.functional_call(
            module, {key: value.clone() for key, value in module.named_buffers()}, inputs
        )
        return result

    before = outputs()
    found = sort_channels(source)
    torch.testing.assert_close(outputs(), before, rtol=1e-4, atol=1e-5)
    assert found.verified
    for coupling in found.verified:
        norms = importance(source.stored(), coupling)
        assert bool((norms[:-1] >= norms[1:] - 1e-6).all())
    again = {key: value.clone() for key, value in source.state_dict().items()}
    sort_channels(source)
    assert all(torch.equal(value, again[key]) for key, value in source.state_dict().items())


def test_importance_is_the_l1_norm_of_the_weights_that_read_a_channel() -> None:
    space = ConvNetSpace([Stage((4, 8), (1,), (3,), (1, 2), block="residual")], 4, resolutions=(6,))
    stored = {name: tensor.detach() for name, tensor in shaken(space).stored().items()}
    stream = next(c for c in couplings(space).verified if any("classifier" in site.tensor for site in c.sites))
    hidden = next(c for c in couplings(space).verified if any("conv1" in site.tensor for site in c.sites))
    head, conv = stored["classifier.weight"], stored["stage1.block1.conv2.weight"]
    for channel in range(8):
        expected = sum(abs(float(head[row, channel])) for row in range(4))
        assert float(importance(stored, stream)[channel]) == pytest.approx(expected, rel=1e-5)
    for channel in range(16):
        expected = sum(abs(float(value)) for value in conv[:, channel].flatten())
        assert float(importance(stored, hidden)[channel]) == pytest.approx(expected, rel=1e-5)


def test_a_prefix_has_the_channels_that_matter() -> None:
    space = MLPSpace(12, 4, widths=(2, 6), depths=(1,), batch_norm=False)
    source = SharedWeights(space)
    with torch.no_grad():
        source.stored()["head.weight"][:, [1, 2, 3, 5]] = 0.0  # channels 0 and 4 alone reach the output
    inputs = random_inputs(space)
    supernet = Supernet(space, Classification(4), source=lambda _: source)
    before = supernet.extract(space.smallest())(inputs)
    sort_channels(source)
    whole = supernet.extract(space.largest())(inputs)
    assert not torch.allclose(before, whole, atol=1e-3)
    torch.testing.assert_close(supernet.extract(space.smallest())(inputs), whole)


def test_other_sources_are_refused() -> None:
    class Other(WeightSource):
        def forward(self, architecture: Any) -> dict[str, Tensor]:
            raise NotImplementedError

    with pytest.raises(TypeError, match="channels of Other cannot be sorted; use SharedWeights"):
        sort_channels(Other(MLPSpace(4, 2)))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-2)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01)


def supernet_of(space: SearchSpace, optimizer: Any, at: int, *, sorts: bool = True, n_random: int = 0) -> Supernet:
    stages = [
        ShrinkingStage(until=at),
        ShrinkingStage(elastic={"*": "all"}, smallest=False, n_random=n_random, sort_channels=sorts),
    ]
    return Supernet(space, Classification(4), rule=ProgressiveRule(stages), optimizer=optimizer)


@pytest.mark.parametrize("optimizer", [sgd, adam])
def test_the_memory_of_the_optimiser_moves_with_the_channels(optimizer: Any, labelled: Any, fit: Fit) -> None:
    space = spaces()["residual"]
    inputs = random_inputs(space)
    outputs, kept = [], []
    for sorts in (False, True):
        supernet = supernet_of(space, optimizer, 3, sorts=sorts)  # the largest alone, before and after
        fit(supernet, labelled(space, count=3), 8)
        outputs.append(supernet.eval()(space.largest(), inputs).detach())
        kept.append(dict(supernet.source.named_parameters()))
    assert any(not torch.equal(value, kept[1][name]) for name, value in kept[0].items())
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-3, atol=1e-4)


def test_training_says_once_what_was_sorted_and_what_was_not(
    labelled: Any, fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    space = spaces()["transformer"]
    fit(supernet_of(space, sgd, 1), labelled(space), 3)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "sorted" in line]
    left = ", ".join(f"blocks.{block}.attention.query.weight" for block in range(2))
    assert line == f"step 1 begins with sorted channels: 3 classes of elastic channels, left out: {left}"


@pytest.mark.parametrize("stop", [3, 4])
def test_a_run_resumed_at_or_after_sorting_ends_as_the_uninterrupted_one(
    stop: int, labelled: Any, fit: Fit, tmp_path: Path
) -> None:
    space = spaces()["mlp"]
    loader = labelled(space, count=1)
    whole, part, resumed = (supernet_of(space, adam, 3, n_random=1) for _ in range(3))
    fit(whole, loader, 7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgressiveRule, "check_length", lambda *_: None)
        fit(part, loader, stop).save_checkpoint(tmp_path / "part.ckpt")
    fit(resumed, loader, 7, ckpt_path=str(tmp_path / "part.ckpt"))
    expected = dict(whole.source.named_parameters())
    for name, value in resumed.source.named_parameters():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-7)
