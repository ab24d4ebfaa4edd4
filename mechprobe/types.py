"""Names that all rooms share: the axes of tensors, the outcomes of a response, and the sites of a model.

Axes in shapes are ``sample``, ``pos`` (position in a sequence), ``row`` (a kept token of the store), ``batch``, ``model``,
``d_model``, ``d_sae``, ``vocab``, ``layer``, ``site``, and ``draw``.
"""

import re
from dataclasses import dataclass
from typing import Literal

from mechprobe.errors import SiteError

OutcomeName = Literal["right", "wrong", "unparsed"]
"""Verdict of the scorer on one response; ``unparsed`` counts as not right, and is reported apart from wrong."""

Finish = Literal["stop", "length", "unfinished", ""]
"""How a response ended. ``stop``: a stop token or stop text. ``length``: cut at the limit. ``unfinished``: it stopped inside
its thinking block. Empty: nothing was generated, because the log-likelihoods of options were compared."""

ThinkTags = tuple[str, str]
"""Start and end tag of the thinking block of a response; the start tag may be empty where only the prompt opens a block."""

THINK: ThinkTags = ("<think>", "</think>")
"""Tags of most models that think."""

POOLED = "pooled"
"""Name of the table row over all held-out tasks together; no task may have this name."""

ReadoutMode = Literal["swap", "joint", "single"]
"""How the joint encoder is applied to the activations of one model alone; see `mechprobe.dictionary.readout`."""

_SITE = re.compile(r"resid_post\.(\d+)")


@dataclass(frozen=True, order=True)
class Site:
    """A site in every model of a family: the residual stream after block ``layer``."""

    layer: int
    kind: Literal["resid_post"] = "resid_post"

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Parse ``resid_post.<layer>``; raise `SiteError` for anything else."""
        match = _SITE.fullmatch(text)
        if match is None:
            raise SiteError(f"'{text}' is not a site; write resid_post.<layer>, for example resid_post.2.")
        return cls(layer=int(match.group(1)))

    def __str__(self) -> str:
        return f"{self.kind}.{self.layer}"

    @property
    def hook_name(self) -> str:
        """TransformerLens hook name, ``blocks.<layer>.hook_resid_post``."""
        return f"blocks.{self.layer}.hook_{self.kind}"

    def check(self, n_layers: int) -> "Site":
        """Return the site itself; raise `SiteError` if the models have no such layer."""
        if not 0 <= self.layer < n_layers:
            raise SiteError(
                f"Site {self} does not exist because the models have {n_layers} layers; "
                f"give one of resid_post.0 to resid_post.{n_layers - 1}."
            )
        return self
