"""The axis vocabulary and the name of a place in a model.

Axes, wherever a shape is written: ``sample``, ``pos`` (position in a sequence), ``row`` (a kept token of the
store), ``batch``, ``model``, ``d_model``, ``d_sae``, ``vocab``, ``layer``, ``site``, ``draw``.
"""

import re
from dataclasses import dataclass
from typing import Literal

from mechprobe.errors import SiteError

OutcomeName = Literal["right", "wrong", "unparsed"]
"""What the scorer said of one response; ``unparsed`` is never counted as right, and is shown apart from wrong."""

POOLED = "pooled"
"""Name of the row over all held-out tasks together; no task may have it."""

ReadoutMode = Literal["swap", "joint", "single"]
"""How one model's feature activations are read through the joint encoder; see `mechprobe.dictionary.readout`."""

_SITE = re.compile(r"resid_post\.(\d+)")


@dataclass(frozen=True, order=True)
class Site:
    """A place in every model of a family: the residual stream after block ``layer``.

    Example:
        >>> Site.parse("resid_post.2").hook_name
        'blocks.2.hook_resid_post'
    """

    layer: int
    kind: Literal["resid_post"] = "resid_post"

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Read ``resid_post.<layer>``; anything else is a `SiteError` that shows the form."""
        match = _SITE.fullmatch(text)
        if match is None:
            raise SiteError(f"'{text}' names no site; write resid_post.<layer>, for example resid_post.2.")
        return cls(layer=int(match.group(1)))

    def __str__(self) -> str:
        return f"{self.kind}.{self.layer}"

    @property
    def hook_name(self) -> str:
        """TransformerLens hook name, ``blocks.<layer>.hook_resid_post``."""
        return f"blocks.{self.layer}.hook_{self.kind}"

    def check(self, n_layers: int) -> "Site":
        """Return self, or raise `SiteError` when the models have no such layer."""
        if not 0 <= self.layer < n_layers:
            raise SiteError(
                f"Site {self} does not exist: the models have {n_layers} layers, "
                f"so resid_post.0 to resid_post.{n_layers - 1} do."
            )
        return self
