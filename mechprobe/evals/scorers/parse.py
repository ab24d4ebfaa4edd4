"""Make a scorer from a specification or a function."""

from mechprobe.errors import ConfigError
from mechprobe.evals.scorers.boxed import boxed_scorer
from mechprobe.evals.scorers.functions import PREFIX, Judge, function_scorer, named_scorer
from mechprobe.evals.scorers.rules import RuleScorer, Scorer

AnyScorer = str | Scorer | Judge
"""A specification, a scorer, or a function of response and answer."""


def scorer(spec: AnyScorer) -> Scorer:
    r"""The scorer of a specification or of a function.

    * ``exact``: the whole response, without surrounding whitespace.
    * ``numeric``: the last number in the response, compared as a number.
    * ``letter``: the option letter in the response (`mechprobe.evals.scorers.rules.option_letter`).
    * ``boxed``: the last ``\boxed{...}``, compared as mathematics.
    * ``final:<MARKER>``: the text after the last MARKER, without whitespace.
    * ``python:<module>:<function>``: the result of a function of response and answer.

    Raises:
        ConfigError: The specification is unknown, or the function is unusable.
        DependencyError: The specification is ``boxed`` and math-verify is not installed.

    Example:
        >>> scorer("final:ANS").score("THINK 7 + 5 ANS 1 2", "12")
        'right'
        >>> scorer("final:ANS").score("THINK 7 + 5", "12")
        'unparsed'
    """
    if isinstance(spec, Scorer):
        return spec
    if not isinstance(spec, str):
        return function_scorer(spec)
    kind, _, rest = spec.partition(":")
    if spec in ("exact", "numeric", "letter") or (kind == "final" and rest.strip()):
        return RuleScorer(spec)
    if spec == "boxed":
        return boxed_scorer(spec)
    if kind == PREFIX:
        return named_scorer(spec)
    raise ConfigError(
        f"Scorer '{spec}' is unknown; write exact, numeric, letter, boxed, final:<MARKER> or "
        f"{PREFIX}:<MODULE>:<FUNCTION>."
    )
