"""Sweep: every checkpoint on every benchmark, one result file each."""

from mechprobe.callable_package import make_callable

make_callable(__name__)
