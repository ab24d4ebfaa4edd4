"""Enumeration: list every element, case or option that satisfies the constraints."""

from mechprobe.evals.skills.enumeration import (
    digits_above,
    divisors,
    lattice_paths,
    loop_outputs,
    microstates,
    subset_sums,
    with_property,
)

FAMILIES = (
    digits_above.FAMILY,
    divisors.FAMILY,
    subset_sums.FAMILY,
    lattice_paths.FAMILY,
    microstates.FAMILY,
    loop_outputs.FAMILY,
    with_property.FAMILY,
)
