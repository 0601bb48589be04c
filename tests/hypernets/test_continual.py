"""Output regularisation (arXiv 1906.00695, Eq. 2), importance of weights, and growth."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hypernets import Categorical, OutputRegularizer, Target, Unit, apply, importance
from tests.hypernets.family import GENERATORS, make


def tasks(name, count, **options):
    return make(name, conditions={"task": Categorical(count, embedding=6)}, **options)


def jolt(hypernet, scale=0.05):
    with torch.no_grad():
        for parameter in hypernet.parameters():
            parameter += scale * torch.randn_like(parameter)


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("weighted", [False, True])
def test_penalty_is_the_equation(name, weighted):
    hypernet = tasks(name, 3)
    earlier = {"task": torch.tensor([0, 1])}
    weights = {n: torch.rand(2, *shape) for n, shape in hypernet.target.shapes.items()} if weighted else None
    regularizer = OutputRegularizer(hypernet, earlier, strength=0.3, weights=weights)
    before = hypernet.generate(earlier)
    assert regularizer().item() == pytest.approx(0, abs=1e-9)
    jolt(hypernet)
    after = hypernet.generate(earlier)
    expected = 0.0
    for task in range(2):
        for n in before:
            change = (after[n][task] - before[n][task]).detach().numpy().astype(np.float64)
            factor = weights[n][task].numpy() if weighted else 1.0
            expected += 0.3 / 2 * (factor * change**2).sum()
    assert regularizer().item() == pytest.approx(expected, rel=1e-4)


def test_a_drawn_subset_has_the_whole_penalty_as_its_mean_and_is_repeatable():
    hypernet = tasks("chunked", 4)
    earlier = {"task": torch.arange(4)}
    whole = OutputRegularizer(hypernet, earlier)
    parts = [
        OutputRegularizer(hypernet, earlier, count=1, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0)
    ]
    jolt(hypernet)
    drawn = [parts[0]().item() for _ in range(60)]
    each = [parts[1]().item() for _ in range(60)]
    assert drawn == each
    assert len(set(drawn)) == 4
    assert sum(set(drawn)) / 4 == pytest.approx(whole().item(), rel=1e-4)


def test_gradients_pull_back_to_what_was_generated():
    hypernet = tasks("recurrent", 2)
    regularizer = OutputRegularizer(hypernet, {"task": 0}, strength=1.0)
    jolt(hypernet)
    start = regularizer().item()
    optimizer = torch.optim.Adam(hypernet.parameters(), 1e-2)
    for _ in range(50):
        optimizer.zero_grad()
        loss = regularizer()
        loss.backward()
        optimizer.step()
    assert regularizer().item() < 0.1 * start


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": -1.0}, "0 <= strength < inf"),
        ({"strength": float("nan")}, "0 <= strength < inf"),
        ({"count": 0, "generator": torch.Generator()}, "1 <= count <= K"),
        ({"count": 3, "generator": torch.Generator()}, "1 <= count <= K"),
        ({"count": 1}, "pass the generator"),
        ({"weights": {"0.weight": torch.ones(2, 6, 5)}}, r"missing \['0.bias'"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OutputRegularizer(tasks("dense", 3), {"task": torch.arange(2)}, **options)


def test_importance_is_the_scaled_mean_of_squared_gradients():
    module = nn.Linear(3, 2)
    hypernet = tasks("dense", 1, target=Target.of(module))
    inputs, labels = torch.randn(2, 8, 3), torch.randint(2, (2, 8))
    losses = [
        lambda weights, x=x, y=y: F.cross_entropy(apply(module, weights, x), y)
        for x, y in zip(inputs, labels, strict=True)
    ]
    found = importance(hypernet, {"task": 0}, losses, floor=0.2)
    weights = {n: value[0].detach().numpy() for n, value in hypernet.generate({"task": 0}).items()}
    squares = {"weight": np.zeros((2, 3)), "bias": np.zeros(2)}
    for x, y in zip(inputs.numpy(), labels.numpy(), strict=True):  # gradient of softmax cross-entropy, by hand
        logits = x @ weights["weight"].T + weights["bias"]
        delta = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - np.eye(2)[y]
        squares["weight"] += (delta.T @ x / 8) ** 2
        squares["bias"] += (delta.mean(0)) ** 2
    mean = sum(value.sum() for value in squares.values()) / 8
    for n, value in squares.items():
        np.testing.assert_allclose(found[n][0], 0.2 + 0.8 * value / mean, rtol=1e-4)
    OutputRegularizer(hypernet, {"task": 0}, weights=found)


def test_importance_refuses_what_it_cannot_measure():
    hypernet = tasks("dense", 2)
    with pytest.raises(ValueError, match="at least one batch"):
        importance(hypernet, {"task": 0}, [])
    with pytest.raises(ValueError, match="floor must lie in"):
        importance(hypernet, {"task": 0}, [], floor=2)
    with pytest.raises(ValueError, match="got K = 2"):
        importance(hypernet, {"task": torch.arange(2)}, [])
    flat = importance(hypernet, {"task": 0}, [lambda weights: weights["0.weight"].sum() * 0], floor=0.5)
    assert all((value == 0.5).all() for value in flat.values())


def test_wider_recurrence_generates_the_same_and_the_new_units_learn():
    hypernet = tasks("recurrent", 2)
    condition = {"task": torch.arange(2)}
    before = hypernet.generate(condition)
    hypernet.widen(3)
    assert hypernet.width == hypernet.recurrence.hidden_size == 13
    after = hypernet.generate(condition)
    for n, value in before.items():
        torch.testing.assert_close(after[n], value, rtol=1e-5, atol=1e-6)
    optimizer = torch.optim.SGD(hypernet.parameters(), 1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        sum(value.square().sum() for value in hypernet.generate(condition).values()).backward()
        optimizer.step()
    assert (hypernet.head.weight[:, 10:] != 0).all()
    assert (hypernet.recurrence.weight_hh_l0.grad.view(4, 13, 13)[:, 10:] != 0).any()
    with pytest.raises(ValueError, match="extra must be >= 1"):
        hypernet.widen(0)


def test_only_categories_grow():
    assert tasks("recurrent", 2).add_task() == 2
    with pytest.raises(ValueError, match="must be a Categorical field"):
        make("recurrent", conditions={"task": Unit()}).add_task()


def sequence(strength):
    """Accuracy on the first of two tasks that ask for opposite answers, after the second was learned."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).to("meta")
    hypernet = make("recurrent", target=Target.of(module), conditions={"task": Categorical(1)})
    inputs = torch.randn(64, 4)
    labels = (inputs[:, 0] > 0).long()
    for task in range(2):
        regularizer = None
        if task:
            assert hypernet.add_task() == task
            regularizer = OutputRegularizer(hypernet, {"task": torch.arange(task)}, strength=strength)
        optimizer = torch.optim.Adam(hypernet.parameters(), 1e-2)
        for _ in range(60):
            weights = {n: value[0] for n, value in hypernet.generate({"task": task}).items()}
            loss = F.cross_entropy(apply(module, weights, inputs), labels if task == 0 else 1 - labels)
            optimizer.zero_grad()
            (loss if regularizer is None else loss + regularizer()).backward()
            optimizer.step()
    weights = {n: value[0] for n, value in hypernet.generate({"task": 0}).items()}
    return (apply(module, weights, inputs).argmax(1) == labels).float().mean().item()


def test_regularised_outputs_are_not_forgotten():
    kept = sequence(1.0)
    assert kept > 0.95
    assert sequence(0.0) < kept - 0.1
