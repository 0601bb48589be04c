"""Does a hypernetwork learn ten tasks in sequence without forgetting, and does a recurrent one do it better?

Permuted MNIST: every task shows the 14 x 14 digits with their pixels in another order, for 250 steps, and is not seen
again. One learned vector per task, and an output regulariser of strength beta. Three generators with equal numbers of
parameters: ``concatenated`` is the chunked one as published (von Oswald et al., arXiv 1906.00695), whose perceptron
reads task and chunk vector side by side; ``chunked`` is ours, in which they multiply; ``recurrent`` preserves the
dependencies. ``after each`` is the accuracy of every task right after it was learned, ``final`` that at the end of the
sequence, ``wrong task`` that with the weights of the next task: a network that ignored its condition would lose nothing
there. Without a hypernetwork: one network trained on task after task, and a network of its own for each task.
"""

import functools
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import Result
from benchmarks._hypernets import pooled_mnist
from hypernets import (
    Categorical,
    ChunkedHyperNetwork,
    Field,
    HyperCard,
    HyperNetwork,
    OutputRegularizer,
    RecurrentHyperNetwork,
    Target,
    TensorSpec,
    apply,
)
from hypernets.chunks import ChunkHead
from hypernets.dense import trunk

SEEDS = (0, 1, 2)
LENGTHS = (5, 10)
BATCH = 128


@final
class Concatenated(HyperNetwork):
    """The chunked generator of arXiv 1906.00695: chunk c is ``W trunk([E(task), v_c])``."""

    def __init__(self, target: Target, conditions: Mapping[str, Field]) -> None:
        super().__init__(target, conditions)
        self.trunk = trunk(self.encoder.width + 8, (91, 91))
        self.head = ChunkHead(target, 91, chunk=512, low_rank_above=None, rank=1)
        self.table = nn.Parameter(torch.randn(self.head.count, 8))
        self.finish()

    @property
    def card(self) -> HyperCard:
        return HyperCard.of(
            "Concatenated",
            self.conditions.values(),
            outputs="chunk-wise",
            architecture="mlp",
            reference="von Oswald et al.: Continual learning with hypernetworks, arXiv 1906.00695",
        )

    def emit(
        self, code: Tensor, specs: Sequence[TensorSpec], *, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        del generator
        vectors = self.table[self.head.rows(specs)]
        pairs = (code[:, None].expand(-1, len(vectors), -1), vectors.expand(len(code), -1, -1))
        made: dict[str, Tensor] = self.head(self.trunk(torch.cat(pairs, dim=-1)), specs)
        return made

    def rescale(self, name: str, factor: float) -> None:
        self.head.rescale(name, factor)


GENERATORS: Mapping[str, Callable[..., HyperNetwork]] = {
    "concatenated": Concatenated,
    "chunked": functools.partial(ChunkedHyperNetwork, hidden=(16, 88)),
    "recurrent": functools.partial(RecurrentHyperNetwork, width=64, vectors=8),
}
STRENGTHS = (0.0, 0.01, 0.1)
SEQUENTIAL, OWN = "one network, task after task", "a network for each task"
COLUMNS = ("after each", "final", "forgetting", "wrong task")


def network() -> nn.Sequential:
    """The target: 17,418 weights."""
    return nn.Sequential(nn.Linear(196, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def orders(count: int) -> list[Tensor]:
    """The order of the pixels in each task, the same for all seeds; the first task leaves them."""
    generator = torch.Generator().manual_seed(7)
    return [torch.arange(196), *(torch.randperm(196, generator=generator) for _ in range(count - 1))]


def descend(
    parameters: Any, loss_of: Callable[[Tensor, Tensor], Tensor], order: Tensor, steps: int, generator: torch.Generator
) -> None:
    """Train on one task."""
    images, labels = pooled_mnist()["train"]
    optimizer = torch.optim.Adam(parameters, 1e-3)
    for _ in range(steps):
        chosen = torch.randint(len(images), (BATCH,), generator=generator)
        loss = loss_of(images[chosen][:, order], labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def accuracy(weights: Mapping[str, Tensor], order: Tensor) -> float:
    """Test accuracy of one set of weights on one task."""
    images, labels = pooled_mnist()["test"]
    outputs = apply(network().to("meta"), weights, images[:, order])
    return float((outputs.argmax(1) == labels).float().mean())


def summary(learned: list[float], final: list[list[float]]) -> dict[str, float]:
    """What a sequence came to: ``final[i][j]`` is the accuracy on task i with the weights of task j."""
    count = len(final)
    own = statistics.fmean(final[i][i] for i in range(count))
    after = statistics.fmean(learned[:count])
    wrong = statistics.fmean(final[i][(i + 1) % count] for i in range(count))
    return {"after each": after, "final": own, "forgetting": after - own, "wrong task": wrong}


def generated(
    name: str, strength: float, seed: int, steps: int, lengths: tuple[int, ...]
) -> dict[int, dict[str, float]]:
    """Sequence length -> figures of one hypernetwork."""
    torch.manual_seed(seed)
    module, generator = network(), torch.Generator().manual_seed(1000 + seed)
    hypernet = GENERATORS[name](Target.of(module), {"task": Categorical(1, embedding=24)})
    module.to("meta")
    learned: list[float] = []
    found = {}

    def weights(task: int) -> dict[str, Tensor]:
        return {name: value[0] for name, value in hypernet.generate({"task": task}).items()}

    for task, order in enumerate(orders(max(lengths))):
        keep = None
        if task > 0:
            hypernet.add_task()
            keep = OutputRegularizer(hypernet, {"task": torch.arange(task)}, strength=strength) if strength else None

        def loss_of(images: Tensor, labels: Tensor, task: int = task, keep: Any = keep) -> Tensor:
            loss = F.cross_entropy(apply(module, weights(task), images), labels)
            return loss + keep() if keep else loss

        descend(hypernet.parameters(), loss_of, order, steps, generator)
        with torch.no_grad():
            learned.append(accuracy(weights(task), order))
            if task + 1 in lengths:
                sets = [weights(j) for j in range(task + 1)]
                grid = [[accuracy(chosen, order) for chosen in sets] for order in orders(task + 1)]
                found[task + 1] = summary(learned, grid)
                found[task + 1]["parameters"] = sum(p.numel() for p in hypernet.parameters())
    return found


def plain(fresh: bool, seed: int, steps: int, lengths: tuple[int, ...]) -> dict[int, dict[str, float]]:
    """Sequence length -> figures of networks without a hypernetwork: one for all tasks, or a fresh one for each."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    module = network()
    sets: list[dict[str, Tensor]] = []
    learned: list[float] = []
    found = {}
    for task, order in enumerate(orders(max(lengths))):
        if fresh and task:
            module = network()
        current = module

        def loss_of(images: Tensor, labels: Tensor, current: nn.Module = current) -> Tensor:
            return F.cross_entropy(current(images), labels)

        descend(current.parameters(), loss_of, order, steps, generator)
        sets.append(dict(current.named_parameters()))
        learned.append(accuracy(sets[-1], order))
        if task + 1 in lengths:
            grid = [[accuracy(chosen, order) for chosen in sets] for order in orders(task + 1)]
            found[task + 1] = summary(learned, grid)
            found[task + 1]["parameters"] = sum(p.numel() for p in current.parameters()) * (task + 1 if fresh else 1)
    return found


Job = tuple[str, float | None, int]


def figures(job: Job, *, steps: int, lengths: tuple[int, ...]) -> dict[int, dict[str, float]]:
    """Sequence length -> figures of one kind of network, strength and seed."""
    torch.set_num_threads(1)
    name, strength, seed = job
    if strength is None:
        return plain(name == OWN, seed, steps, lengths)
    return generated(name, strength, seed, steps, lengths)


def run(quick: bool = False) -> Result:
    """Three seeds, two processes; ``quick`` takes one seed, 40 steps a task, and sequences of two and three tasks."""
    seeds, steps, lengths = (SEEDS[:1], 40, (2, 3)) if quick else (SEEDS, 250, LENGTHS)
    kinds = [(SEQUENTIAL, None), (OWN, None), *itertools.product(GENERATORS, STRENGTHS)]
    jobs: list[Job] = [(name, strength, seed) for name, strength in kinds for seed in seeds]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        each = dict(zip(jobs, pool.map(functools.partial(figures, steps=steps, lengths=lengths), jobs), strict=True))

    def mean(length: int, name: str, strength: float | None, column: str) -> float:
        return statistics.fmean(each[name, strength, seed][length][column] for seed in seeds)

    rows = [
        {
            "tasks": length,
            "network": name,
            "beta": "-" if strength is None else f"{strength:g}",
            "parameters": f"{mean(length, name, strength, 'parameters'):,.0f}",
            **{column: f"{mean(length, name, strength, column):.3f}" for column in COLUMNS},
            "final, each seed": " ".join(f"{each[name, strength, seed][length]['final']:.3f}" for seed in seeds),
        }
        for length in lengths
        for name, strength in kinds
    ]
    short, long = lengths
    loose = {name: mean(short, name, 0.0, "final") for name in GENERATORS}
    kept = {name: mean(short, name, 0.1, "final") for name in GENERATORS}
    lost = mean(short, "recurrent", 0.1, "forgetting")
    late = {name: mean(long, name, 0.1, "final") for name in GENERATORS}
    return Result(
        tuple(rows),
        f"final accuracy of {short} tasks: beta 0, {listed(loose)} (asked of the perceptrons: <= 0.65); beta 0.1, "
        f"{listed(kept)} (asked of the recurrent one: >= 0.89 and >= both perceptrons), which forgets {lost:.3f} "
        f"(asked: <= 0.02); of {long} tasks with beta 0.1, {listed(late)}; means of {len(seeds)} seeds",
        max(loose["concatenated"], loose["chunked"]) <= 0.65
        and kept["recurrent"] >= max(0.89, *kept.values())
        and lost <= 0.02,
    )


def listed(found: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in found.items())
