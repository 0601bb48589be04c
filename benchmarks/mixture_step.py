"""One training step of a mixture of two experts against the same step under plain sharing.

A decoder-only transformer space (context 64, width up to 128, up to 3 blocks) and batches of 64 x 64 tokens, one
sandwich step of four architectures with its AdamW step. The mixture holds two experts of both linear maps of every
feed-forward network, as in the paper. Both sides take the same architectures on the same batch, either one first in
turn; the figure is the median of the ratios. Other mixtures are reported beside it.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch

from benchmarks import Result
from benchmarks._training import Step, in_turn
from search_spaces import TransformerSpace
from supernets import LanguageModelling, MixtureWeights, SandwichRule, SharedWeights, Supernet, WeightSource

ASKED = 1.15
BATCH, CONTEXT, VOCABULARY = 64, 64, 65
MIXTURES: Mapping[str, Callable[..., WeightSource]] = {
    "2 experts, by layer": MixtureWeights,
    "2 experts, by neuron": partial(MixtureWeights, routing="neuron"),
    "4 experts, by layer": partial(MixtureWeights, experts=4),
    "4 experts of rank 8": partial(MixtureWeights, experts=4, rank=8),
}


def make_space() -> TransformerSpace:
    return TransformerSpace(
        VOCABULARY, CONTEXT, widths=(64, 96, 128), depths=(2, 3), heads=(2, 3, 4), ffn_ratios=(2, 3, 4), head_dim=32
    )


def run(quick: bool) -> Result:
    torch.set_num_threads(1)
    space, rule = make_space(), SandwichRule(2)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (BATCH, CONTEXT + 1), generator=generator)
    batch = tokens[:, :-1], tokens[:, 1:]
    plain = Step(Supernet(space, LanguageModelling(), source=SharedWeights, rule=rule))
    rows, ratios = [], {}
    for name, source in MIXTURES.items():
        mixed = Step(Supernet(space, LanguageModelling(), source=source, rule=rule))
        ours, reference, ratios[name] = in_turn(mixed, plain, batch, 3 if quick else 10)
        rows.append(
            {
                "weights": name,
                "mixture, ms": f"{ours * 1e3:.0f}",
                "plain sharing, ms": f"{reference * 1e3:.0f}",
                "median ratio": f"{ratios[name]:.3f}",
            }
        )
    ratio = ratios["2 experts, by layer"]
    return Result(
        tuple(rows),
        f"a training step of two experts by layer takes {ratio:.3f} x that of plain sharing (asked: <= {ASKED} x)",
        ratio <= ASKED,
    )
