"""Kinds of rivals, as ``intervene.rivals`` names them."""

from typing import Literal, get_args

RivalKind = Literal["mean", "pca", "coordinates", "whole", "switched", "weights", "complement"]
RIVAL_KINDS: tuple[RivalKind, ...] = get_args(RivalKind)
