"""The command line: ``mechprobe``. Each command imports what it needs when it runs, so that ``--help`` is instant."""

from mechprobe.cli.app import main

__all__ = ["main"]
