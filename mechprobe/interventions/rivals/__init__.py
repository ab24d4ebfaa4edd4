"""Rival explanations of a change: what a few directions, a rescaled difference or a small change of weights do in its place."""
