"""Are multiply-accumulates by closed formula those that PyTorch's operator counter sees, in every kind of space?

Random subnetworks are extracted from a supernet and run with real weights under ``FlopCounterMode``, in gradient mode,
with the math backend of attention and without the fused path of ``nn.MultiheadAttention``; half of what it counts must
be the cost to the unit. Bit operations at uniform bits must be the product formula of it, where every product has bits.
"""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import Result
from nas import BitOps, MACs
from nas.costs import measure
from search_spaces import (
    Architecture,
    CellSpace,
    ConvNetSpace,
    DARTSSpace,
    FactorySpace,
    Head,
    MLPSpace,
    QuantizedSpace,
    SearchSpace,
    Stack,
    Stage,
    Stem,
    TDNNSpace,
    TransformerSpace,
    TranslationSpace,
    VisionTransformerSpace,
    fill,
)
from supernets import QuantizedWeights, SharedWeights, WeightSource

EACH = 18
BITS = 4


class Encoder(nn.Module):
    """A user's own model around the attention of PyTorch."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Linear(6, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True) for _ in range(depth)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return x


def spaces() -> Mapping[str, SearchSpace]:
    """One or more of every kind."""
    residual = ConvNetSpace(
        [Stage((8, 12, 16), (1, 2, 3), (3, 5, 7), (0.5, 1), stride=2, block="residual")] * 2,
        10,
        resolutions=(12, 16),
        head=Head((16, 24)),
    )
    perceptron = MLPSpace(48, 10)
    return {
        "perceptron": perceptron,
        "residual": residual,
        "inverted residual": ConvNetSpace(
            [Stage((8, 16), (1, 2), (3, 5), (2, 3.5, 6), 2, squeeze_excite=True, project_shortcut=True)] * 2,
            10,
            resolutions=(12, 16),
            stem=Stem((8, 16)),
            head=Head((16, 24), expansion=2),
            per_block=True,
        ),
        "language model": TransformerSpace(
            17, 12, widths=(16, 24), depths=(1, 2, 3), heads=(1, 2, 3), ffn_ratios=(1, 2, 4), head_dim=8
        ),
        "vision transformer": VisionTransformerSpace(
            10, 8, 2, widths=(16, 24), depths=(1, 2, 3), heads=(1, 2, 3), ffn_ratios=(1, 2), head_dim=8, in_channels=1
        ),
        "translation": TranslationSpace(
            17,
            9,
            encoder=Stack((16, 24), (1, 2), (1, 2), (1, 2)),
            decoder=Stack((12, 20), (1, 2), (1, 2), ffn_widths=(12, 24), cross_heads=(1, 2)),
            head_dim=8,
        ),
        "speakers": TDNNSpace(
            5, mels=12, frames=20, widths=(8, 16), kernels=(1, 3, 5), depths=(1, 2, 3), head_widths=(8, 12), scale=4
        ),
        "cells": CellSpace(10, resolution=8, widths=(4, 8), cells=2),
        "darts": DARTSSpace(10, resolution=8, width=4, cells=3, nodes=3),
        "bring your own": FactorySpace(
            Encoder,
            {"width": [8, 16, 24], "depth": [1, 2, 3]},
            input_shape=(7, 6),
            slicing={"*.in_proj_*": {"blocks": {0: 3}}},
        ),
        "quantised perceptron": QuantizedSpace(perceptron, ends=None, weight_bits=(BITS, 8), input_bits=(BITS, 8)),
        "quantised residual": QuantizedSpace(residual, ends=None, weight_bits=(BITS, 8), input_bits=(BITS, 8)),
    }


def weights(space: SearchSpace) -> WeightSource:
    """Return shared weights, quantised where the space says so."""
    if not isinstance(space, QuantizedSpace):
        return SharedWeights(space)
    source = QuantizedWeights(space)
    source.observe([space.inputs(space.largest(), 4)])
    return source


def counted(source: WeightSource, architecture: Architecture) -> float:
    """MACs of an extracted subnetwork as the operator counter sees them."""
    with torch.no_grad():
        module = fill(source.space.build(architecture), source(architecture), copy=True).eval()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.enable_grad(), FlopCounterMode(display=False) as counter:
            module(*source.space.inputs(architecture))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() / 2


def run(quick: bool = False) -> Result:
    """Eighteen subnetworks of each of twelve spaces, or all there are; ``quick`` takes three."""
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for name, space in spaces().items():
        generator, source = torch.Generator().manual_seed(0), weights(space)
        drawn = {space.sample(generator): None for _ in range(200)}
        macs = MACs(space)
        costs = [macs, BitOps(space)]
        equal, products, most = 0, 0, 0.0
        chosen = list(drawn)[: 3 if quick else EACH]
        for architecture in chosen:
            found = measure(costs, space, architecture)
            equal += found["macs"] == counted(source, architecture)
            most = max(most, found["macs"])
            if isinstance(space, QuantizedSpace):
                at_four = space.quantized(space.base(architecture), BITS)
                products += measure(costs, space, at_four)["bops_product"] == BITS**2 * found["macs"]
            else:
                products += found["bops_product"] == 1024 * found["macs"]
        rows.append(
            {
                "space": name,
                "by": "closed formulas" if macs.method == "layers" else macs.method,
                "subnetworks": len(chosen),
                "equal to the counter": equal,
                "bit operations equal": products,
                "most MACs": f"{most:,.0f}",
            }
        )
    total, equal, products = (
        sum(int(str(row[key])) for row in rows)
        for key in ("subnetworks", "equal to the counter", "bit operations equal")
    )
    closed = all(row["by"] == "closed formulas" for row in rows)
    return Result(
        tuple(rows),
        f"{equal} of {total} subnetworks of {len(rows)} spaces have the MACs of the operator counter, {products} the "
        f"bit operations of the product formula, {'all' if closed else 'not all'} by closed formulas (asked: all)",
        closed and equal == products == total,
    )
