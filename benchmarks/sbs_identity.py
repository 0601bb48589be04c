"""Shared bits: is a grid of 8 bits the grid of 2 bits plus its gated residuals, and is a gated network its hard one?

``D(z, s_b) = s_b round(z / s_b)`` with ``s_b = 1 / (2^b - 1)``: rounding to 2 bits, then the residual to 4, then the
residual to 8, against rounding once. A million random numbers in both precisions, and the midpoints of the grid of 4
bits, where rounding half to even may differ and single-shot rounding is what counts. Then the same through the
quantiser of weights and its gates, and a convolutional network at 50 random settings of its gates against the
subnetwork of the same bits.
"""

from functools import partial

import torch
from torch import Tensor

from benchmarks import Result
from benchmarks._bits import space
from nas.bitops import BitOps
from search_spaces import QuantizedSpace
from supernets import SBS, Classification, QuantizedWeights, SBSRule, Slot, Supernet
from supernets.bit_gates import shares
from supernets.relaxed_bits import superposed

BITS = (2, 4, 8)


def rounded(z: Tensor, bits: int) -> Tensor:
    """``D(z, s_b)``."""
    levels = 2**bits - 1
    return (z * levels).round() / levels


def nested(z: Tensor) -> dict[int, Tensor]:
    """Rounding to 2 bits, and the residuals that 4 and 8 bits add."""
    two = rounded(z, 2)
    four = two + rounded(z - two, 4)
    return {2: two, 4: four, 8: four + rounded(z - four, 8)}


def mismatches(z: Tensor, tolerance: float) -> list[int]:
    """How many numbers the decomposition to 4 and to 8 bits gets other than single-shot rounding."""
    found = nested(z)
    return [int(((found[bits] - rounded(z, bits)).abs() > tolerance).sum()) for bits in (4, 8)]


def through_quantizer(count: int) -> float:
    """Largest difference of gated weights at random gates to the decomposition, in float64."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(count, generator=generator, dtype=torch.float64)
    scale, quantizer = torch.tensor(2.0, dtype=torch.float64), SBS("tensor")
    z = ((weight / scale).clamp(-1, 1) + 1) / 2
    found = nested(z)
    worst = 0.0
    for _ in range(5):
        gates = torch.rand(2, generator=generator, dtype=torch.float64)
        expected = found[2] + gates[0] * (found[4] - found[2] + gates[1] * (found[8] - found[4]))
        mixed = superposed([partial(quantizer, weight, bits, scale) for bits in BITS], shares(gates))
        worst = max(worst, float((mixed - scale * (2 * expected - 1)).abs().max()))
    return worst


def through_network(count: int) -> float:
    """Largest difference of the loss through hard gates to that of the subnetwork of the same bits."""
    wanted = QuantizedSpace(space())
    rule = SBSRule(BitOps)
    supernet = Supernet(
        wanted, Classification(10), source=lambda s: QuantizedWeights(s, quantizer=SBS()), rule=rule
    ).train()
    generator = torch.Generator().manual_seed(2)
    batch = torch.randn(4, 3, 32, 32, generator=generator), torch.randint(10, (4,), generator=generator)
    supernet.source.observe([batch[:1]])
    worst = 0.0
    for step in range(count):
        for thresholds in rule.thresholds.values():
            thresholds.data = 5.0 * (torch.arange(2) >= torch.randint(3, (), generator=generator)).float()
        (slot,) = rule.slots(wanted, seed=0, step=step, score=lambda _: 0.0)
        hard = rule.selected()
        assert hard is not None
        gated, _ = supernet.step_loss(slot, batch, None)
        single, _ = supernet.step_loss(Slot(hard, "labels"), batch, None)
        worst = max(worst, abs(float(gated.detach()) - float(single.detach())))
    return worst


def run(quick: bool = False) -> Result:
    """Count mismatches; ``quick`` takes a hundredth of the numbers and few networks."""
    count = 10_000 if quick else 1_000_000
    z = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    double, single = mismatches(z, 1e-9), mismatches(z.float(), 1e-4)
    ties = (torch.arange(15, dtype=torch.float64) + 0.5) / 15
    tied = mismatches(ties, 1e-9)
    weights, network = through_quantizer(count // 10), through_network(5 if quick else 50)
    rows = (
        {"what": f"{count:,} numbers in float64", "4 bits": double[0], "8 bits": double[1]},
        {"what": f"{count:,} numbers in float32", "4 bits": single[0], "8 bits": single[1]},
        {"what": "15 midpoints of the grid of 4 bits", "4 bits": tied[0], "8 bits": tied[1]},
    )
    passed = sum(double) == 0 and weights < 1e-9 and network < 1e-5
    return Result(
        rows,
        f"{sum(double)} mismatches off ties in float64 (asked: 0); gated weights differ by {weights:.0e} (asked: < "
        f"1e-9), the loss of gated networks from that of their bits by {network:.0e} (asked: < 1e-5)",
        passed,
    )
