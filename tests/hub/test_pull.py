"""A model is fetched by its name, once, and used by its name; what goes wrong is said in one sentence."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hub_server import EXPIRED, TOKEN, Hub, Repository, running_hub
from schoolhouse.algorithms.settings import Lora
from schoolhouse.cli.main import main
from schoolhouse.data.chat import Conversation
from schoolhouse.model.folder import read_weights
from schoolhouse.policy.policy import Policy
from schoolhouse.runs.hub_cache import find_cached_model
from schoolhouse.types import SchoolError

NAME = "school/tiny"


@pytest.fixture(scope="module")
def model_files(conversation: Conversation, tiny_config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("model")
    config = tiny_config(vocab_size=conversation.tokenizer.vocab_size)
    Policy.create(config, conversation, precision="float32").save(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(model_files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one model, and the settings of a machine that uses this hub and an empty cache."""
    with running_hub() as hub:
        extra = {"README.md": b"text", "onnx/model.onnx": b"1", "consolidated.safetensors": b"2", "code.py": b"3"}
        hub.repositories[NAME] = Repository({**model_files, **extra})
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
        yield hub


def school(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "schoolhouse", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def pull_error(*args: str, **environment: str) -> str:
    done = school("pull", *args, **environment)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    return done.stderr.strip().splitlines()[-1].removeprefix("school: error: ")


def test_a_model_is_fetched_and_used_by_its_name(hub: Hub, model_files: dict[str, bytes]) -> None:
    done = school("pull", NAME)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"next: school chat {NAME}"
    assert f"{len(model_files['model.safetensors']):>14,}  model.safetensors" in done.stdout
    assert "licence apache-2.0" in done.stdout
    folder = find_cached_model(NAME)
    assert folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == model_files
    assert sorted(hub.downloads()) == sorted(model_files)
    asked = len(hub.requests)
    assert Policy.load(NAME, precision="float32").decoder.config.hidden_size == 32
    assert len(hub.requests) == asked


def test_a_second_pull_fetches_nothing(hub: Hub) -> None:
    school("pull", NAME)
    sent = hub.downloads()
    done = school("pull", NAME)
    assert done.returncode == 0, done.stderr
    assert ", 0 of them fetched now" in done.stdout
    assert hub.downloads() == sent


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub: Hub) -> None:
    content = bytes(range(256)) * 45_000  # more than one piece of a download, which has 10 MiB
    hub.repositories[NAME].files["model.safetensors"] = content
    hub.cut_after["model.safetensors"] = 11_000_000
    done = school("pull", NAME)
    assert done.returncode == 0, done.stderr
    assert [file for file in hub.downloads() if "model" in file] == [
        "model.safetensors",
        f"model.safetensors bytes={10 << 20}-",
    ]
    folder = find_cached_model(NAME)
    assert folder
    assert (folder / "model.safetensors").read_bytes() == content


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("to", [False, True])
def test_a_pull_that_was_stopped_is_no_model_and_is_taken_up(
    hub: Hub, end: signal.Signals, to: bool, tmp_path: Path
) -> None:
    hub.repositories[NAME].files["model.safetensors"] = bytes(range(256)) * 90_000  # 23 MB, in pieces of 10 MiB
    hub.hanging = {"model.safetensors"}
    place = ["--to", str(tmp_path / "mine")] if to else []
    # not all of tmp_path: the process makes and deletes folders there
    parts = tmp_path / ("mine/.cache/huggingface/download" if to else "hf/hub/models--school--tiny/blobs")
    command = [sys.executable, "-m", "schoolhouse", "pull", NAME, *place]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: any(path.stat().st_size == 10 << 20 for path in parts.glob("*.unfinished")))
        process.send_signal(end)
        _, stderr = process.communicate(timeout=5)
    hub.hanging.clear()
    if end == signal.SIGINT:
        assert process.returncode == 130
        assert stderr.strip() == "school: the download was stopped; run the same command again to continue it"
    if not to:
        with pytest.raises(SchoolError, match=f"no complete model of this name.*`school pull {NAME}`"):
            Policy.load(NAME)
    before = len(hub.downloads())
    assert school("pull", NAME, *place).returncode == 0
    assert hub.downloads()[before:] == [f"model.safetensors bytes={10 << 20}-", "config.json"]
    folder = tmp_path / "mine" if to else find_cached_model(NAME)
    assert folder
    assert (folder / "model.safetensors").read_bytes() == hub.repositories[NAME].files["model.safetensors"]


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_model_goes_to_a_folder(hub: Hub, model_files: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    done = school("pull", NAME, "--to", str(folder))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"next: school chat {folder}\n")
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == model_files
    assert find_cached_model(NAME) is None
    sent = hub.downloads()
    (folder / "tokenizer.json").unlink()
    assert school("pull", NAME, "--to", str(folder)).returncode == 0
    assert hub.downloads()[len(sent) :] == ["tokenizer.json"]


def test_a_folder_with_other_files_is_refused(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    assert pull_error(NAME, "--to", str(tmp_path)) == f"{tmp_path} is not empty: give a new folder with --to"
    assert hub.requests == []


def test_weights_in_several_files_are_fetched_by_their_index(hub: Hub) -> None:
    files = hub.repositories[NAME].files
    shards = {"part-1.safetensors": files.pop("model.safetensors"), "part-2.safetensors": b"x"}
    index = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
    files.update({**shards, "model.safetensors.index.json": json.dumps(index).encode(), "pytorch_model.bin": b"y"})
    assert school("pull", NAME).returncode == 0
    folder = find_cached_model(NAME)
    assert folder
    assert {path.name for path in folder.glob("*.safetensors")} == shards.keys()
    assert not (folder / "pytorch_model.bin").exists()


def test_old_weights_are_fetched_where_there_are_no_others(hub: Hub) -> None:
    files = hub.repositories[NAME].files
    files["pytorch_model.bin"] = files.pop("model.safetensors")
    assert school("pull", NAME).returncode == 0
    assert "pytorch_model.bin" in hub.downloads()


def test_additional_templates_are_fetched(hub: Hub) -> None:
    hub.repositories[NAME].files["additional_chat_templates/tool_use.jinja"] = b"{{ messages }}"
    assert school("pull", NAME).returncode == 0
    folder = find_cached_model(NAME)
    assert folder
    assert (folder / "additional_chat_templates" / "tool_use.jinja").is_file()


def test_a_gated_model_needs_a_licence_and_a_token(hub: Hub) -> None:
    hub.repositories[NAME].gated = True
    assert pull_error(NAME) == (
        f"{NAME} is a gated model: accept its licence at {hub.url}/{NAME} with your account, "
        "and set HF_TOKEN to its token"
    )
    assert "with the account of your token" in pull_error(NAME, HF_TOKEN="hf_another")
    assert school("pull", NAME, HF_TOKEN=TOKEN).returncode == 0


def test_a_token_that_is_not_valid_is_said(hub: Hub) -> None:
    message = f"{hub.url} refuses the token for {NAME} (status 401): set HF_TOKEN to a token with access"
    assert pull_error(NAME, HF_TOKEN=EXPIRED) == message


def test_a_private_model_needs_a_token(hub: Hub) -> None:
    hub.repositories[NAME].private = True
    assert pull_error(NAME).startswith(f"{hub.url} has no model `{NAME}`, or the model is private: check the spelling;")
    assert school("pull", NAME, HF_TOKEN=TOKEN).returncode == 0


def test_a_name_that_is_not_there_is_said(hub: Hub) -> None:
    assert pull_error("school/tinny").startswith(f"{hub.url} has no model `school/tinny`")


def test_a_revision_that_is_not_there_is_said(hub: Hub) -> None:
    message = f"{NAME} has no revision `v2`: give a branch, a tag or a commit of the repository"
    assert pull_error(NAME, "--revision", "v2") == message


def test_a_commit_is_used_by_name_and_commit(hub: Hub) -> None:
    commit = hub.repositories[NAME].commit
    done = school("pull", NAME, "--revision", commit)
    assert done.stdout.endswith(f"next: school chat {NAME}@{commit}\n")
    assert find_cached_model(NAME) is None
    assert find_cached_model(f"{NAME}@{commit}")


def test_no_network_is_said(hub: Hub) -> None:
    message = pull_error(NAME, HF_ENDPOINT="http://127.0.0.1:9")
    assert message.startswith("no connection to http://127.0.0.1:9 (")
    assert "run the same command again" in message


def test_a_server_that_fails_is_said(hub: Hub) -> None:
    hub.failing = 500
    assert pull_error(NAME) == f"{hub.url} fails with status 500 for {NAME}: run the same command again later"


def test_offline_mode_makes_no_request(hub: Hub) -> None:
    assert (
        pull_error(NAME, HF_HUB_OFFLINE="1") == f"HF_HUB_OFFLINE forbids requests to the hub: unset it to fetch {NAME}"
    )
    assert hub.requests == []
    school("pull", NAME)
    asked = len(hub.requests)
    done = school("pull", NAME, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert ", 0 of them fetched now" in done.stdout
    assert len(hub.requests) == asked


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(hub: Hub) -> None:
    hub.repositories[NAME].claimed_sizes["model.safetensors"] = 10**18
    message = pull_error(NAME)
    assert message.startswith(f"{NAME} needs 1,000,000,000.0 GB of disk space, and ")
    assert "set HF_HOME to a folder on another disk" in message
    assert hub.downloads() == []


def test_a_disk_that_fills_up_is_said(hub: Hub) -> None:
    size = len(hub.repositories[NAME].files["model.safetensors"])
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size - 1}, {size - 1}));"
    code = f"{limit} from schoolhouse.cli.main import main; raise SystemExit(main(['pull', '{NAME}']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    message = f"the disk is full: free some space, and run the same command again to fetch the rest of {NAME}"
    assert done.stderr.strip() == f"school: error: {message}"


def test_a_repository_without_a_config_is_no_model(hub: Hub) -> None:
    hub.repositories[NAME] = Repository({"data.csv": b"1"})
    assert pull_error(NAME) == f"{NAME} is not a model for this program: it has no config.json"
    hub.repositories[NAME] = Repository({"tiny-Q4_K_M.gguf": b"1"})
    message = pull_error(NAME)
    assert f"it has GGUF files (tiny-Q4_K_M.gguf): fetch one with `hf download {NAME} FILE --local-dir .`" in message
    assert "run `school import FILE --to DIR`" in message


def test_a_repository_without_weights_is_said(hub: Hub) -> None:
    hub.repositories[NAME] = Repository({"config.json": b"{}", "tf_model.h5": b"1"})
    assert pull_error(NAME).startswith(f"{NAME} has no weights in model.safetensors or pytorch_model.bin")


def test_an_adapter_is_fetched_and_names_its_base_model(hub: Hub, tmp_path: Path) -> None:
    done = school("pull", NAME)
    assert done.returncode == 0, done.stderr
    Policy.load(NAME, lora=Lora(rank=4)).save(tmp_path / "adapter")
    files = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == NAME
    hub.repositories["school/adapter"] = Repository({**files, "README.md": b"text"})
    done = school("pull", "school/adapter")
    assert "fetch its base model too" not in done.stdout
    assert Policy.load("school/adapter").decoder.lora is not None
    config = json.loads(files["adapter_config.json"]) | {"base_model_name_or_path": "school/base"}
    hub.repositories["school/other"] = Repository({**files, "adapter_config.json": json.dumps(config).encode()})
    assert "fetch its base model too: school pull school/base" in school("pull", "school/other").stdout


def test_an_adapter_without_weights_is_refused(hub: Hub) -> None:
    hub.repositories[NAME] = Repository({"adapter_config.json": b"{}"})
    assert pull_error(NAME).startswith(f"{NAME} is an adapter without weights")


@pytest.mark.parametrize("name", ["gpt2", "a/b/c", "../x/y", "a/..", "http://a.co/a/b", "a--b/c", "a/b@main"])
def test_what_is_no_name_is_refused_without_a_request(hub: Hub, name: str) -> None:
    assert main(["pull", name]) == 2
    assert hub.requests == []


# --- names in the place of folders


def test_a_folder_wins_over_a_name(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    school("pull", NAME)
    cached = find_cached_model(NAME)
    assert cached
    shutil.copytree(cached, tmp_path / NAME)
    config = json.loads((tmp_path / NAME / "config.json").read_text())
    (tmp_path / NAME / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 77}))
    assert Policy.load(NAME).max_seq_len == 128
    monkeypatch.chdir(tmp_path)
    assert Policy.load(NAME).max_seq_len == 77


def test_commands_take_a_name(hub: Hub, tmp_path: Path) -> None:
    school("pull", NAME)
    hub.failing = 500
    done = school("tokens", "one", "--model", NAME)
    assert done.returncode == 0, done.stderr
    done = school("export", NAME, "--to", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert read_weights(tmp_path / "out")


def test_an_unknown_name_is_not_fetched_but_the_command_is_named(hub: Hub) -> None:
    with pytest.raises(SchoolError, match="fetch a model of the hub with `school pull school/tiny`"):
        Policy.load(NAME)
    assert hub.requests == []
