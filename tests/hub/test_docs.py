"""Every command of docs/models.md runs, in order, with a tiny model on a hub of this machine."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hub_server import Repository, running_hub
from schoolhouse.policy.policy import Policy

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
COMMANDS = "".join(re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)).splitlines()
NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_the_commands_of_the_page_run(conversation, tiny_config, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    config = tiny_config(vocab_size=conversation.tokenizer.vocab_size, head_dim=32, hidden_size=64)
    Policy.create(config, conversation).save(tmp_path / "original")
    files = {path.name: path.read_bytes() for path in (tmp_path / "original").iterdir()}
    assert len(COMMANDS) == 9
    with running_hub() as hub:
        hub.repositories[NAME] = Repository(files)
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
        for command in COMMANDS:
            asked = len(hub.requests)
            program, *words = command.split()
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
