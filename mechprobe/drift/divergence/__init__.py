"""How far the next-token distributions and residual streams of tuned models are from those of base."""

from mechprobe.callable_package import make_callable

make_callable(__name__)
