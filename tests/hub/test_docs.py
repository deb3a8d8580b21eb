"""Every command of docs/models.md and of README's start runs, in order, with a tiny model on a hub of this machine."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hub_server import Repository, running_hub
from schoolhouse.policy.policy import Policy

ROOT = Path(__file__).parents[2]


def commands_of(page: str) -> list[str]:
    """The lines of a page's blocks for a shell."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return "".join(re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)).splitlines()


ROWS = [{"question": f"What is {n} + 1?", "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"} for n in range(24)]
CHATS = [
    {"messages": [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": str(n)}]} for n in range(9)
]
REWARD = """
def reward(prompts, completions, **columns):
    return [float(len(completion) % 2) for completion in completions]
"""
NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.mark.parametrize("page, count", [("docs/models.md", 9), ("README.md", 8)])
def test_the_commands_of_the_page_run(conversation, tiny_config, tmp_path: Path, page: str, count: int) -> None:
    pytest.importorskip("gguf")
    size = conversation.tokenizer.vocab_size
    config = tiny_config(vocab_size=size, head_dim=32, hidden_size=64, max_position_embeddings=640)
    Policy.create(config, conversation).save(tmp_path / "original")
    files = {path.name: path.read_bytes() for path in (tmp_path / "original").iterdir()}
    for name, rows in (("problems.jsonl", ROWS), ("chats.jsonl", CHATS)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "reward.py").write_text(REWARD)
    commands = commands_of(page)
    assert len(commands) == count
    with running_hub() as hub:
        hub.repositories[NAME] = Repository(files)
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
        for command in commands:
            asked = len(hub.requests)
            program, *words = shlex.split(command, comments=True)
            assert program == "school"
            done = subprocess.run(
                [sys.executable, "-m", "schoolhouse", *words],
                cwd=tmp_path,
                env={**os.environ, **settings},
                input="How are you?\n",
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
            assert (len(hub.requests) > asked) == (words[0] == "pull"), f"{command} asked {hub.requests[asked:]}"
