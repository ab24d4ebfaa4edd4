"""Diagnostic: find, localize and correct an error in worked steps."""

from mechprobe.evals.skills.diagnostic import (
    machine_claims,
    retold,
    worked_motion,
    worked_residues,
    worked_sums,
    worked_trace,
)

FAMILIES = (
    machine_claims.FAMILY,
    worked_sums.FAMILY,
    worked_residues.FAMILY,
    worked_motion.FAMILY,
    worked_trace.FAMILY,
    retold.FAMILY,
)
