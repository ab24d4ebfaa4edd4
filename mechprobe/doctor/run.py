"""``mechprobe doctor --config``: what a run would do with its models and inputs.

Configs, tokenizers and headers are read only; with ``--measure`` weights, too.

Every refusal is a line of its own, where the stages would stop at the first one.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from mechprobe.cache.harvest.plan import plan_cache
from mechprobe.data.encoding import PromptEncoder
from mechprobe.data.sources import as_prompts
from mechprobe.doctor.attention import measured
from mechprobe.doctor.check import Check
from mechprobe.environment import require
from mechprobe.errors import DependencyError, MechprobeError, ModelError
from mechprobe.evals.stage import check_lengths
from mechprobe.formatting import byte_size
from mechprobe.interventions.hooks.positions import PositionRule
from mechprobe.models.architectures import known_behaviour, refusal
from mechprobe.models.checkpoint import stored_tensors
from mechprobe.models.devices import check_device, check_device_map
from mechprobe.models.family import ModelFamily, check_depth
from mechprobe.models.load import LanguageModel
from mechprobe.models.tokenizers import SharedTokenizer
from mechprobe.pipeline.run import Run
from mechprobe.progress import activity
from mechprobe.run_config import RunConfig
from mechprobe.selection.rules import check_spec
from mechprobe.types import Site

_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_SHOWN = 60


@dataclass
class _Page:
    """The lines so far."""

    checks: list[Check] = field(default_factory=list)

    def tried(self, name: str, attempt: Callable[[], Any]) -> Any:
        """What ``attempt`` returns; None, and a line with the reason, if it is refused."""
        try:
            with activity(f"checking {name}"):
                return attempt()
        except MechprobeError as error:
            if all(check.text != str(error) for check in self.checks):
                self.checks.append(Check(name, "fail", str(error)))
            return None

    def say(self, name: str, text: str, *, note: bool = False) -> None:
        self.checks.append(Check(name, "note" if note else "ok", text))

    @property
    def refused(self) -> bool:
        return any(check.state == "fail" for check in self.checks)


def run_checks(run: Run, *, measure: bool = False) -> list[Check]:
    """What a run would do with its models, prompts and tasks, and everything that it would refuse.

    Args:
        run: The run, of which nothing is written.
        measure: Whether to load the models, one at a time, and compare kinds of attention.
    """
    page, config = _Page(), run.config
    page.tried("device", lambda: _check_places(config))
    models = _models(page, config, trust_remote_code=run.trust_remote_code)
    family = _family(page, config, models)
    if family is not None:
        _say_family(page, family, config)
        for model in family if measure else ():
            page.tried("attention", lambda m=model: page.say(f"attention {m.name}", measured(m)))
        _say_inputs(page, family, config, run)
        _say_settings(page, family, config)
    return page.checks


def _check_places(config: RunConfig) -> None:
    check_device(config.device)
    if config.device_map is not None:
        check_device_map(config.device_map)


def _models(page: _Page, config: RunConfig, *, trust_remote_code: bool) -> list[LanguageModel]:
    """The models whose config, tokenizer and tensors can be used; a line for each model, and one for each refusal."""
    if not config.models:
        page.tried("models", config.family)
    usable, options = [], _options(page, config, trust_remote_code)
    for name, path in config.models.items():
        label = f"model {name}"
        model = page.tried(label, lambda n=name, p=path: LanguageModel(n, p, **options))
        if model is None:
            continue
        before = len(page.checks)
        for part in ("config", "tokenizer"):
            page.tried(label, lambda m=model, p=part: getattr(m, p))
        if len(page.checks) == before:
            page.tried(label, lambda m=model: (m.architecture, _check_behaviour(m)))
        if len(page.checks) == before:
            usable.append(model)
            page.say(label, _about(model))
            page.say(f"tokens {name}", _tokens(model))
    return usable


def _options(page: _Page, config: RunConfig, trust_remote_code: bool) -> dict[str, Any]:
    """How the models are placed and run; on the CPU in float32, so that the rest is still checked, if the device is refused."""
    if page.refused:
        return {"dtype": config.dtype, "trust_remote_code": trust_remote_code}
    names = ("device", "device_map", "dtype", "attention", "tf32")
    return {name: getattr(config, name) for name in names} | {"trust_remote_code": trust_remote_code}


def _check_behaviour(model: LanguageModel) -> None:
    known = known_behaviour(model.config)
    reason = known.residual or known.generation if known is not None else ""
    if reason:
        raise ModelError(refusal(model.config, model.name, reason))


def _about(model: LanguageModel) -> str:
    """Architecture, size, dtype and place of a model."""
    known, folder = model.architecture, model.folder
    place = f"{folder.path}" + (f" (adapter of {folder.root.path}, merged in memory)" if folder.base else "")
    stored = Counter[str]()
    for tensor in stored_tensors(folder.root.path, role=model.name).values():
        stored[str(tensor.dtype).removeprefix("torch.")] += 1
    in_files = stored.most_common(1)[0][0] if stored else "unknown"
    blocks = f"{model.n_layers} blocks, width {model.d_model}, context {model.max_context}"
    if known is None:
        return f"{model.config.model_type}, {blocks}; its tensors are checked when it is loaded; {place}"
    weights = f"{known.n_parameters:,} weights{' (tied)' if known.tied else ''}, {in_files} in the files"
    loaded = f"{model.dtype} when loaded: {byte_size(known.n_parameters * _ITEM_BYTES[model.dtype])}"
    return f"{known.name}, {blocks}, {known.n_rows} embeddings; {weights}, {loaded}; {place}"


def _tokens(model: LanguageModel) -> str:
    """Vocabulary, BOS, end tokens and chat template of a model."""
    tokenizer: Any = model.tokenizer
    names = tokenizer.convert_ids_to_tokens
    adds_bos = tokenizer.bos_token_id is not None and tokenizer.bos_token_id in tokenizer("a").input_ids
    bos = f"adds BOS {tokenizer.bos_token} ({tokenizer.bos_token_id})" if adds_bos else "adds no BOS"
    ends = ", ".join(f"{names(index)} ({index})" for index in model.own_end_ids) or "none"
    template = "a chat template" if tokenizer.chat_template else "no chat template"
    return f"{len(tokenizer.get_vocab())} tokens; {bos}; ends with {ends}; {template}"


def _family(page: _Page, config: RunConfig, models: list[LanguageModel]) -> ModelFamily | None:
    """The family; every pair that cannot be in one family is a line of its own."""
    decided = config.text.bos != "auto" or bool(config.text.chat_template)
    for other in models[1:]:
        pair = {models[0].name: models[0], other.name: other}
        page.tried(
            "vocabulary", lambda p=pair: SharedTokenizer({n: m.tokenizer for n, m in p.items()}, bos_decided=decided)
        )
        page.tried("depth", lambda p=pair: check_depth(p.values()))
    if page.refused or not models:
        return None
    return page.tried("family", lambda: ModelFamily({m.name: m for m in models}, bos_decided=decided))


def _say_family(page: _Page, family: ModelFamily, config: RunConfig) -> None:
    notes = family.notes
    for line in notes:
        page.say("family", line, note=True)
    if not family.tokenizer_identity:
        page.say("vocabulary", f"all {len(family)} tokenizers are equal")
    names: Any = family.tokenizer.convert_ids_to_tokens
    ends = ", ".join(f"{names(index)} ({index})" for index in family.end_token_ids)
    page.say("stop tokens", f"{ends or 'none'}; each of them ends the responses of every model")
    page.say("models run", family.runs_as)
    page.say("reader", _reader(family, config))
    page.say("memory", _memory(family))
    page.say("sinks", _sinks(config))


def _reader(family: ModelFamily, config: RunConfig) -> str:
    if family.arithmetic.keys() & {"attention", "tf32"}:
        return (
            "plain hooks on transformers, not compared with TransformerBridge, which has eager attention without TF32"
        )
    try:
        require("transformer_lens", "TransformerBridge")
    except DependencyError as error:
        if config.cache.reader == "bridge":
            raise
        return f"plain hooks on transformers, not compared with TransformerBridge: {error}"
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    kinds = {model.name: getattr(model.architecture, "name", "") for model in family}
    without = [name for name, kind in kinds.items() if kind not in SUPPORTED_ARCHITECTURES]
    if without:
        return f"{config.cache.reader}; TransformerBridge has no adapter for {', '.join(without)}, so set cache.reader=plain"
    return {
        "plain": "plain hooks on transformers, refused unless their bits equal those of TransformerBridge",
        "bridge": "TransformerBridge",
        "auto": "plain hooks on transformers where their bits equal those of TransformerBridge, else the bridge",
    }[config.cache.reader]


def _memory(family: ModelFamily) -> str:
    """Memory of the weights; the largest two models are in memory together when one is edited with the other's features."""
    known = [model.architecture for model in family if model.architecture is not None]
    sizes = sorted(
        (each.n_parameters * _ITEM_BYTES[model.dtype] for each, model in zip(known, family, strict=False)), reverse=True
    )
    if len(known) < len(family) or not sizes:
        return "unknown, because a model's tensors are known only when it is loaded"
    return (
        f"{byte_size(sizes[0])} for the largest model, twice while cache compares the readers; "
        f"{byte_size(sum(sizes[:2]))} where two models run together (localize, intervene); activations come on top"
    )


def _sinks(config: RunConfig) -> str:
    dropped = config.cache.drop_first_positions
    rule = f"the first {dropped} positions are left out" if dropped else "no position is left out"
    return (
        f"{rule} (cache.drop_first_positions); which positions have far larger norms is known only with the weights: "
        "`mechprobe cache` reports them"
    )


def _say_inputs(page: _Page, family: ModelFamily, config: RunConfig, run: Run) -> None:
    """Prompts, the size of the store, and tasks."""
    encoder = page.tried("text", lambda: PromptEncoder.of(family.tokenizers, config.text))
    if config.prompts.file:
        prompts = page.tried("prompts", lambda: as_prompts(config.prompt_source()))
        first = None if prompts is None else next(iter(islice(prompts, 1)), None)
        if encoder is not None and first is not None:
            page.tried("text", lambda: page.say("text", _first(encoder, first)))
        for site in config.cache.sites:
            page.tried("sites", lambda s=site: Site.parse(s).check(family.n_layers))
        last = (str(family.sites()[-1]),)
        cache = config.cache.replace(sites=config.cache.sites or last)
        if prompts is not None and encoder is not None and not page.refused:
            plan = page.tried("disk", lambda: plan_cache(family, prompts, run.layout.cache, cache))
            if plan is not None:
                page.say("disk", str(plan))
                page.tried("disk", plan.require_space)
    if config.tasks.file:
        tasks = page.tried("tasks", config.load_tasks)
        if tasks:
            page.tried("tasks", lambda: check_lengths(family, tasks, prefix=config.tasks.force_prefix))
            page.say("tasks", ", ".join(f"{task.name} {len(task.samples)}" for task in tasks))


def _first(encoder: PromptEncoder, prompt: Any) -> str:
    """How the first prompt is read."""
    ids = encoder.encode(prompt)
    text = str(encoder.tokenizer.decode(list(ids)))
    how = "through the chat template" if encoder.chat is not None else "as plain text"
    shown = text if len(text) <= 2 * _SHOWN else f"{text[:_SHOWN]} … {text[-_SHOWN:]}"
    return f"prompts are read {how}; the first becomes {len(ids)} tokens: {shown!r}"


def _say_settings(page: _Page, family: ModelFamily, config: RunConfig) -> None:
    """Settings that the later stages would refuse: names of models, selection rules, positions of edits."""
    if config.tasks.file:
        for name in (config.base, config.tuned, *(config.near or ())):
            page.tried("settings", lambda n=name: family[n])
    for spec in (config.select.rule, config.intervene.features or config.select.rule):
        page.tried("settings", lambda s=spec: check_spec(s))
    page.tried("settings", lambda: PositionRule.parse(config.intervene.positions))
    if config.intervene.collateral_file:
        page.tried("settings", lambda: as_prompts(config.intervene.collateral_file))
