"""Do sampled weights start the training on classes never seen better than random ones and the best of the zoo?

Zoo: 49-24-2 perceptrons on pooled MNIST, each for two of the digits 0, 1, 5, 6, 8, 9, turned by multiples of 30
degrees; all start alike, and each stands in the zoo with its outputs in both orders. Unseen: two of the digits 2, 3,
4, 7, upright. From five examples per class a diffusion hypernetwork samples 256 networks; the eight that are best on
these ten examples are trained on them, beside: eight chosen so for other classes, the eight of the zoo that are best
on the examples, the mean of the zoo, where the zoo started, and random ones. Test accuracy, means of 18 sets of
examples.
"""

import functools
import itertools
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from torch import Tensor

from benchmarks import Result
from benchmarks._zoos import Split, bank, from_banks, mnist, perceptron, pooled
from hypernets import DiffusionHyperNetwork, LabelledExamples, Target
from hypernets.diffusion import FlowMatching, PCACodec, fit_diffusion
from nas.zoo import accuracies, rotated, starts, subset, train_many

SEEDS = (0, 1, 2)
SEEN, UNSEEN = (0, 1, 5, 6, 8, 9), (2, 3, 4, 7)
WAYS, SHOTS, COPIES = 2, 5, 8
STEPS = (0, 10, 50, 200)
PAIRS = tuple(itertools.combinations(UNSEEN, WAYS))
SAMPLED, WRONG, NEAREST, MEAN, START, RANDOM = (
    "sampled",
    "sampled for other classes",
    "best 8 of the zoo",
    "mean of the zoo",
    "start of the zoo",
    "random",
)
DRAWN, TEMPERATURE = 256, 0.5
Weights = Mapping[str, Tensor]


def tasks_of(count: int, examples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs ``(count, 3 * examples, 49)`` and labels of random tasks: three seen digits, each turned by some angle."""
    images, labels = mnist()["train"]
    pools = {
        (digit, angle): pooled(rotated(images[labels == digit][:1000], angle))
        for digit, angle in itertools.product(SEEN, range(0, 360, 30))
    }
    found = []
    for _ in range(count):
        digits = torch.randperm(len(SEEN), generator=generator)[:WAYS]
        angles = 30 * torch.randint(12, (WAYS,), generator=generator)
        parts = []
        for digit, angle in zip(digits.tolist(), angles.tolist(), strict=True):
            pool = pools[SEEN[digit], angle]
            parts.append(pool[torch.randperm(len(pool), generator=generator)[:examples]])
        found.append(torch.cat(parts))
    return torch.stack(found), torch.arange(WAYS).repeat_interleave(examples).expand(count, -1)


def in_every_order(weights: Weights, banks: Sequence[Tensor]) -> tuple[Weights, list[Tensor]]:
    """Networks ``(T, ...)`` with their outputs in all orders ``(6 T, ...)``, and the conditions that go with them."""
    made, conditions = [], []
    for order in itertools.permutations(range(WAYS)):
        places = list(order)
        made.append({name: value[:, places] if name.startswith("2.") else value for name, value in weights.items()})
        columns = [*range(49), *(49 + place for place in places)]
        conditions += [each[..., columns] for each in banks]
    return {name: torch.cat([each[name] for each in made]) for name in weights}, conditions


def episodes(count: int, generator: torch.Generator) -> list[tuple[Sequence[int], Tensor]]:
    """Classes never seen, and conditions of five examples of each."""
    field = LabelledExamples(49, WAYS)
    images, labels = mnist()["train"]
    found: list[tuple[Sequence[int], Tensor]] = []
    for number in range(count):
        classes = PAIRS[number % len(PAIRS)]
        inputs, moved = subset(images, labels, classes)
        found.append((classes, bank(field, (pooled(inputs), moved), shots=SHOTS, count=1, generator=generator)))
    return found


def unseen_images(classes: Sequence[int]) -> Split:
    """The test images of some classes."""
    inputs, labels = subset(*mnist()["test"], classes)
    return pooled(inputs), labels


def curves(
    module: torch.nn.Module, begun: Sequence[Weights], asked: Sequence[tuple[Sequence[int], Tensor]], seed: int
) -> list[float]:
    """Mean accuracy after each number of steps on the examples, of ``COPIES`` networks for each episode."""
    start = {name: torch.cat([each[name] for each in begun]) for name in begun[0]}
    inputs = torch.cat([condition[..., :49] for _, condition in asked])
    labels = torch.cat([condition[..., 49:].argmax(-1) for _, condition in asked])
    of = torch.arange(len(asked)).repeat_interleave(COPIES)
    found = []
    for steps in STEPS:
        tuned = train_many(module, start, inputs, labels, of=of, steps=steps, batch=WAYS * SHOTS, lr=5e-3, seed=seed)
        scores = [
            accuracies(module, {name: value[of == number] for name, value in tuned.items()}, *unseen_images(classes))
            for number, (classes, _) in enumerate(asked)
        ]
        found.append(torch.cat(scores).mean().item())
    return found


def rows_of(seed: int, /, *, tasks: int, steps: int, components: int, count: int) -> dict[str, list[float]]:
    """Where the training starts -> accuracy after each number of steps, for one seed."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    module, field = perceptron(WAYS), LabelledExamples(49, WAYS, embedding=64)
    inputs, labels = tasks_of(tasks, 200, generator)
    common = starts(module, tasks, shared=True, seed=seed)
    trained = train_many(
        module, common, inputs, labels, of=torch.arange(tasks), steps=60, batch=160, lr=3e-3, seed=seed
    )
    banks = [
        bank(field, (inputs[task], labels[task]), shots=SHOTS, count=24, generator=generator) for task in range(tasks)
    ]
    zoo, conditions = in_every_order(trained, banks)
    torch.manual_seed(seed)
    hypernet = DiffusionHyperNetwork(
        Target.of(module), {"data": field}, codec=PCACodec(components), prior=FlowMatching((384, 384))
    )
    fit_diffusion(
        hypernet, zoo, torch.arange(len(conditions)), from_banks(conditions), steps=steps, drawn=48, seed=seed
    )
    asked = episodes(count, generator)
    begun: dict[str, list[Weights]] = {name: [] for name in (SAMPLED, WRONG, NEAREST, MEAN, START, RANDOM)}

    def drawn(asked_for: Tensor, support: Split) -> Weights:
        made = hypernet.sample({"data": asked_for}, DRAWN, generator=generator, temperature=TEMPERATURE)
        return best_on(module, {name: value.detach() for name, value in made.items()}, support)

    for number, (_, condition) in enumerate(asked):
        support = (condition[0, :, :49], condition[0, :, 49:].argmax(-1))
        other = asked[(number + 1) % len(asked)][1]
        begun[SAMPLED].append(drawn(condition, support))
        begun[WRONG].append(drawn(other, (other[0, :, :49], other[0, :, 49:].argmax(-1))))
        begun[NEAREST].append(best_on(module, zoo, support))
        begun[MEAN].append({n: v.mean(0, keepdim=True).expand(COPIES, *v.shape[1:]) for n, v in zoo.items()})
        begun[START].append({name: value[:COPIES] for name, value in common.items()})
        begun[RANDOM].append(starts(module, COPIES, shared=False, seed=1000 * (seed + 1) + number))
    return {name: curves(module, each, asked, seed) for name, each in begun.items()}


def best_on(module: torch.nn.Module, weights: Weights, support: Split) -> Weights:
    """The eight networks that are best on a few examples."""
    best = accuracies(module, weights, *support).topk(COPIES).indices
    return {name: value[best] for name, value in weights.items()}


def run(quick: bool = False) -> Result:
    """Three seeds, two at a time; ``quick`` takes one seed, a small zoo and 300 steps."""
    size = (
        {"tasks": 60, "steps": 300, "components": 32, "count": 6}
        if quick
        else {"tasks": 400, "steps": 2000, "components": 32, "count": 18}
    )
    seeds = SEEDS[: 1 if quick else None]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(functools.partial(rows_of, **size), seeds))
    means = {
        name: [statistics.fmean(each[name][place] for each in found) for place in range(len(STEPS))]
        for name in found[0]
    }
    rows = tuple(
        {"start": name, **{f"{steps} steps": f"{value:.3f}" for steps, value in zip(STEPS, values, strict=True)}}
        for name, values in means.items()
    )
    shown = {name: " / ".join(f"{value:.3f}" for value in values[1:]) for name, values in means.items()}
    return Result(
        rows,
        f"on unseen classes sampled networks reach {shown[SAMPLED]} after 10 / 50 / 200 steps, the best of the zoo "
        f"{shown[NEAREST]}, random ones {shown[RANDOM]} (asked: the sampled above both); beside them the mean of the "
        f"zoo {shown[MEAN]}, sampled for other classes {shown[WRONG]}; means of {len(seeds)} seeds",
        all(means[SAMPLED][place] > means[name][place] for place in (1, 2, 3) for name in (NEAREST, RANDOM)),
    )
