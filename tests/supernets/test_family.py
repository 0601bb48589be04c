"""Every source with every rule: they train, or refuse to be put together and say why."""

from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch

from search_spaces import SearchSpace
from supernets import Classification, Supernet, load, save
from tests.supernets.family import RULES, SOURCES


@pytest.mark.parametrize("space", ["residual", "factory"], indirect=True)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("source", SOURCES)
def test_a_source_and_a_rule_train_together_or_are_refused_with_the_reason(
    source: str,
    rule: str,
    space: SearchSpace,
    labelled: Callable[..., object],
    fit: Callable[..., L.Trainer],
    tmp_path: Path,
) -> None:
    def build() -> Supernet:
        return Supernet(space, Classification(4), source=lambda given: SOURCES[source](given, 1), rule=RULES[rule]())

    try:
        supernet = build()
    except ValueError as refusal:
        assert any(word in str(refusal) for word in ("use ", "give ", "set ", "choose "))  # noqa: PT017
        return
    before = {name: value.clone() for name, value in supernet.source.named_parameters()}
    fit(supernet, labelled(space), 2)
    after = dict(supernet.source.named_parameters())
    assert all(bool(value.isfinite().all()) for value in after.values())
    assert any(not torch.equal(value, before[name]) for name, value in after.items())
    restored = load(save(supernet, tmp_path / "saved"), trust=["tests"])
    architecture = space.middle()
    expected = supernet.source(architecture)
    assert all(torch.equal(value, expected[name]) for name, value in restored.source(architecture).items())
