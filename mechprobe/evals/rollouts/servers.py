"""What distinguishes inference servers: how to recognize them, and what a request must say so that all sample alike."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mechprobe.errors import ConfigError
from mechprobe.evals.rollouts.client import Client
from mechprobe.evals.tasks import Task

OTHER = "OpenAI-compatible server"
TRANSFORMERS = "transformers serve"
_TAKE_IDS = ("vllm", "sglang")


@dataclass(frozen=True)
class Server:
    """The server behind an address: ``name`` is ``vllm``, ``sglang``, ``transformers serve``, or `OTHER`."""

    name: str
    version: str

    @property
    def prompt_as(self) -> str | None:
        """How it takes prompts, ``ids`` or ``text``; None where that is unknown."""
        if self.name == TRANSFORMERS:
            return "text"
        return "ids" if self.name in _TAKE_IDS else None

    def concurrency(self, asked: int, task_samples: bool) -> int:
        """Requests at a time: one where a request's seed would reach the others, because the server has one random state."""
        return 1 if self.name == TRANSFORMERS and task_samples else asked

    def check(self, tasks: Sequence[Task]) -> None:
        """Raise `ConfigError` for sampling settings that the server has no field for."""
        for task in tasks:
            if self.name == OTHER and task.sampling.top_k and task.sampling.temperature > 0:
                raise ConfigError(
                    f"tasks.sampling.top_k = {task.sampling.top_k} has no field in OpenAI's protocol; set it to 0, or use vLLM, "
                    "SGLang or transformers serve."
                )

    def body(self, task: Task, *, model: str, prompt: Any, seed: int, end_ids: Sequence[int]) -> dict[str, Any]:
        """The request for one response.

        Everything that decides the tokens is said, because servers take what is not said from the model's
        ``generation_config.json``, which may differ between the models of a family.
        """
        sampling, sampled = task.sampling, task.sampling.temperature > 0
        body: dict[str, Any] = {
            "model": model,
            "prompt": prompt,
            "max_tokens": task.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p if sampled else 1.0,
        }
        if sampled:
            body["seed"] = seed
        if task.stop:
            body["stop"] = list(task.stop)
        if self.name in _TAKE_IDS:
            body |= {
                "top_k": (sampling.top_k if sampled else 0) or -1,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
                "presence_penalty": 0.0,
                "frequency_penalty": 0.0,
                "stop_token_ids": list(end_ids),
                "skip_special_tokens": True,
            }
        if self.name == "vllm":
            body["return_token_ids"] = True
        if self.name == TRANSFORMERS:  # temperature alone would not make it sample
            whole = {"do_sample": sampled, "top_k": sampling.top_k, "eos_token_id": list(end_ids) or None}
            body["generation_config"] = json.dumps({**whole, "max_new_tokens": task.max_new_tokens})
        return body


async def recognize(client: Client) -> Server:
    """Find out which server answers, from the addresses that tell.

    Raises:
        EndpointError: It cannot be reached, or refuses the key.
    """
    base = client.settings.base_url
    root = base.removesuffix("/v1")
    models, header = await client.look(f"{base}/models")
    listed = models.get("data") if isinstance(models, dict) else None
    owners = {str(item.get("owned_by", "")).lower() for item in listed or () if isinstance(item, dict)}
    for name, place in (("vllm", "version"), ("sglang", "get_server_info")):
        if name in owners:
            told, _ = await client.look(f"{root}/{place}")
            return Server(name, str(told.get("version", "")) if isinstance(told, dict) else "")
    described, _ = await client.look(f"{root}/openapi.json")
    paths = described.get("paths") if isinstance(described, dict) else None
    if isinstance(paths, dict) and {"/load_model", "/v1/completions"} <= paths.keys():
        return Server(TRANSFORMERS, "")
    return Server(OTHER, header)
