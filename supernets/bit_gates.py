"""Binary gates on nested bitwidths: open a gate, and the residual of the next bitwidth is added."""

import torch
from torch import Tensor

from supernets.straight_through import straight_through

__all__ = ["at_boundary", "gate", "open_gates", "residual_metric", "shares"]


def gate(metric: Tensor, threshold: Tensor) -> Tensor:
    """Return ``1(metric > threshold)``, with the gradient of a sigmoid with respect to the threshold alone.

    ``dg / dthreshold = -sigma(u) (1 - sigma(u))`` with ``u = metric - threshold`` (Liu et al., arXiv 2101.04935,
    Sec. 3.2). The metric, and with it the weights, gets no gradient.

    Args:
        metric: what is measured, of any shape.
        threshold: of that shape.
    """
    distance = metric.detach() - threshold
    soft = torch.sigmoid(distance)
    return straight_through((distance > 0).to(soft.dtype), soft)


def shares(gates: Tensor) -> Tensor:
    """Return the weight of each of ``K`` nested bitwidths, ``(K,)``, from the ``K - 1`` gates between them.

    ``q_1 + g_2 (q_2 - q_1 + g_3 (q_3 - q_2 + ...)) = sum_k p_k q_k`` with ``p_k = prod_{i <= k} g_i (1 - g_(k+1))``: a
    closed gate closes all behind it. At gates of 0 and 1 the weights are one-hot.
    """
    reached = torch.cat([gates.new_ones(1), gates.cumprod(0)])
    return reached - torch.cat([reached[1:], reached.new_zeros(1)])


def at_boundary(gates: Tensor) -> Tensor:
    """Return ``gates`` with gradients for two of them alone, the last open one and the first closed one; closed behind.

    These are the ones that can change the bitwidth by one position. All others enter as constants: with residuals in
    comparable units a cost would otherwise close the inner gates first, which carry the cost of all behind them, and a
    layer would fall from the highest bits to the lowest at once.

    Args:
        gates: ``(K - 1,)``, 0 or 1.
    """
    reached = (gates.detach() > 0).to(gates.dtype).cumprod(0)
    count = int(reached.sum())
    places = torch.arange(len(gates), device=gates.device)
    return torch.where((places == count) | (places == count - 1), gates, reached)


def open_gates(metric: Tensor, threshold: Tensor) -> int:
    """Return the position of the bitwidth that the gates lead to: how many are open before the first closed one."""
    return int((metric > threshold).long().cumprod(0).sum())


def residual_metric(values: Tensor, quantized: Tensor, step: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Return the mean squared residual of a bitwidth in units of what rounding of spread-out values leaves, ``()``.

    ``m = mean((clip(x) - Q(x))^2 / (s^2 / 12))``: about 1 for values that spread evenly between neighbours of the
    grid, less where many lie on it. Without these units the residual of 2 bits would be 25 times that of 4, whatever
    the layer.

    Args:
        values: to be quantised.
        quantized: what became of them.
        step: of the grid, broadcastable.
        bounds: smallest and largest value of the grid in steps.
    """
    with torch.no_grad():
        inside = (values / step).clamp(*bounds)
        return 12 * (inside - quantized / step).square().mean()
