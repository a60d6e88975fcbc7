"""Uploading an export to the hub; who is logged in is checked before anything is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from customized_grpo.errors import UserError
from customized_grpo.hub import check_endpoint, is_hub_id
from customized_grpo.libraries import quiet


def check_login(repository: str) -> None:
    """Refuse a repository that has no name of the hub's form, and a machine that is not logged in.

    Raises:
        UserError: The name is wrong, nobody is logged in, or the hub cannot be reached.
    """
    if not is_hub_id(repository):
        raise UserError(
            f"--push {repository!r} is no name of a repository",
            hint="Write it as owner/name, without a path.",
        )
    with _explained(repository):
        from huggingface_hub import HfApi, get_token

        if get_token() is None:
            raise UserError(f"--push {repository}: nobody is logged in here", hint="Log in: hf auth login.")
        # A token may have expired: only the hub knows.
        HfApi().whoami()


def push(folder: Path, repository: str, *, public: bool, message: str) -> str:
    """Upload a folder in one commit and return the address of its repository, which is made when missing.

    Args:
        folder: From `export_run`.
        repository: "owner/name".
        public: Whether a new repository can be seen by everybody; one that is there stays as it is.
        message: Of the commit.

    Raises:
        UserError: The hub refuses or cannot be reached; the folder is untouched.
    """
    with _explained(repository, folder), quiet():
        from huggingface_hub import HfApi

        api = HfApi()
        made = api.create_repo(repository, private=not public, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message=message)
        return str(made)


@contextmanager
def _explained(repository: str, folder: Path | None = None) -> Iterator[None]:
    """Turn the hub's errors inside the block into messages that say what to do.

    Args:
        repository: "owner/name".
        folder: What is uploaded, if it is written already.
    """
    check_endpoint()
    try:
        yield
    except UserError:
        raise
    # the hub's client passes on whatever its HTTP library raises, see `hub.explained`
    except Exception as error:
        response = getattr(error, "response", None)
        status = getattr(response, "status_code", None)
        hint = "Check the connection."
        if status in (401, 403):
            hint = f"Log in with a token that may write to {repository}: hf auth login."
        if folder is not None:
            hint += f" The export is in {folder}: hf upload {repository} {folder}."
        text = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"--push {repository}: the hub did not take it: {text}", hint=hint) from error
