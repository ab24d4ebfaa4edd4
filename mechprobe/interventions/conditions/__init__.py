"""The conditions of an intervention: sets, controls, baselines and ceilings, and how they run."""
