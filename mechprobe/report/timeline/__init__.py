"""The timeline of a run: every quantity of its result files on one axis of steps, and what moved first."""
