"""The command line: ``mechprobe``. Each command imports what it needs when it runs, so that ``--help`` is instant."""

from mechprobe.cli.ending import main

__all__ = ["main"]
