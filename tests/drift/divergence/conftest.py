"""A family with planted differences, and a store with continuations from every source.

``h[0]`` is the first entry of the final norm's output, made 1 at every position. In ``rl`` the unembedding row of one token adds
`RAISE` × h[0], so its logit rises by exactly that everywhere, and no residual changes. ``sft`` adds a vector that says another token
to the residual after one block. ``rl@step_000002`` is base itself.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import mechprobe as mp
from tests.builders import build_family, build_tokenizer
from tests.planted import plant, saying

NAMES = ("base", "rl@step_000002", "sft", "rl")
TOKEN, SAID, RAISE = "7", "z", 2.0
SITE = "resid_post.1"


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the models. Do not write to them."""
    from transformers import AutoModelForCausalLM

    paths = build_family(tmp_path_factory.mktemp("drift_family"), "neox", names=NAMES, noise=0.0)
    for name, folder in paths.items():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            model.gpt_neox.final_layer_norm.weight[0] = 0.0
            model.gpt_neox.final_layer_norm.bias[0] = 1.0
            if name == "rl":
                model.get_output_embeddings().weight[build_tokenizer().convert_tokens_to_ids(TOKEN), 0] += RAISE
        model.save_pretrained(folder)
    plant(paths["sft"], saying(paths["sft"], SAID))
    return paths


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sums, some with a response."""
    path = tmp_path_factory.mktemp("drift_prompts") / "prompts.jsonl"
    lines = [{"id": f"p{i}", "task": ("add", "times")[i % 2], "prompt": f"{i * 7}+{i}="} for i in range(16)]
    lines += [{"id": f"g{i}", "task": "add", "prompt": f"{i}+{i}=", "response": f"so {i + i} + 0 ok"} for i in range(6)]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def store(planted: dict[str, Path], prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with responses of base and rl at temperature 1, and of sft at 0."""
    folder = tmp_path_factory.mktemp("drift_store") / "cache"
    settings = mp.CacheConfig(
        responses=("base@1.0", "rl@1.0", "sft@0.0"), max_new_tokens=12, reader="auto", held_out_frac=0.2
    )
    mp.cache_activations(mp.ModelFamily.load(planted), prompts, [SITE], folder, settings)
    return folder


@pytest.fixture
def family(planted: dict[str, Path]) -> Iterator[mp.ModelFamily]:
    loaded = mp.ModelFamily.load(planted)
    yield loaded
    loaded.release()
