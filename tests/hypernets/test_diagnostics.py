import pytest
import torch

from hypernets import Parametrization, diagnose
from tests.hypernets.family import GENERATORS, make


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("name", GENERATORS)
def test_figures_are_those_of_their_definitions(name):
    hypernet = make(name)
    condition = hypernet.draw(4, generator=generator())
    found = diagnose(hypernet, condition, generator=generator())
    weights, deltas = (
        torch.cat([value.detach().flatten(1) for value in sets.values()], dim=1)
        for sets in (hypernet.generate(condition), hypernet.deltas(condition))
    )
    assert found.delta == pytest.approx((deltas.norm(dim=1) / weights.norm(dim=1)).mean().item(), rel=1e-5)
    assert found.spread == pytest.approx(((weights - weights.mean(0)).norm() / weights.norm()).item(), rel=1e-4)
    assert (found.matched, found.shuffled) == (None, None)


def test_a_hypernetwork_that_is_not_used_shows():
    unused = make("dense", parametrization=Parametrization(head_init="zero"))
    condition = unused.draw(3, generator=generator())
    found = diagnose(unused, condition, lambda weights, k: float(weights["0.weight"].sum()), generator=generator())
    assert (found.delta, found.spread) == (0, pytest.approx(0, abs=1e-6))
    assert found.matched == found.shuffled
    alone = diagnose(make("dense", parametrization=Parametrization(residual="none")), condition, generator=generator())
    assert alone.delta == pytest.approx(1)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_every_condition_is_scored_with_its_own_weights_and_with_those_of_another(count):
    hypernet = make("dense")
    condition = hypernet.draw(count, generator=generator())
    own = hypernet.generate(condition)["0.weight"]
    calls = []

    def score(weights, k):
        (whose,) = [j for j in range(count) if torch.equal(weights["0.weight"], own[j])]
        calls.append((k, whose))
        return float(k == whose)

    found = diagnose(hypernet, condition, score, generator=generator())
    assert (found.matched, found.shuffled) == (1.0, 0.0)
    assert calls[:count] == [(k, k) for k in range(count)]
    assert sorted(whose for _, whose in calls[count:]) == list(range(count))


def test_one_condition_cannot_change_places():
    hypernet = make("dense")
    with pytest.raises(ValueError, match="two or more, got K = 1"):
        diagnose(hypernet, hypernet.draw(1, generator=generator()), generator=generator())
