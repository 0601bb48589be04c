"""Does Mixture-of-Supernets bring subnetworks of a language model closer to networks trained alone?

Character language models of one megabyte of Shakespeare (decoder-only transformers, width 16 to 64, 1 or 2 blocks,
feed-forward ratio 1 to 4, context 64). The smallest, the middle and the largest are trained alone; supernets train the
largest, the smallest and a random subnetwork in each step, all on labels, for the same number of steps on the same
batches. The gap is the validation loss of a subnetwork with its supernet's weights above that of its twin trained
alone. One mixture is that of the paper, two experts of every feed-forward network; the other, which is judged, mixes
attention and norms too. Each has the authors' control beside it, the same experts behind a router that sees no
architecture. Time is that of one step against one of plain sharing, taken in turn. Memory is that of parameters,
gradients, both moments of AdamW, and what the largest forward pass keeps for the backward pass.
"""

import statistics
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch

from benchmarks import Result
from benchmarks._training import Step, fit, in_turn
from nas import TextData
from nas.standalone import Recipe, score, train
from search_spaces import TransformerSpace
from supernets import (
    Cosine,
    LanguageModelling,
    MixtureWeights,
    SandwichRule,
    SharedWeights,
    Slot,
    Supernet,
    WeightSource,
)

SEEDS = (0, 1, 2)
STEPS = 1500
CONTEXT, BATCH, VOCABULARY = 64, 16, 66
PLAIN, MIXTURE, WIDER = "plain sharing", "2 experts of FFNs", "2 experts of whole blocks"
CONTROLS = {MIXTURE: f"{MIXTURE}, constant encoding", WIDER: f"{WIDER}, constant encoding"}
BLOCKS = ("blocks.*",)
SIZES = ("smallest", "middle", "largest")
SOURCES: Mapping[str, Callable[..., WeightSource]] = {
    PLAIN: SharedWeights,
    MIXTURE: MixtureWeights,
    CONTROLS[MIXTURE]: partial(MixtureWeights, encoding="constant"),
    WIDER: partial(MixtureWeights, mixed=BLOCKS),
    CONTROLS[WIDER]: partial(MixtureWeights, mixed=BLOCKS, encoding="constant"),
}


def make_space() -> TransformerSpace:
    return TransformerSpace(
        VOCABULARY, CONTEXT, widths=(16, 32, 64), depths=(1, 2), heads=(1, 2), ffn_ratios=(1, 2, 4), head_dim=16
    )


def make_data(seed: int) -> TextData:
    return TextData("tinyshakespeare/input.txt", context=CONTEXT, batch_size=BATCH, vocabulary=VOCABULARY, seed=seed)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)


def make_supernet(name: str, seed: int) -> Supernet:
    return Supernet(
        make_space(),
        LanguageModelling(),
        source=partial(SOURCES[name], seed=seed),
        rule=SandwichRule(1, distillation=False),
        optimizer=adamw,
        schedule=Cosine(warmup=0.05),
        decay_norms=True,
        seed=seed,
    )


def losses(job: tuple[str, int], steps: int) -> dict[str, float]:
    """Validation loss in nats of the three sizes, trained alone or in one kind of supernet."""
    torch.set_num_threads(1)
    name, seed = job
    data, task = make_data(seed), LanguageModelling()
    data.setup("fit")
    if name in SOURCES:
        supernet = fit(make_supernet(name, seed), data, steps)
        modules = {size: supernet.extract(architecture) for size, architecture in supernet.anchors().items()}
    else:
        anchors = make_supernet(PLAIN, seed).anchors()
        torch.manual_seed(seed)
        recipe = Recipe(steps=steps, optimizer=adamw, schedule=Cosine(warmup=0.05))
        modules = {name: train(make_space().build(anchors[name]), task, data, recipe)}
    found = {size: score(module, task, data.val_dataloader())["loss"] for size, module in modules.items()}
    print(f"seed {seed}, {name}: " + ", ".join(f"{size} {loss:.4f}" for size, loss in found.items()), flush=True)
    return found


def memory(supernet: Supernet, batch: Any) -> int:
    """Bytes of a training step."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    supernet.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, _ = supernet.step_loss(Slot(supernet.space.largest(), "labels"), batch, None)
    del loss
    parameters = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in supernet.parameters()}
    activations = sum(size for place, size in kept.items() if place not in parameters)
    return 4 * sum(parameters.values()) + activations


def costs(quick: bool) -> dict[str, tuple[float, float]]:
    """(time, memory) of a training step, relative to plain sharing."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, VOCABULARY, (BATCH, CONTEXT + 1), generator=generator)
    batch = tokens[:, :-1], tokens[:, 1:]
    plain = make_supernet(PLAIN, 0)
    found = {}
    for name in SOURCES:
        supernet = make_supernet(name, 0)
        size = memory(supernet, batch) / memory(plain, batch)
        _, _, ratio = in_turn(Step(supernet), Step(plain), batch, 3 if quick else 20)
        found[name] = ratio, size
    return found


def advantage(better: list[float], worse: list[float]) -> tuple[float, float]:
    """Mean of ``worse - better`` over seeds and its standard error."""
    differences = [b - a for a, b in zip(better, worse, strict=True)]
    error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else 0.0
    return statistics.fmean(differences), error


def run(quick: bool) -> Result:
    steps, seeds = (30, SEEDS[:1]) if quick else (STEPS, SEEDS)
    spent = costs(quick)
    jobs = [(name, seed) for seed in seeds for name in (*SOURCES, *SIZES)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = dict(zip(jobs, pool.map(partial(losses, steps=steps), jobs), strict=True))
    alone = {size: [found[size, seed][size] for seed in seeds] for size in SIZES}
    rows: list[dict[str, object]] = [
        {
            "weights": "trained alone",
            **{f"{size}, nats": f"{statistics.fmean(alone[size]):.4f}" for size in SIZES},
            **dict.fromkeys(("mean gap", "below plain sharing", "time", "memory"), ""),
        }
    ]
    gaps: dict[str, list[float]] = {}
    for name in SOURCES:
        apart = {
            size: [found[name, seed][size] - a for seed, a in zip(seeds, alone[size], strict=True)] for size in SIZES
        }
        gaps[name] = [statistics.fmean(parts) for parts in zip(*apart.values(), strict=True)]
        gain, error = advantage(gaps[name], gaps[PLAIN])
        rows.append(
            {
                "weights": name,
                **{f"{size}, nats": f"{statistics.fmean(parts):+.4f}" for size, parts in apart.items()},
                "mean gap": f"{statistics.fmean(gaps[name]):+.4f}",
                "below plain sharing": "" if name == PLAIN else f"{gain:+.4f} +- {error:.4f}",
                "time": f"{spent[name][0]:.2f} x",
                "memory": f"{spent[name][1]:.2f} x",
            }
        )
    verdicts, passed = [], {}
    for name, control in CONTROLS.items():
        pairs = [advantage(gaps[name], gaps[other]) for other in (PLAIN, control)]
        passed[name] = all(gain > 2 * error for gain, error in pairs)
        (plain, plain_error), (same, same_error) = pairs
        verdicts.append(
            f"{name} leave a gap {plain:+.4f} +- {plain_error:.4f} nats below that of plain sharing and "
            f"{same:+.4f} +- {same_error:.4f} below that of the same experts with a constant encoding"
        )
    return Result(
        tuple(rows),
        f"{len(seeds)} seeds, mean of three sizes, paired, with standard errors: {'; '.join(verdicts)} (asked of "
        f"{WIDER}: below both by more than two standard errors)",
        passed[WIDER],
    )
