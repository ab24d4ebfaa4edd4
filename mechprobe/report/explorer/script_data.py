"""Data as JavaScript files. A page of the file system may load scripts, but not fetch files."""

import base64
import json
from typing import Any

import numpy as np
from numpy import ndarray


def packed(values: Any, kind: str) -> str:
    """An array as base64 of its little-endian bytes, such as ``<f4``, which a page reads as a typed array."""
    array: ndarray = np.ascontiguousarray(np.asarray(values).astype(kind))
    return base64.b64encode(array.tobytes()).decode("ascii")


def call(name: str, *values: Any) -> str:
    r"""A script that calls ``explorer.<name>`` with JSON values.

    The text is ASCII, and ``<`` is written ``\u003c``: no text in it can end a script element or be read as markup.
    """
    written = (json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c") for value in values)
    return f"explorer.{name}({','.join(written)});\n"
