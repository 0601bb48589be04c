"""Does Mixture-of-Supernets bring subnetworks of a language model closer to networks trained alone?

Character language models of one megabyte of Shakespeare (decoder-only transformers, width 16 to 64, 1 or 2 blocks,
feed-forward ratio 1 to 4, context 64). The smallest, the middle and the largest are trained alone; supernets train the
largest, the smallest and a random subnetwork in each step, all on labels, for the same number of steps on the same
batches. The gap is the validation loss of a subnetwork with its supernet's weights above that of its twin trained
alone. The mixture is that of the paper, two experts of every feed-forward network; beside it the authors' control, a
router that sees no architecture, and a mixture of attention and norms too. Time is that of one step against one of
plain sharing, taken in turn. Memory is that of parameters, gradients, both moments of AdamW, and what the largest
forward pass keeps for the backward pass.
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
STEPS = 3000
CONTEXT, BATCH, VOCABULARY = 64, 16, 66
PLAIN, MIXTURE, CONTROL = "plain sharing", "2 experts of FFNs", "2 experts, constant encoding"
SIZES = ("smallest", "middle", "largest")
SOURCES: Mapping[str, Callable[..., WeightSource]] = {
    PLAIN: SharedWeights,
    MIXTURE: MixtureWeights,
    CONTROL: partial(MixtureWeights, encoding="constant"),
    "2 experts of whole blocks": partial(MixtureWeights, mixed=("blocks.*",)),
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


def run(quick: bool) -> Result:
    steps, seeds = (30, SEEDS[:1]) if quick else (STEPS, SEEDS)
    spent = costs(quick)
    jobs = [(name, seed) for seed in seeds for name in (*SOURCES, *SIZES)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = dict(zip(jobs, pool.map(partial(losses, steps=steps), jobs), strict=True))
    alone = {(size, seed): found[size, seed][size] for seed in seeds for size in SIZES}
    gaps = {
        name: {size: [found[name, seed][size] - alone[size, seed] for seed in seeds] for size in SIZES}
        for name in SOURCES
    }
    mean = {
        name: statistics.fmean(gap for parts in by_size.values() for gap in parts) for name, by_size in gaps.items()
    }
    rows: list[dict[str, object]] = [
        {
            "weights": "trained alone",
            **{f"{size}, nats": f"{statistics.fmean(alone[size, seed] for seed in seeds):.4f}" for size in SIZES},
            "mean gap": "",
            "sd over seeds": "",
            "time": "",
            "memory": "",
        }
    ]
    for name, by_size in gaps.items():
        by_seed = [statistics.fmean(parts) for parts in zip(*by_size.values(), strict=True)]
        rows.append(
            {
                "weights": name,
                **{f"{size}, nats": f"{statistics.fmean(parts):+.4f}" for size, parts in by_size.items()},
                "mean gap": f"{mean[name]:+.4f}",
                "sd over seeds": f"{statistics.stdev(by_seed) if len(seeds) > 1 else 0:.4f}",
                "time": f"{spent[name][0]:.2f} x",
                "memory": f"{spent[name][1]:.2f} x",
            }
        )
    return Result(
        tuple(rows),
        f"mean gap to networks trained alone over {len(seeds)} seeds and three sizes: {mean[MIXTURE]:+.4f} nats with "
        f"{MIXTURE}, {mean[PLAIN]:+.4f} with plain sharing, {mean[CONTROL]:+.4f} with a constant encoding (asked: "
        "smaller than both)",
        mean[MIXTURE] < min(mean[PLAIN], mean[CONTROL]),
    )
