"""Enumeration: list every element, case or option that satisfies the constraints."""

from mechprobe.evals.skills.enumeration import digits_above

FAMILIES = (digits_above.FAMILY,)
