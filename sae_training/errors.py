"""Errors that a caller can correct. Each message is one sentence with the fault, its place and the fix.

Exception
└── UserError                 base; the command line prints the message without a traceback and exits with code 2
    ├── SaeTrainingError      also a ValueError: a wrong shape, an unknown configuration key, a damaged file
    └── mechprobe.errors.MechprobeError    base of the errors of mechprobe, which has its own drawing
"""


class UserError(Exception):
    """An error that the user can correct.

    Attributes:
        exit_code: Exit code of a command that ends with this error.
    """

    exit_code = 2


class SaeTrainingError(UserError, ValueError):
    """A wrong shape, an unknown configuration key, a damaged file, or training that is not finite."""
