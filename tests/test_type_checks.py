"""The suite checks annotations: of plain functions, of arrays whose axes must agree, and of what nobody can resolve."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import jaxtyping
import pytest
import torch
from beartype import beartype
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from mechprobe.statistics import binomial_se
from sae_training import Crosscoder, CrosscoderConfig

if TYPE_CHECKING:
    from nowhere import Unknown

Row = Float[Tensor, " width"]


def checked(function: Callable) -> Callable:
    """The function as the import hook decorates it."""
    return jaxtyping.jaxtyped(typechecker=None)(function)


def test_the_packages_are_checked() -> None:
    assert jaxtyping.jaxtyped.__module__ == "tests.type_checks"
    with pytest.raises(TypeCheckError):
        binomial_se("3", 10)  # pyright: ignore[reportArgumentType]
    crosscoder = Crosscoder(CrosscoderConfig(n_models=2, d_model=4, d_sae=8, k=2))
    with pytest.raises(TypeCheckError):
        crosscoder.decode(torch.zeros(3, 8, dtype=torch.int64))


def test_arguments_and_results_of_plain_functions() -> None:
    def half(n: int, name: str = "") -> int:
        return n / 2 if name else n // 2  # type: ignore[return-value]

    assert checked(half)(4) == 2
    for arguments in (("4",), (4, 5), (4, "x")):
        with pytest.raises(TypeCheckError):
            checked(half)(*arguments)
    assert checked(half).__annotations__ == half.__annotations__ == {"n": "int", "name": "str", "return": "int"}


def test_a_generator_stays_one() -> None:
    def count(n: int) -> Iterator[int]:
        yield from range(n)

    assert list(checked(count)(3)) == [0, 1, 2]
    with pytest.raises(TypeCheckError):
        list(checked(count)("3"))


def test_axes_agree_under_an_alias_too() -> None:
    def total(one: Row, other: Float[Tensor, " width"]) -> Row:
        return one + other

    decorated = jaxtyping.jaxtyped(typechecker=beartype)(total)
    assert decorated(torch.ones(3), torch.ones(3)).tolist() == [2.0] * 3
    with pytest.raises(TypeCheckError):
        decorated(torch.ones(3), torch.ones(1))


def test_a_name_for_type_checkers_alone_is_not_checked() -> None:
    def same(thing: Unknown, n: int) -> int:
        return n

    assert checked(same)(object(), 1) == 1
    with pytest.raises(TypeCheckError):
        checked(same)(object(), "1")
