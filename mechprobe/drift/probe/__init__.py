"""Behaviour along post-training: skill profiles, their drift, and what it goes along with."""

from mechprobe.callable_package import make_callable

make_callable(__name__)
