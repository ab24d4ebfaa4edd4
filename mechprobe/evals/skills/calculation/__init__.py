"""Calculation: derive a quantity by arithmetic, algebra or a formula."""

from mechprobe.evals.skills.calculation import sums

FAMILIES = (sums.FAMILY,)
