"""Emergence: when features appear over training checkpoints, how long they stay, and what they cause."""

from mechprobe.callable_package import make_callable

make_callable(__name__)
