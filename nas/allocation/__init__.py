"""Exact allocation of bitwidths: what each costs and spoils, and the best choice under budgets."""

from nas.allocation.measured import Allocated, Distortion, RateDistortion, distortion_between, sites_of
from nas.allocation.program import Allocation, BudgetError, RateDistortionTable, allocate, front

__all__ = [
    "Allocated",
    "Allocation",
    "BudgetError",
    "Distortion",
    "RateDistortion",
    "RateDistortionTable",
    "allocate",
    "distortion_between",
    "front",
    "sites_of",
]
