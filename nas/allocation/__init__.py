"""Exact allocation of bitwidths: what each costs and spoils, and the best choice under budgets."""

from nas.allocation.program import Allocation, BudgetError, RateDistortionTable, allocate, front

__all__ = ["Allocation", "BudgetError", "RateDistortionTable", "allocate", "front"]
