"""Sampling weights: codecs, priors, and the hypernetwork made of them."""

import json
import math
from typing import final

import numpy as np
import pytest
import torch
from torch import nn

from hypernets import (
    DiffusionHyperNetwork,
    HyperCard,
    LabelledExamples,
    Parametrization,
    Target,
    Unit,
    digest,
    load,
    read_provenance,
    save_hypernetwork,
    save_weights,
)
from hypernets.diffusion import FlowMatching, PCACodec, Prior, assess, fit_diffusion

DATA = LabelledExamples(4, 3, embedding=8)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def module():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def examples(shift=0.0, seed=0):
    return DATA.of(torch.randn(9, 4, generator=seeded(seed)) + shift, torch.arange(9) % 3)


def make(*, seed=0, conditions=None, codec=None, prior=None):
    torch.manual_seed(seed)
    return DiffusionHyperNetwork(
        Target.of(module()),
        {"data": DATA} if conditions is None else conditions,
        codec=PCACodec(6) if codec is None else codec,
        prior=FlowMatching((16,), steps=4) if prior is None else prior,
    )


def zoo(count=40, tasks=2, seed=0):
    """Networks whose weights are those of their task, far apart, and a little noise."""
    generator = seeded(seed)
    target = Target.of(module())
    labels = torch.arange(count) % tasks
    return {
        spec.name: torch.randn(tasks, *spec.shape, generator=generator)[labels]
        + 0.1 * torch.randn(count, *spec.shape, generator=generator)
        for spec in target
    }, labels


# Codecs


def test_pca_latents_and_reconstructions_are_those_of_numpy():
    vectors = torch.randn(30, 12, generator=seeded()) * torch.linspace(3, 0.1, 12)
    vectors -= vectors.mean(0)
    codec = PCACodec(5)
    codec.allocate(12)
    codec.fit(vectors, generator=seeded())
    values, basis = np.linalg.eigh(np.cov(vectors.numpy().T))
    order = np.argsort(-values)[:5]
    expected = vectors.numpy() @ basis[:, order] / np.sqrt(values[order])
    latents = codec.encode(vectors)
    np.testing.assert_allclose(latents.abs(), np.abs(expected), rtol=1e-3, atol=1e-3)
    projection = basis[:, order] @ basis[:, order].T
    np.testing.assert_allclose(codec.decode(latents), vectors.numpy() @ projection, atol=1e-4)
    torch.testing.assert_close(latents.std(0), torch.ones(5), rtol=1e-4, atol=1e-4)


def test_a_codec_that_cannot_fit_is_refused():
    with pytest.raises(ValueError, match="width must be >= 1"):
        PCACodec(0)
    with pytest.raises(ValueError, match="needs a target of at least as many weights, got 43"):
        make(codec=PCACodec(44))
    weights, _ = zoo(6)
    with pytest.raises(ValueError, match=r"PCACodec\(width=6\) needs more models than that, got 6"):
        make().learn_codec(weights, generator=seeded())


# Priors


@final
class Line(nn.Module):
    """In place of a network: what it saw, and the velocity code - x."""

    width = 2

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, latents, code, time):
        self.seen.append((latents, code, time))
        return code - latents


def test_flow_matching_trains_on_straight_paths():
    """Lipman et al., Sec. 4.1: x_t = (1 - t) x0 + t x1 with target x1 - x0."""
    prior = FlowMatching((4,), steps=3)
    prior.network = Line()
    latents, code = torch.randn(6, 2, generator=seeded(1)), torch.zeros(6, 2)
    loss = prior.loss(latents, code, generator=seeded(5))
    again = seeded(5)
    noise, time = torch.randn(6, 2, generator=again), torch.rand(6, generator=again)
    total = 0.0
    for row in range(6):
        for column in range(2):
            x0, x1, t = noise[row, column].item(), latents[row, column].item(), time[row].item()
            moved = (1 - t) * x0 + t * x1
            total += ((0 - moved) - (x1 - x0)) ** 2
    assert loss.item() == pytest.approx(total / 12, rel=1e-5)


def test_flow_matching_samples_by_the_midpoint_rule():
    """For dx/dt = c - x every midpoint step multiplies x - c by 1 - h + h^2 / 2."""
    prior = FlowMatching((4,), steps=3)
    prior.network = Line()
    code = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    found = prior.sample(code, generator=seeded(2))
    noise = torch.randn(2, 2, generator=seeded(2))
    step = 1 / 3
    torch.testing.assert_close(found, code + (noise - code) * (1 - step + step**2 / 2) ** 3)
    cooler = prior.sample(code, generator=seeded(2), temperature=0.5)
    torch.testing.assert_close(cooler, code + (0.5 * noise - code) * (1 - step + step**2 / 2) ** 3)
    times = [time[0].item() for _, _, time in prior.network.seen[:6]]
    assert times == pytest.approx([0, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6])


def test_wrong_sizes_of_a_prior_are_refused():
    with pytest.raises(ValueError, match="steps must be >= 1, got 0"):
        FlowMatching(steps=0)
    with pytest.raises(ValueError, match="hidden must name at least one layer"):
        FlowMatching(hidden=())


# The hypernetwork


def test_weights_are_mean_plus_scale_times_the_decoded_latent():
    hypernet = make()
    weights, _ = zoo()
    hypernet.learn_codec(weights, generator=seeded())
    found = hypernet.generate({"data": examples()}, generator=seeded(3))
    latent = hypernet.prior.sample(hypernet.encode_condition({"data": examples()}), generator=seeded(3))
    vector = hypernet.codec.decode(latent)[0]
    start = 0
    for name, value in weights.items():
        mean = value.numpy().mean(0)
        scale = np.sqrt(((value.numpy() - mean) ** 2).mean())
        part = vector[start : start + mean.size].detach().numpy().reshape(mean.shape)
        np.testing.assert_allclose(found[name][0].detach(), mean + scale * part, rtol=1e-4, atol=1e-5)
        start += mean.size


def test_what_the_codec_keeps_of_a_zoo_is_the_zoo():
    hypernet = make(codec=PCACodec(39))
    weights, _ = zoo()
    hypernet.learn_codec(weights, generator=seeded())
    for name, value in hypernet.reconstruct(weights).items():
        torch.testing.assert_close(value, weights[name], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(hypernet.encode(weights).std(0), torch.ones(39), rtol=1e-2, atol=1e-2)


def test_it_learns_which_weights_go_with_which_data_set():
    hypernet = make()
    weights, labels = zoo()
    means = [{name: value[labels == task].mean(0) for name, value in weights.items()} for task in range(2)]
    before = torch.get_rng_state()
    losses = fit_diffusion(
        hypernet,
        weights,
        labels,
        lambda task, generator: {"data": examples(3.0 * task, seed=int(torch.randint(99, (), generator=generator)))},
        steps=150,
        batch=64,
        lr=1e-2,
    )
    assert torch.equal(before, torch.get_rng_state())
    assert np.mean(losses[-20:]) < np.mean(losses[:5])
    assert not hypernet.training
    for task in range(2):
        made = hypernet.sample({"data": examples(3.0 * task, seed=1000)}, 8, generator=seeded(1))
        near, far = (
            sum(float((made[name] - mean[name]).detach().square().sum()) for name in made)
            for mean in (means[task], means[1 - task])
        )
        assert near < 0.2 * far


def test_sampling_is_repeatable_and_several_sets_differ():
    hypernet = make()
    condition = {"data": torch.cat([examples(), examples(1.0)])}
    first = hypernet.sample(condition, 3, generator=seeded(1))
    second = hypernet.sample(condition, 3, generator=seeded(1))
    assert {name: tuple(value.shape) for name, value in first.items()} == {
        name: (6, *shape) for name, shape in hypernet.target.shapes.items()
    }
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert len(first["0.weight"].flatten(1).unique(dim=0)) == 6
    middle = hypernet.sample(condition, 3, generator=seeded(1), temperature=0.0)
    assert len(middle["0.weight"].flatten(1).unique(dim=0)) == 2  # one for each condition
    other = hypernet.sample(condition, 3, generator=seeded(2))
    assert all((first[name] != other[name]).all() for name in first)
    assert hypernet.generate({"data": examples()[:0]})["0.weight"].shape == (0, 5, 4)


def test_parts_and_streams_of_one_seed_are_one_weight_set():
    hypernet = make()
    condition = {"data": examples()}
    whole = hypernet.generate(condition, generator=seeded(1))
    part = hypernet.generate(condition, {"2.weight": (3, 5)}, generator=seeded(1))
    torch.testing.assert_close(part["2.weight"], whole["2.weight"])
    streamed = dict(hypernet.stream(condition, max_bytes=1, generator=seeded(1)))
    assert list(streamed) == list(hypernet.target.names)
    for name, value in whole.items():
        torch.testing.assert_close(streamed[name], value.detach())


def test_an_assessment_chooses_on_one_score_and_reports_another():
    """Against the samples of the same seed, and networks of the zoo one by one."""
    hypernet = make()
    weights, _ = zoo()
    hypernet.learn_codec(weights, generator=seeded())
    conditions = {"data": examples()}, {"data": examples(3.0)}

    def choose(tensors):
        return tensors["0.weight"].flatten(1).sum(1)

    def score(tensors):
        return tensors["2.bias"].square().sum(1)

    found = assess(hypernet, *conditions, weights, choose=choose, score=score, count=5, generator=seeded(4))
    again = seeded(4)
    made, wrong = (hypernet.sample(condition, 5, generator=again) for condition in conditions)
    scores = [float(made["2.bias"][k].detach().square().sum()) for k in range(5)]
    best = max(range(5), key=lambda k: float(made["0.weight"][k].detach().sum()))
    nearest = max(range(40), key=lambda k: float(weights["0.weight"][k].sum()))
    assert scores[best] < max(scores)
    assert found.mean == pytest.approx(np.mean(scores))
    assert found.deviation == pytest.approx(np.std(scores, ddof=1))
    assert found.best == pytest.approx(scores[best])
    assert found.wrong == pytest.approx(float(wrong["2.bias"].detach().square().sum(1).mean()))
    assert found.nearest == pytest.approx(float(weights["2.bias"][nearest].square().sum()))
    with pytest.raises(ValueError, match="count must be >= 2"):
        assess(hypernet, *conditions, weights, choose=choose, score=score, count=1, generator=seeded())


def test_the_order_of_examples_does_not_matter_and_their_number_may_change():
    hypernet = make()
    order = torch.randperm(9, generator=seeded(4))
    first, second, more = (
        hypernet.generate({"data": value}, generator=seeded(1))["0.weight"]
        for value in (examples(), examples()[:, order], examples().repeat(1, 2, 1))
    )
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first, more, rtol=1e-4, atol=1e-5)


def test_the_condition_has_gradients():
    value = examples().requires_grad_()
    make().generate({"data": value}, generator=seeded(1))["2.weight"].square().sum().backward()
    assert value.grad[..., :4].abs().sum() > 0


def test_the_card_says_data_and_noise():
    card = make().card
    assert (card.inputs, card.outputs, card.architecture) == (("data", "noise"), "once", "diffusion")
    assert make(conditions={"strength": Unit()}).card.inputs == ("task", "noise")
    assert HyperCard(**{**card.to_json(), "inputs": tuple(card.to_json()["inputs"])}) == card


def test_it_comes_back_from_a_file_with_its_parts(tmp_path):
    hypernet = make(codec=PCACodec(7), prior=FlowMatching((9, 8), steps=2))
    weights, _ = zoo()
    hypernet.learn_codec(weights, generator=seeded())
    again = load(save_hypernetwork(hypernet, tmp_path / "h.safetensors"))
    assert isinstance(again, DiffusionHyperNetwork)
    assert (again.codec.width, again.prior.hidden, again.prior.steps) == (7, (9, 8), 2)
    assert again.conditions == {"data": DATA}
    assert digest(again) == digest(hypernet)
    first, second = (each.generate({"data": examples()}, generator=seeded(1)) for each in (hypernet, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


@final
class Constant(Prior):
    """A user's own prior."""

    def __init__(self, value=0.5):
        super().__init__()
        self.value = value

    def allocate(self, width, code):
        self.weight = nn.Parameter(torch.full((width,), self.value))

    def loss(self, latents, code, *, generator):
        return (latents - self.weight).square().mean()

    def sample(self, code, *, generator, temperature=1.0):
        return self.weight.expand(len(code), -1)


def test_a_prior_of_ones_own_is_loaded_when_its_class_is_given(tmp_path):
    path = save_hypernetwork(make(prior=Constant(2.0)), tmp_path / "h.safetensors")
    with pytest.raises(ValueError, match=r"a part must be one of .*got 'Constant'"):
        load(path)
    again = load(path, classes=[Constant])
    assert again.prior.value == 2.0
    assert torch.equal(again.prior.weight, torch.full((6,), 2.0))


def test_the_provenance_of_weights_names_the_data_by_its_digest(tmp_path):
    hypernet = make()
    save_weights(hypernet, {"data": examples()}, tmp_path / "w.safetensors", seed=3)
    found = read_provenance(tmp_path / "w.safetensors")["condition"]["data"]
    save_weights(hypernet, {"data": examples(1.0)}, tmp_path / "v.safetensors", seed=3)
    other = read_provenance(tmp_path / "v.safetensors")["condition"]["data"]
    assert found["shape"] == [9, 7]
    assert len(found["sha256"]) == 64
    assert found != other
    assert len(json.dumps(found)) < 200


def test_parts_belong_to_one_hypernetwork_and_the_residual_is_the_zoo():
    codec = PCACodec(6)
    make(codec=codec)
    with pytest.raises(ValueError, match="PCACodec belongs to another hypernetwork already"):
        make(codec=codec)
    with pytest.raises(ValueError, match="residual must be 'frozen' and head_init 'fan_out'"):
        DiffusionHyperNetwork(Target.of(module()), {"data": DATA}, parametrization=Parametrization())


def test_a_zoo_that_does_not_fit_is_refused():
    weights, labels = zoo()
    condition = {"data": examples()}
    with pytest.raises(ValueError, match="tasks must hold one integer for each of 40 networks"):
        fit_diffusion(make(), weights, labels[:3], lambda task, generator: condition)
    with pytest.raises(ValueError, match=r"missing \['2.bias'\]"):
        fit_diffusion(make(), {n: v for n, v in weights.items() if n != "2.bias"}, labels, lambda t, g: condition)


def test_a_tensor_that_is_the_same_in_all_networks_stays():
    hypernet = make()
    weights, _ = zoo()
    weights["2.bias"] = torch.ones(40, 3)
    hypernet.learn_codec(weights, generator=seeded())
    made = hypernet.generate({"data": examples()}, generator=seeded(1))
    torch.testing.assert_close(made["2.bias"], torch.ones(1, 3), rtol=1e-4, atol=1e-4)
    assert math.isfinite(made["0.weight"].sum().item())
