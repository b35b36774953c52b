"""To a hub: what must stand before any work starts, and the upload. Only what `push_to_hub` names is ever sent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trainer.choices import ConfigError
from trainer.network import answers

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_SECONDS = 10.0


def ready(repository: str, private: bool) -> HfApi:
    """The hub, asked whether this person may write there.

    Raises ConfigError for a name, a network or a token that will not do, and for a public repository where a private one is wanted.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import validate_repo_id

    owner, slash, name = repository.partition("/")
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ConfigError(f"push_to_hub: {repository!r}: {str(error).splitlines()[0]}") from error
    if not (owner and slash and name):
        raise ConfigError(f"push_to_hub: {repository!r}; allowed: OWNER/NAME, e.g. push_to_hub=me/{name or owner}")
    without = f"leave push_to_hub out, and send the folder later: `hf upload {repository} FOLDER`"
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(f"push_to_hub: HF_HUB_OFFLINE is set, so nothing is sent; unset it, or {without}")
    if not answers(constants.ENDPOINT, _SECONDS):
        raise ConfigError(f"push_to_hub: {constants.ENDPOINT} does not answer within {_SECONDS:.0f} s; {without}")
    token = get_token()
    if token is None:
        raise ConfigError("push_to_hub: no token; log in with `hf auth login`, or set HF_TOKEN to one that may write")
    api = HfApi(endpoint=constants.ENDPOINT, token=token)
    try:
        account = api.whoami()
    except HfHubHTTPError as error:
        raise ConfigError(f"push_to_hub: {constants.ENDPOINT} does not accept the token: {_first(error)}; `hf auth login` again") from error
    _refuse_reader(account, owner)
    if private:
        _refuse_public(api, repository)
    return api


def _refuse_reader(account: dict, owner: str) -> None:  # type: ignore[type-arg]
    owners = [account["name"], *(organisation["name"] for organisation in account.get("orgs", ()))]
    if owner not in owners:
        raise ConfigError(f"push_to_hub: the token is of {account['name']}, who cannot write to {owner}; allowed: {', '.join(owners)}")
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ConfigError("push_to_hub: the token may only read; make one that may write, and log in with `hf auth login`")


def _refuse_public(api: HfApi, repository: str) -> None:
    """What is there already stays as visible as it is."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        there = api.model_info(repository)
    except HfHubHTTPError:
        return  # not there yet, or not to be seen: then the upload tells
    if not there.private:
        raise ConfigError(f"private: true, but {repository} is there already, and public; name another, or make that one private first")


def push(api: HfApi, repository: str, folder: Path, private: bool, message: str) -> str:
    """Send a folder. Returns the address of the repository. Raises ConfigError; the folder stays as it is."""
    try:
        address = str(api.create_repo(repository, private=private, exist_ok=True))
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except Exception as error:  # the hub client's, the HTTP library's, those of the upload in parts
        raise ConfigError(f"push_to_hub: {repository}: {_first(error)}; {folder} is whole: `hf upload {repository} {folder}`") from error
    return address


def _first(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
