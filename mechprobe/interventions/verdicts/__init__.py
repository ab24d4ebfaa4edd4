"""From outcomes of conditions to effects, tests and verdicts."""
