"""Sums as prompts of post-training, and rewards that a random model gets in part."""

import json
from pathlib import Path

N_PROMPTS = 24


def write_prompts(file: Path, n: int = N_PROMPTS, response: str = "{a}+{b}={c}.") -> Path:
    """Sums with answers and responses of several lengths."""
    rows = []
    for index in range(n):
        a, b = index, 3 * index % 7
        said = response.format(a=a, b=b, c=a + b) + "!" * (index % 5)
        rows.append({"id": f"sum-{index}", "prompt": f"{a}+{b}?", "answer": str(a + b), "response": said})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def digit_share(response: str, answer: str) -> float:
    """A reward that a random model gets in part."""
    del answer
    return sum(char.isdigit() for char in response) / max(1, len(response))


def even_length(response: str, answer: str) -> bool:
    """A verdict that a random model often gets."""
    del answer
    return len(response) % 2 == 0
