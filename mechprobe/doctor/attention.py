"""How far kinds of attention move the residuals of a model."""

from mechprobe.errors import DependencyError, ModelError
from mechprobe.models.load import LanguageModel
from mechprobe.models.precision import check_attention


def measured(model: LanguageModel) -> str:
    """Load a model, and say how far query chunks, sdpa and flash attention move its residuals on a probe.

    Raises:
        ModelError: The weights cannot be used, or the kind of attention that the model was given is refused.
    """
    from mechprobe.models.attention import N_PROBED, limit

    loaded = "hf" in model.__dict__
    try:
        parts = [
            f"{name} {_one(model, kind)}" for name, kind in (("chunks", "eager"), ("sdpa", "sdpa"), ("flash", "flash"))
        ]
        return (
            f"largest difference from eager attention of {N_PROBED} tokens, in norms of the residual: {'; '.join(parts)} "
            f"(limit {limit(model.hf):g}, {model.dtype} on {model.device})"
        )
    finally:
        if not loaded:
            model.release("hf")


def _one(model: LanguageModel, kind: str) -> str:
    from mechprobe.models.attention import differences

    try:
        check_attention(kind, model.name, model.dtype, model.device)
        return f"{differences(model.hf, [kind])[kind]:.2g}"
    except DependencyError:
        return "not installed"
    except ModelError:
        return "not available"
