"""Every source with every rule: they train, or refuse to be put together and say why."""

from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch

from search_spaces import QuantizedSpace
from supernets import Classification, Supernet, load, save
from tests.supernets.conftest import spaces
from tests.supernets.family import QUANTIZED, RULES, SOURCES


def refusal(space: str, source: str, rule: str) -> str | None:
    """Why a combination cannot be; everything else must train."""
    if rule == "progressive_sorted" and source not in ("shared", "kernel_transform", "implicit", "quantized"):
        return "reorders plain shared weights"
    if rule == "differentiable" and source == "quantized_mixture":
        return "needs relaxed weights, which QuantizedWeights does not give: .* set the source of QuantizedWeights to"
    if rule == "differentiable" and source == "implicit":
        return "needs relaxed weights, which ImplicitWeights does not give"
    if rule == "differentiable" and source == "kernel_transform":
        return "set kernel_transform: false"
    if rule == "differentiable" and space == "residual":
        return "choice 'resolution' has no place for a mask"
    if rule == "differentiable" and space == "factory":
        return "cannot be gated"
    return None


@pytest.mark.parametrize(
    ("source", "rule", "name"),
    [
        (source, rule, name)
        for source in SOURCES
        for rule in RULES
        for name in ("residual", "transformer", "factory")
        if name != "factory" or rule in ("sandwich", "differentiable")
    ]
    + [("quantized", rule, "mlp") for rule in RULES]
    + [("quantized_mixture", rule, "mlp") for rule in ("sandwich", "single", "differentiable", "progressive_sorted")],
)
def test_a_source_and_a_rule_train_together_or_are_refused_with_the_reason(
    source: str,
    rule: str,
    name: str,
    labelled: Callable[..., object],
    fit: Callable[..., L.Trainer],
    tmp_path: Path,
) -> None:
    space = QuantizedSpace(spaces()[name]) if source in QUANTIZED else spaces()[name]
    make = QUANTIZED.get(source) or (lambda given: SOURCES[source](given, 1))

    def build() -> Supernet:
        return Supernet(space, Classification(4), source=make, rule=RULES[rule]())

    reason = refusal(name, source, rule)
    if reason is not None:
        with pytest.raises(ValueError, match=reason):
            build()
        return
    supernet = build()
    before = {name: value.clone() for name, value in supernet.source.named_parameters()}
    fit(supernet, labelled(space), 2)
    after = dict(supernet.source.named_parameters())
    assert all(bool(value.isfinite().all()) for value in after.values())
    assert any(not torch.equal(value, before[name]) for name, value in after.items())
    restored = load(save(supernet, tmp_path / "saved"), space=space, trust=["tests"])
    architecture = space.middle()
    expected = supernet.source(architecture)
    assert all(torch.equal(value, expected[name]) for name, value in restored.source(architecture).items())
