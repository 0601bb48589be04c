"""Expected multiply-accumulates against counted ones, and the way out of a differentiable search."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nas import ExpectedMACs, MACs
from nas.__main__ import main
from nas.costs import measure
from nas.data import DigitsData
from search_spaces import ConvNetSpace, Head, MLPSpace, SearchSpace, Stage, TransformerSpace
from supernets import Classification, DifferentiableRule, Relaxation, SandwichRule, Supernet, save
from supernets.expected import Expectation

SPACES: dict[str, Callable[[], SearchSpace]] = {
    "mlp": lambda: MLPSpace(6, 3, widths=(3, 5), depths=(1, 2, 3)),
    "convnet": lambda: ConvNetSpace(
        [Stage((4, 6), (1, 2), (3, 5), (1, 2), squeeze_excite=True), Stage((8, 10), (1, 2), (1, 3), stride=2)],
        3,
        resolutions=(6,),
        head=Head((8, 12), expansion=2),
        per_block=True,
    ),
    "transformer": lambda: TransformerSpace(
        7, 5, widths=(4, 6), depths=(1, 2), heads=(1, 2), ffn_ratios=(1, 2), head_dim=4
    ),
}


@pytest.mark.parametrize("name", SPACES)
def test_expected_macs_are_counted_macs_at_every_architecture(name: str) -> None:
    space = SPACES[name]()
    macs, expectation = MACs(space), Expectation(space, ExpectedMACs().terms(Relaxation(space)))
    generator = torch.Generator().manual_seed(1)
    for architecture in (space.smallest(), space.largest(), *(space.sample(generator) for _ in range(6))):
        assert float(expectation(space.relax(architecture))) == measure([macs], space, architecture)["macs"]


def test_they_are_differentiable_and_count_a_choice_by_its_candidates() -> None:
    space = MLPSpace(6, 3, widths=(3, 5), depths=(1,))
    expectation = Expectation(space, ExpectedMACs().terms(Relaxation(space)))
    weights = torch.tensor([0.25, 0.75], requires_grad=True)
    value = expectation({"depth": torch.ones(1), "layer1.width": weights})
    assert value.item() == pytest.approx(0.25 * 3 * 9 + 0.75 * 5 * 9)
    value.backward()
    assert weights.grad is not None
    assert weights.grad.tolist() == [27, 45]


def exported(folder: Path, rule: DifferentiableRule | SandwichRule) -> tuple[Supernet, int, str]:
    space = MLPSpace(64, 10, widths=(4, 8), depths=(1, 2), batch_norm=False)
    net = Supernet(space, Classification(10), rule=rule, calibration=1)
    save(net, folder / "net", data=DigitsData())
    stream = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        code = main(["export", "net", "--architecture", "selected", "--out", "out"])
    return net, code, stream.getvalue()


@pytest.mark.filterwarnings("default")
def test_what_a_differentiable_search_selected_is_exported_by_that_name(tmp_path: Path) -> None:
    net, code, text = exported(tmp_path, DifferentiableRule())
    assert code == 0, text
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["architecture"] == dict(net.rule.selected())


@pytest.mark.filterwarnings("default")
def test_another_rule_selects_nothing_and_export_says_so(tmp_path: Path) -> None:
    _, code, text = exported(tmp_path, SandwichRule())
    assert code != 0
    assert "selected needs a supernet trained by differentiable search, and SandwichRule selects none" in text
