"""Self-Tuning Networks (arXiv 1903.03088), Delta-STN (arXiv 2010.13514), and the hyperparameters they move."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hypernets import (
    BestResponseHyperNetwork,
    Hyperparameters,
    Parametrization,
    Real,
    Target,
    Tunable,
    apply,
    diagnose,
)


def make(**options):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.GroupNorm(1, 3))
    return BestResponseHyperNetwork(Target.of(module), {"h": Real(2)}, **options)


@pytest.mark.parametrize("centred", [False, True])
def test_weights_are_the_gated_equation(centred):
    hypernet = make(centred=centred)
    centre = np.array([0.5, -1.0]) if centred else np.zeros(2)
    if centred:
        hypernet.recentre({"h": torch.tensor([[0.5, -1.0]])})
    values = torch.randn(3, 2)
    weights = hypernet.generate({"h": values})
    for spec in hypernet.target:
        base, gates, directions = (
            value.detach().numpy()
            for value in (
                hypernet.residual(spec.name),
                hypernet.gates[spec.name.replace(".", "/")],
                hypernet.directions[spec.name.replace(".", "/")],
            )
        )
        for k in range(3):
            for row in range(spec.shape[0]):
                gate = float(gates[row] @ (values[k].numpy() - centre))
                expected = base[row] + gate * directions[row]
                np.testing.assert_allclose(weights[spec.name][k, row].detach(), expected, rtol=1e-4, atol=1e-6)


def test_the_response_starts_small_or_not_at_all():
    condition = {"h": torch.randn(50, 2)}
    generator = torch.Generator().manual_seed(0)
    assert 0 < diagnose(make(), condition, generator=generator).delta < 0.05
    zero = make(parametrization=Parametrization(encoding="none", head_init="zero"))
    assert diagnose(zero, condition, generator=generator).delta == 0
    sum(value.sum() for value in zero.generate(condition).values()).backward()
    assert all((gate.grad != 0).any() for gate in zero.gates.values())


def test_response_and_weights_are_told_apart():
    hypernet = make()
    response, residual = {id(p) for p in hypernet.response()}, {id(p) for p in hypernet.residual.parameters()}
    assert not response & residual
    assert response | residual == {id(p) for p in hypernet.parameters()}


@pytest.mark.parametrize("switches", [Parametrization(), Parametrization(encoding="none", residual="none")])
def test_it_is_linear_around_a_residual(switches):
    with pytest.raises(ValueError, match="needs encoding='none' and a residual"):
        make(parametrization=switches)


def test_a_centre_is_one_condition():
    with pytest.raises(ValueError, match="got K = 2"):
        make(centred=True).recentre({"h": torch.zeros(2, 2)})


@pytest.mark.parametrize(
    "tunable", [Tunable(0.05, 0, 0.95), Tunable(3.0, -2, 10), Tunable(1e-4), Tunable(40.0), Tunable(2.5, 1.0)], ids=str
)
def test_hyperparameters_start_where_they_are_told_and_stay_in_bounds(tunable):
    hyper = Hyperparameters({"x": tunable})
    assert hyper.values()["x"].item() == pytest.approx(tunable.start, rel=1e-4)
    far = hyper.values(torch.tensor([[-50.0], [0.0], [90.0]]))["x"]
    assert far.isfinite().all()
    assert (far >= tunable.low).all()
    assert (far <= tunable.high).all()
    logistic = tunable.low + (tunable.high - tunable.low) / 2
    assert far[1].item() == pytest.approx(tunable.low + math.log(2) if tunable.high == math.inf else logistic, rel=1e-5)


def test_perturbations_have_the_learned_scale_and_entropy():
    hyper = Hyperparameters({"a": Tunable(0.5, 0, 1), "b": Tunable(1.0)}, scale=0.7)
    drawn = hyper.draw(20000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(0), hyper.free.detach(), atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.std(0), torch.tensor([0.7, 0.7]), atol=0.02, rtol=0)
    assert hyper.entropy().item() == pytest.approx(2 * math.log(0.7 * math.sqrt(2 * math.pi * math.e)), rel=1e-4)
    drawn.square().sum().backward()
    assert (hyper.free.grad != 0).all()
    assert (hyper.spread.grad != 0).all()
    assert torch.equal(drawn, hyper.draw(20000, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("wrong", [(0.0, 0.0, 1.0), (1.0, 0.0, 1.0), (1.0, -math.inf, 2.0)])
def test_wrong_hyperparameters_are_refused(wrong):
    with pytest.raises(ValueError, match="low < start < high must hold"):
        Tunable(*wrong)
    with pytest.raises(ValueError, match="at least one hyperparameter and 0 < scale < inf"):
        Hyperparameters({})
    for scale in (0, math.nan):
        with pytest.raises(ValueError, match="0 < scale < inf"):
            Hyperparameters({"a": Tunable(1.0)}, scale=scale)


@pytest.mark.parametrize("centred", [False, True])
def test_weight_decay_finds_its_best_response(centred):
    """Ridge regression, where the best decay is known: the validation targets are half of the training ones."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    module = nn.Linear(3, 1, bias=False).to("meta")
    hypernet = BestResponseHyperNetwork(Target.of(module), {"h": Real(1)}, centred=centred)
    hyper = Hyperparameters({"decay": Tunable(0.05)}, scale=0.3)
    inputs = torch.linalg.qr(torch.randn(12, 3))[0] * 12**0.5
    truth = inputs @ torch.tensor([[1.0], [-2.0], [0.5]])
    weights = torch.optim.SGD(hypernet.parameters(), 0.05)
    moved = torch.optim.Adam([hyper.free], 0.1)

    def outputs(free):
        return [apply(module, {"weight": w}, inputs) for w in hypernet.generate({"h": free})["weight"]]

    for _ in range(100):
        for _ in range(3):
            hypernet.recentre({"h": hyper.free.detach()[None]})
            free = hyper.draw(4, generator=generator).detach()
            generated = hypernet.generate({"h": free})["weight"]
            decay = hyper.values(free)["decay"]
            loss = sum(
                F.mse_loss(y, truth) + d * w.square().sum()
                for y, d, w in zip(outputs(free), decay, generated, strict=True)
            )
            weights.zero_grad()
            (loss / 4).backward()
            weights.step()
        moved.zero_grad()
        sum(F.mse_loss(y, truth / 2) for y in outputs(hyper.draw(4, generator=generator))).backward()
        moved.step()
    assert hyper.values()["decay"].item() == pytest.approx(1.0, rel=0.2)  # w = truth / (1 + decay)
