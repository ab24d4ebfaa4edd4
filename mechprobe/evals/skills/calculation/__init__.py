"""Calculation: derive a quantity by arithmetic, algebra or a formula."""

from mechprobe.evals.skills.calculation import (
    circuit,
    dates,
    eigenvalues,
    expressions,
    factors,
    gcd,
    motion,
    number_bases,
    shopping,
    sums,
)

FAMILIES = (
    sums.FAMILY,
    gcd.FAMILY,
    eigenvalues.FAMILY,
    factors.FAMILY,
    motion.FAMILY,
    circuit.FAMILY,
    expressions.FAMILY,
    number_bases.FAMILY,
    dates.FAMILY,
    shopping.FAMILY,
)
