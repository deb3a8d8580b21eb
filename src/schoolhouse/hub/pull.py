"""`school pull`: fetches a model of the Hugging Face Hub. No other command requests models from the hub.

The library huggingface_hub transfers the files. The library reads HF_TOKEN, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants, errors, get_hf_file_metadata, get_token, hf_hub_download, hf_hub_url
from huggingface_hub import try_to_load_from_cache as cached_file
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers, disable_progress_bars

from schoolhouse.runs import adapter_folder
from schoolhouse.runs.atomic_io import is_disk_full, read_json
from schoolhouse.runs.hub_cache import find_cached_model, parse_hub_name
from schoolhouse.types import SchoolError

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""The names of weight files, the preferred format first. NAME.index.json lists the parts of large weights."""

_TEXT_FILES = re.compile(
    r"(generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template)\.json"
    r"|merges\.txt|vocab\.txt|chat_template\.jinja|additional_chat_templates/[^/]+\.jinja|[^/]+\.(model|tiktoken)"
)
"""The files of the tokenizer, the chat templates, and the generation settings."""


@dataclass(frozen=True)
class Pulled:
    """A fetched model.

    `folder`: the folder with the files of the model.
    `commit`: the commit of the repository.
    `sizes`: the number of bytes of each file.
    `fetched`: the files that the call of `pull` fetched. All other files existed before the call.
    `licence`: the name of the licence in the repository.
    """

    folder: Path
    commit: str
    sizes: Mapping[str, int]
    fetched: frozenset[str]
    licence: str | None


def pull(name: str, to: Path | None = None, revision: str = "main") -> Pulled:
    """Fetch a model into the folder `to`, or into the cache of Hugging Face. Complete files are not fetched again.

    `name`: the name of the model, in the form ORG/NAME.
    `revision`: a branch, a tag or a commit.

    Raises SchoolError if the model does not exist, if access, network or disk space is missing, or if the repository
    holds no model.
    """
    if parse_hub_name(name) != (name, "main"):
        raise SchoolError(
            f"`{name}` is not the name of a hub model: give ORG/NAME, such as HuggingFaceTB/SmolLM2-135M-Instruct"
        )
    resumes = to is not None and (to / ".cache" / "huggingface").is_dir()
    if to is not None and to.exists() and not resumes and any(to.iterdir() if to.is_dir() else [to]):
        raise SchoolError(f"{to} is not empty: give a new folder with --to")
    if constants.is_offline_mode():
        cached = find_cached_model(f"{name}@{revision}")
        if cached is None or to is not None:
            raise SchoolError(f"HF_HUB_OFFLINE forbids requests to the hub: unset it to fetch {name}")
        sizes = {str(path.relative_to(cached)): path.stat().st_size for path in cached.rglob("*") if path.is_file()}
        return Pulled(cached, cached.name, sizes, frozenset(), None)
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        return _fetch(name, to, revision)
    except Exception as error:
        message = _explain(error, name, revision)
        if message is None:
            raise
        raise SchoolError(message) from error


def _fetch(name: str, to: Path | None, revision: str) -> Pulled:
    info = HfApi().model_info(name, revision=revision, files_metadata=True)
    assert info.sha is not None
    assert info.siblings is not None
    known_sizes = {file.rfilename: file.size or 0 for file in info.siblings}
    fetch_file = partial(_fetch_file, name, commit=info.sha, to=to)
    whole = any(f"{weights}{index}" in known_sizes for weights in WEIGHTS for index in ("", ".index.json"))
    last = adapter_folder.CONFIG if adapter_folder.CONFIG in known_sizes and not whole else "config.json"
    if last not in known_sizes:
        raise SchoolError(
            f"{name} is not a model for this program: it has no config.json{_gguf_hint(name, known_sizes)}"
        )
    files = {file for file in known_sizes if _TEXT_FILES.fullmatch(file)} | {last}
    if last == "config.json":
        files |= _weight_files(name, known_sizes, fetch_file)
    else:
        files |= _adapter_files(name, known_sizes)
    sizes = {file: known_sizes[file] for file in sorted(files)}
    present = {file for file in files if _is_present(name, file, info.sha, to, sizes[file])}
    _check_space(name, to or Path(constants.HF_HUB_CACHE), sum(sizes[file] for file in files - present))
    for file in sorted(files - {last}, key=lambda file: sizes[file]):
        fetch_file(file)
    # config.json comes last, because a cached model with config.json counts as complete (`find_cached_model`)
    folder = fetch_file(last, revision=revision).parent
    if to is None and folder.name != info.sha:
        raise SchoolError(f"{name} changed on the hub while it was fetched: run the same command again")
    licence = (info.card_data or {}).get("license")
    return Pulled(folder, info.sha, sizes, frozenset(files - present), licence if isinstance(licence, str) else None)


def _fetch_file(name: str, file: str, commit: str, to: Path | None, revision: str | None = None) -> Path:
    """Fetch one file, and return its path. With `revision`, the cache also stores the commit of this revision.

    Files are fetched one after another, because the threads of `snapshot_download` do not stop at Ctrl-C.
    """
    if file.endswith((".safetensors", ".bin")) and cached_file(name, file, revision=commit) is None:
        _fetch_large_file(name, file, commit, to)
    return Path(hf_hub_download(name, file, revision=revision or commit, local_dir=to))


def _fetch_large_file(name: str, file: str, commit: str, to: Path | None) -> None:
    """Fetch a large file to the place where `hf_hub_download` looks for the file.

    If a download was interrupted, a new process resumes this download.

    `hf_hub_download` would start the download from the beginning in each process.
    """
    url = hf_hub_url(name, file, revision=commit)
    metadata = get_hf_file_metadata(url)
    sha256, size = metadata.etag or "", metadata.size
    if not re.fullmatch("[0-9a-f]{64}", sha256) or size is None or size > constants.MAX_HTTP_DOWNLOAD_SIZE:
        return  # not a large file, or one that only the library's own transfer can fetch
    if to is None:
        folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model") / "blobs"
        target = folder / sha256
    else:
        folder, target = to / ".cache" / "huggingface" / "download", to / file
    folder.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    headers = build_hf_headers()
    if urlsplit(metadata.location).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)  # the token is for the hub alone
    unfinished = folder / f"{sha256}.unfinished"
    with WeakFileLock(folder / f"{sha256}.lock"):
        if target.exists():
            return
        with unfinished.open("ab") as content:
            if content.tell() > size:
                content.truncate(0)
            http_get(
                metadata.location,
                content,
                resume_size=content.tell(),
                headers=headers,
                expected_size=size,
                displayed_filename=file,
            )
        unfinished.rename(target)


def _weight_files(name: str, sizes: Mapping[str, int], fetch_file: Callable[[str], Path]) -> set[str]:
    """Return the names of the weight files and of their index."""
    for weights in WEIGHTS:
        index = f"{weights}.index.json"
        if index in sizes:
            shards = {str(shard) for shard in read_json(fetch_file(index)).get("weight_map", {}).values()}
            if not shards or not shards <= sizes.keys():
                raise SchoolError(
                    f"{name} is incomplete: its file {index} names weights that the repository does not have; use "
                    "another revision"
                )
            return {index, *shards}
        if weights in sizes:
            return {weights}
    hint = _gguf_hint(name, sizes) or "; use another repository"
    raise SchoolError(f"{name} has no weights in model.safetensors or pytorch_model.bin{hint}")


def _adapter_files(name: str, sizes: Mapping[str, int]) -> set[str]:
    """Return the weight file of a LoRA adapter, and the file about its base model if this package wrote one."""
    weights = [file for file in adapter_folder.WEIGHTS if file in sizes]
    if not weights:
        raise SchoolError(
            f"{name} is an adapter without weights (no {adapter_folder.WEIGHTS[0]}): use another revision or repository"
        )
    return {weights[0], *({adapter_folder.BASE} & sizes.keys())}


def _gguf_hint(name: str, sizes: Mapping[str, int]) -> str:
    files = sorted(file for file in sizes if file.endswith(".gguf"))
    if not files:
        return ""
    return (
        f"; it has GGUF files ({', '.join(files[:3])}): fetch one with `hf download {name} FILE --local-dir .`, and "
        "run `school import FILE --to DIR`"
    )


def _is_present(name: str, file: str, commit: str, to: Path | None, size: int) -> bool:
    if to is not None:
        return (to / file).is_file() and (to / file).stat().st_size == size
    return isinstance(cached_file(name, file, revision=commit), str)


def _check_space(name: str, folder: Path, needed: int) -> None:
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise SchoolError(
            f"{name} needs {needed / 1e9:,.1f} GB of disk space, and {free / 1e9:,.1f} GB are free in "
            f"{folder.absolute()}: free some space, or set HF_HOME to a folder on another disk"
        )


# --- errors


def _explain(error: BaseException, name: str, revision: str) -> str | None:
    """Describe, in one sentence, an error that the user can correct. Returns None for any other error."""
    if isinstance(error, SchoolError):
        return str(error)
    endpoint = constants.ENDPOINT
    if is_disk_full(error):
        return f"the disk is full: free some space, and run the same command again to fetch the rest of {name}"
    for cause in _causes(error):
        if isinstance(cause, errors.GatedRepoError):
            account = "the account of your token" if get_token() else "your account, and set HF_TOKEN to its token"
            return f"{name} is a gated model: accept its licence at {endpoint}/{name} with {account}"
        if isinstance(cause, errors.RevisionNotFoundError):
            return f"{name} has no revision `{revision}`: give a branch, a tag or a commit of the repository"
        if isinstance(cause, errors.RepositoryNotFoundError):
            return (
                f"{endpoint} has no model `{name}`, or the model is private: check the spelling; for a private model, "
                "set HF_TOKEN to a token with access"
            )
        if isinstance(cause, errors.HfHubHTTPError):
            return _explain_status(cause, name, endpoint)
        if any(kind.__module__.partition(".")[0] in ("httpx", "httpx2") for kind in type(cause).__mro__):
            return (
                f"no connection to {endpoint} ({cause}): check the network (and HF_ENDPOINT, HTTPS_PROXY), and run the "
                "same command again; files that are complete are not fetched again"
            )
    if "onsistency check" in str(error):
        return f"a file of {name} arrived incomplete from {endpoint}: run the same command again"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return f"{endpoint} gives no valid answer of a hub ({_first_sentence(error)}); check HF_ENDPOINT and proxies"
    return None


def _first_sentence(error: BaseException) -> str:
    return str(error).partition(". ")[0].partition("\n")[0]


def _explain_status(error: errors.HfHubHTTPError, name: str, endpoint: str) -> str:
    status = error.response.status_code
    if status in (401, 403):
        return f"{endpoint} refuses the token for {name} (status {status}): set HF_TOKEN to a token with access"
    if status == 429:
        return f"{endpoint} allows no more requests for now (status 429): wait some minutes, or set HF_TOKEN"
    return f"{endpoint} fails with status {status} for {name}: run the same command again later"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
