"""One readable report from the files of a run folder; works without torch and without the models."""

from mechprobe.callable_package import make_callable

make_callable(__name__)
