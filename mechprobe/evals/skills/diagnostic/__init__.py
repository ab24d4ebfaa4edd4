"""Diagnostic: find, localize and correct an error in worked steps."""

from mechprobe.evals.skills.diagnostic import machine_claims

FAMILIES = (machine_claims.FAMILY,)
