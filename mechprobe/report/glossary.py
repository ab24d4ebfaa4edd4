"""The terms that a reader can look up where they stand, and at the end of the page; docs/glossary.md has all of them."""

import re

from mechprobe.report.result import Term


def _term(name: str, title: str, text: str, *forms: str) -> tuple[Term, tuple[str, ...]]:
    return Term(id=name, title=title, text=text), forms


_ENTRIES = (
    _term(
        "verdict", "Verdict",
        "The judgement on one edit: its effect is compared with the ceiling, with random sets, and with changes of equal norm in other "
        "directions. The rule stands at the end of the section on interventions.",
        "verdict",
    ),
    _term(
        "ceiling", "Ceiling",
        "The effect of replacing the whole residual of a model at the site by that of the other model. A share of the ceiling tells how "
        "much of the change the edited features mediate. A share well above 100 % indicates damage, since the edit removes more than "
        "the other model lacks.",
        "share of ceiling", "share of the ceiling", "ceilings", "ceiling",
    ),
    _term(
        "sufficiency", "Sufficiency, necessity",
        "Share of the gain that base reaches with what is put into it from the tuned model, and share that the tuned model loses when "
        "base's replaces it.",
        "sufficiency", "necessity",
    ),
    _term(
        "rival", "Rival",
        "Something simpler that is put to the same test as the features: the mean difference of the two models, or the first principal "
        "components of the difference. Its rank is its number of directions.",
        "rivals", "rival",
    ),
    _term(
        "random", "Random sets",
        "Sets of the same size, matched on density, decoder norm and contribution norm (activation times decoder norm). On samples that "
        "one model gets right and the other wrong, any disturbance favours the claim, so an effect counts only beyond these sets.",
        "random sets", "random",
    ),
    _term(
        "equal-norm", "Changes of equal norm",
        "The edit's own change on every token, turned to the decoder directions of other features, or to their shifts between the "
        "models.",
        "changes of equal norm", "change of equal norm",
    ),
    _term(
        "edits", "Ablate, clamp, transplant",
        "Ablate sets the selected features to zero, and clamp sets them to a fixed activation. Transplant replaces their part of the "
        "host's residual by their part of the donor's residual, each with its own read-out and decoder. The reconstruction error stays "
        "in place.",
        "transplant", "ablate", "clamp",
    ),
    _term(
        "p-random", "p vs random",
        "(1 + number of draws at least as extreme) / (1 + number of draws). In parentheses: Holm-adjusted over the tasks of an edit, or "
        "over the main edits in the pooled row. The adjusted value decides where the number of draws lets it reach the level.",
        "p vs random",
    ),
    _term(
        "p-paired", "p McNemar, p sign-flip",
        "Exact test on the samples on which the clean and the edited host differ; McNemar for one response to a sample, sign-flip for "
        "several. In parentheses: Holm-adjusted.",
        "McNemar", "sign-flip",
    ),
    _term(
        "pooled", "Pooled row",
        "All tasks together that post-training did not see.",
        "pooled",
    ),
    _term(
        "interval", "Intervals, n",
        "95 % intervals: Wilson for accuracies and Tango for changes, or clustered by sample where a sample has several responses. n is "
        "the number of samples.",
    ),
    _term(
        "gate", "Quality gate",
        "Thresholds of FVE, CE recovered and the share of dead features on held-out tokens. Below one of them every feature is marked "
        "untrusted.",
        "quality gate", "untrusted",
    ),
    _term(
        "fve", "FVE",
        "Fraction of variance explained by the reconstruction, pooled over held-out tokens. FVE per token is the mean of the ratios of "
        "single tokens.",
        "FVE per token", "FVE",
    ),
    _term("l0", "L0", "Number of features active on a token, averaged over tokens.", "L0"),
    _term(
        "ce", "CE recovered",
        "(zero − spliced) / (zero − clean), where each term is the cross-entropy with the zero vector, the reconstruction or the residual "
        "itself at the site.",
        "CE recovered", "KL spliced", "CE clean / spliced / zero",
    ),
    _term("dead", "Dead", "Share of features that no held-out token activates.", "dead"),
    _term("density", "Density", "Share of tokens on which a feature is active.", "density"),
    _term(
        "mas", "MAS, NRN",
        "Share of a feature's decoder norm that one model has: among all models (MAS), or in a pair with the base (NRN). Equal shares are "
        "1/M for M models, and 0.5 (arXiv 2604.25011).",
        "MAS", "NRN",
    ),
    _term(
        "nu", "ν",
        "Latent scaling: how strongly a feature is present in the base's own activations, relative to the tuned model. Near 0, the base "
        "lacks the feature; near 1, it has the feature, whatever the decoder norms are (arXiv 2504.02922).",
        "ν", "latent scaling",
    ),
    _term(
        "read-out", "Read-out",
        "How the activations of one model are computed by the joint encoder. joint: from all models on the same tokens. swap: the slots "
        "of similar models all receive this model's residual. single: the slots of all other models are zero.",
        "read-out",
    ),
    _term(
        "ig", "ig",
        "The ranking by integrated gradients: each feature's part in the change of the log-probability of the right answer, on a path "
        "from the base's features to the tuned model's. The ranking joint takes a feature's contribution to the difference between the "
        "two residuals instead.",
        "ig",
    ),
    _term("flip", "Right → not right", "Share of the clean host's right (or not right) samples whose outcome the edit changes.", "right → not right", "not right → right"),
    _term(
        "collateral", "Collateral effects",
        "KL(clean ‖ edited) and the change of cross-entropy per token on unrelated text, and the change of accuracy on tasks that were "
        "not used for the selection. Zero means no effect.",
        "collateral effects",
    ),
    _term("jaccard", "Jaccard index", "Size of the intersection of two sets over the size of their union.", "Jaccard"),
    _term(
        "kl", "KL, divergence",
        "Distance between the next-token distributions of two models: mean of Σ p log(p / q) over predicted tokens, in nats per token.",
        "KL",
    ),
    _term("holm", "Holm", "Adjustment of p-values for the number of tests that are made together.", "Holm"),
)  # fmt: skip
TERMS = [term for term, _ in _ENTRIES]
"""Every term with its definition, in the order of the list at the end of the page."""
_OF_FORM = {form.lower(): term for term, forms in _ENTRIES for form in forms}
_ANY_FORM = re.compile(
    r"(?<![\w.])(?:" + "|".join(re.escape(form) for form in sorted(_OF_FORM, key=len, reverse=True)) + r")(?!\w)",
    re.IGNORECASE,
)


def split_by_terms(text: str) -> list[tuple[str, Term | None]]:
    """A text in pieces; a piece that is the first mention of a term comes with the term.

    Example:
        >>> [(piece, term and term.id) for piece, term in split_by_terms("the FVE of rl")]
        [('the ', None), ('FVE', 'fve'), (' of rl', None)]
    """
    pieces: list[tuple[str, Term | None]] = []
    seen, end = set[str](), 0
    for match in _ANY_FORM.finditer(text):
        term = _OF_FORM[match[0].lower()]
        if term.id not in seen:
            seen.add(term.id)
            pieces += [(text[end : match.start()], None), (match[0], term)]
            end = match.end()
    pieces.append((text[end:], None))
    return [(piece, term) for piece, term in pieces if piece]
