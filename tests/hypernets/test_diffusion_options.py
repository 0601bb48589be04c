"""The variational codec, denoising diffusion, Set Transformers and contrastive alignment."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hypernets import DiffusionHyperNetwork, LabelledExamples, Target, digest, load, save_hypernetwork
from hypernets.dataset_encoders import split_classes
from hypernets.diffusion import ContrastiveAlignment, Denoising, VAECodec, fit_diffusion
from hypernets.set_transformer import AttentionBlock, InducedBlock, SetTransformer


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# The variational codec


def test_the_loss_of_the_vae_is_reconstruction_and_divergence():
    """Kingma and Welling, App. B: KL = 1/2 sum(m^2 + s^2 - 1 - log s^2), against loops."""
    torch.manual_seed(0)
    codec = VAECodec(2, hidden=4, kl=0.3)
    codec.allocate(5)
    vectors = torch.randn(3, 5)
    found = codec.loss(vectors, generator=seeded(4))
    noise = torch.randn(3, 2, generator=seeded(4))
    total = 0.0
    for row in range(3):
        moments = codec.encoder(vectors[row : row + 1])[0].tolist()
        mean, log_variance = moments[:2], moments[2:]
        latent = [m + math.exp(v / 2) * e for m, v, e in zip(mean, log_variance, noise[row].tolist(), strict=True)]
        wrong = codec.decoder(torch.tensor([latent]))[0] - vectors[row]
        divergence = sum(m * m + math.exp(v) - 1 - v for m, v in zip(mean, log_variance, strict=True)) / 2
        total += wrong.square().sum().item() / 5 + 0.3 * divergence / 5
    assert found.item() == pytest.approx(total / 3, rel=1e-4)


def test_the_vae_learns_to_keep_vectors_and_standardises_its_latents():
    torch.manual_seed(0)
    vectors = torch.randn(60, 2, generator=seeded()) @ torch.randn(2, 12, generator=seeded(1))
    vectors = vectors - vectors.mean(0)
    codec = VAECodec(2, hidden=16, steps=150, batch=32, lr=1e-2)
    codec.allocate(12)
    codec.fit(vectors, generator=seeded())
    latents = codec.encode(vectors)
    wrong = (codec.decode(latents) - vectors).square().mean() / vectors.square().mean()
    assert wrong < 0.05
    torch.testing.assert_close(latents.std(0), torch.ones(2), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(latents.mean(0), torch.zeros(2), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="kl >= 0"):
        VAECodec(kl=-1)


# Denoising diffusion


class Constant(nn.Module):
    """In place of a network: always the same noise, and what it saw."""

    width = 2

    def __init__(self, noise):
        super().__init__()
        self.noise, self.seen = noise, []

    def forward(self, latents, code, time):
        self.seen.append((latents, time))
        return self.noise.expand_as(latents)


def schedule(timesteps):
    betas = np.linspace(0.0015**0.5, 0.0155**0.5, timesteps) ** 2 * 1000 / timesteps
    return np.cumprod(1 - betas)


def made(noise, **options):
    prior = Denoising((4,), **options)
    prior.allocate(2, 3)
    prior.network = Constant(noise)
    return prior


def test_the_noise_of_training_follows_the_schedule():
    """Ho et al., Eq. 4 and 14."""
    prior = made(torch.zeros(2), timesteps=50, steps=5)
    np.testing.assert_allclose(prior.remaining, schedule(50), rtol=1e-5)
    assert prior.remaining[-1] < 1e-3
    latents = torch.randn(6, 2, generator=seeded(1))
    loss = prior.loss(latents, torch.zeros(6, 3), generator=seeded(5))
    again = seeded(5)
    noise, time = torch.randn(6, 2, generator=again), torch.randint(50, (6,), generator=again)
    assert loss.item() == pytest.approx(noise.square().mean().item(), rel=1e-5)
    left = torch.as_tensor(schedule(50))[time][:, None]
    seen, scaled = prior.network.seen[0]
    torch.testing.assert_close(seen, (left.sqrt() * latents + (1 - left).sqrt() * noise).float())
    torch.testing.assert_close(scaled, time / 50)


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_sampling_follows_the_equation_of_ddim(eta):
    """Song et al., Eq. 12 and 16, number by number."""
    guess = torch.tensor([0.3, -0.8])
    prior = made(guess, timesteps=40, steps=4, eta=eta)
    found = prior.sample(torch.zeros(1, 3), generator=seeded(2))[0]
    again, left = seeded(2), schedule(40)
    value = torch.randn(1, 2, generator=again)[0].double().numpy()
    guess = guess.double().numpy()
    places = [39, 26, 13, 0]
    for step, place in enumerate(places):
        now, then = left[place], left[places[step + 1]] if step < 3 else 1.0
        clean = (value - np.sqrt(1 - now) * guess) / np.sqrt(now)
        spread = eta * np.sqrt((1 - then) / (1 - now)) * np.sqrt(1 - now / then)
        value = np.sqrt(then) * clean + np.sqrt(1 - then - spread**2) * guess
        if eta:
            value = value + spread * torch.randn(1, 2, generator=again)[0].numpy()
    np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-4)


def test_wrong_numbers_of_steps_are_refused():
    with pytest.raises(ValueError, match="steps <= timesteps and 0 <= eta <= 1 must hold, got steps=51"):
        Denoising(timesteps=50, steps=51)
    with pytest.raises(ValueError, match="eta=2"):
        Denoising(eta=2)


# Set Transformers


def test_examples_are_sorted_by_class():
    features = torch.arange(10.0).view(1, 5, 2)
    members = F.one_hot(torch.tensor([[2, 0, 2, 1, 2]]), 3).float()
    found, there = split_classes(features, members)
    assert there.tolist() == [[[True, False, False], [True, False, False], [True, True, True]]]
    assert found[0, 0, 0].tolist() == [2, 3]
    assert found[0, 1, 0].tolist() == [6, 7]
    assert found[0, 2].tolist() == [[0, 1], [4, 5], [8, 9]]


def test_an_attention_block_is_that_of_the_paper():
    """Lee et al., Eq. 5 to 7, head by head in loops; what does not exist is not attended to."""
    torch.manual_seed(0)
    block = AttentionBlock(4, 2)
    queries, values = torch.randn(1, 3, 4), torch.randn(1, 5, 4)
    there = torch.tensor([[True, True, False, True, False]])
    q, k, v = block.query(queries)[0], block.key(values)[0], block.value(values)[0]
    rows = []
    for row in range(3):
        parts = []
        for head in (slice(0, 2), slice(2, 4)):
            logits = torch.stack([q[row, head] @ k[place, head] / math.sqrt(2) for place in (0, 1, 3)])
            weights = logits.exp() / logits.exp().sum()
            parts.append(sum(w * v[place, head] for w, place in zip(weights, (0, 1, 3), strict=True)))
        rows.append(torch.cat(parts))
    hidden = block.first(queries[0] + block.merge(torch.stack(rows)))
    expected = block.second(hidden + block.after(hidden).relu())
    torch.testing.assert_close(block(queries, values, there)[0], expected, rtol=1e-4, atol=1e-5)


def test_an_induced_block_passes_through_its_points():
    torch.manual_seed(0)
    block = InducedBlock(4, 2, 3)
    values = torch.randn(2, 5, 4)
    gathered = block.gather(block.points.expand(2, 3, 4), values)
    torch.testing.assert_close(block(values), block.spread(values, gathered))


def test_a_set_transformer_ignores_the_order_of_examples_but_not_of_classes():
    torch.manual_seed(0)
    encoder = SetTransformer(2, 3, 5, hidden=8, heads=2, points=2)
    features, labels = torch.randn(1, 9, 2), torch.tensor([[0, 1, 2, 2, 2, 0, 1, 1, 2]])
    order = torch.randperm(9)
    found = encoder(features, F.one_hot(labels, 3).float())
    assert found.shape == (1, 5)
    torch.testing.assert_close(
        encoder(features[:, order], F.one_hot(labels[:, order], 3).float()), found, rtol=1e-4, atol=1e-5
    )
    assert (encoder(features, F.one_hot((labels + 1) % 3, 3).float()) - found).abs().max() > 1e-3


# Contrastive alignment


def test_the_contrastive_loss_is_the_symmetric_cross_entropy_of_likeness():
    """Radford et al., Fig. 3, in loops."""
    torch.manual_seed(0)
    alignment = ContrastiveAlignment(3, 4, width=5).requires_grad_(False)
    codes, latents = torch.randn(4, 3), torch.randn(4, 4)
    data = [alignment.of_data(code) / alignment.of_data(code).norm() for code in codes]
    weights = [alignment.of_weights(latent) / alignment.of_weights(latent).norm() for latent in latents]
    scale = math.exp(2.0)
    total = 0.0
    for i in range(4):
        row = [scale * float(data[i] @ weights[j]) for j in range(4)]
        column = [scale * float(data[j] @ weights[i]) for j in range(4)]
        for logits in (row, column):
            total += math.log(sum(math.exp(value) for value in logits)) - logits[i]
    assert alignment(codes, latents).item() == pytest.approx(total / 8, rel=1e-4)


# All of it together


def test_the_paper_s_own_parts_work_together_and_come_back_from_a_file(tmp_path):
    torch.manual_seed(0)
    field = LabelledExamples(4, 3, embedding=8, summary="set_transformer")
    hypernet = DiffusionHyperNetwork(
        Target.of(nn.Linear(4, 3)),
        {"data": field},
        codec=VAECodec(3, hidden=8, steps=40, batch=16, lr=1e-2),
        prior=Denoising((24,), timesteps=50, steps=8),
    )
    generator = seeded(1)
    centres = [torch.randn(3, 4, generator=generator) * 3 for _ in range(2)]
    tasks = torch.arange(40) % 2
    weights = {
        "weight": torch.stack([centres[task] for task in tasks]) + 0.1 * torch.randn(40, 3, 4, generator=generator),
        "bias": 0.1 * torch.randn(40, 3, generator=generator),
    }

    def condition(task, generator):
        return {"data": field.of(torch.randn(6, 4, generator=generator) + 3 * task, torch.arange(6) % 3)}

    before = {name: value.clone() for name, value in hypernet.encoder.named_parameters()}
    losses = fit_diffusion(hypernet, weights, tasks, condition, steps=80, batch=32, lr=1e-2, contrast=0.1)
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:5])
    assert all((value != before[name]).any() for name, value in hypernet.encoder.named_parameters())
    for task in range(2):
        found = hypernet.sample(condition(task, seeded(9)), 8, generator=seeded(2))["weight"].mean(0).detach()
        assert (found - centres[task]).norm() < 0.8 * (found - centres[1 - task]).norm()
    again = load(save_hypernetwork(hypernet, tmp_path / "h.safetensors"))
    assert digest(again) == digest(hypernet)
    assert (again.codec.kl, again.prior.timesteps, again.conditions["data"].summary) == (1e-3, 50, "set_transformer")
    first, second = (each.generate(condition(0, seeded(3)), generator=seeded(4)) for each in (hypernet, again))
    assert all(torch.equal(first[name], second[name]) for name in first)
