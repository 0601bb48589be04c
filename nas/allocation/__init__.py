"""Exact allocation of bitwidths: what each costs and spoils, and the best choice under budgets."""

from nas.allocation.measured import Allocated, Distortion, RateDistortion, distortion_between, sites_of
from nas.allocation.program import Allocation, BudgetError, RateDistortionTable, allocate, front
from nas.allocation.seeds import BitAllocation, SelectedArchitecture, SubnetworkOutputs

__all__ = [
    "Allocated",
    "Allocation",
    "BitAllocation",
    "BudgetError",
    "Distortion",
    "RateDistortion",
    "RateDistortionTable",
    "SelectedArchitecture",
    "SubnetworkOutputs",
    "allocate",
    "distortion_between",
    "front",
    "sites_of",
]
