r"""Pushes to the Hub, each in one commit."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.utils import validate_repo_id

from ..reports.schema import Report
from .cards import model_card
from .repository import (
    PICTURES,
    card_settings,
    is_stale,
    json_bytes,
    json_config,
    pipeline_files,
    repository_files,
    stock_name,
)

# Of a scheduler that is pushed by itself.
SCHEDULER_CARD = """---
library_name: diffusers
license: apache-2.0
tags:
- diffusers
- ddpm
---

# A DDPM scheduler

```python
from diffusers import {scheduler}

scheduler = {scheduler}.from_pretrained("{repository}")
```

With ddpm_vlb, `VLBDDPMScheduler.from_pretrained("{repository}")`.
"""


class HubError(OSError):
    r"""What the Hub, or the way to it, refused."""


def push_folder(
    folder: str | Path,
    repository: str,
    *,
    report: Mapping[str, Any] | None = None,
    pictures: Mapping[str, bytes] | None = None,
    variant: str | None = None,
    commit_message: str | None = None,
    **options: Any,
) -> CommitInfo:
    r"""Push a saved pipeline with its card; see `push_files` for `options`, and for what is raised besides.

    Args:
        folder: of a saved pipeline.
        repository: `name` or `owner/name`.
        report: what the card is made from; `None` for one that says that nothing was scored.
        pictures: PNG files by their names, of those in `PICTURES`.
        variant: of the weights, where they are not the ones that are loaded by default.

    Raises:
        ValueError: a folder that is not a saved pipeline, or anything that is no `Report`: nothing is sent.
    """
    check_repository(repository)
    # What could be refused is, before the repository is made; the card waits for its full name.
    files, report = pipeline_files(folder), None if report is None else Report.of(report)
    return push_files(
        lambda name, there: repository_files(files, name, report, pictures),
        repository,
        commit_message=commit_message or "Upload VLBDDPMPipeline",
        remove=lambda name: is_stale(name, variant),
        **options,
    )


def push_files(
    files: Callable[[str, set[str]], dict[str, Path | bytes]],
    repository: str,
    *,
    commit_message: str,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    remove: Callable[[str], bool] = lambda name: False,
    space_sdk: str | None = None,
) -> CommitInfo:
    r"""Send files to a repository of the Hub in one commit; the repository and the branch are made where there are none.

    Args:
        files: the files by their names there, as paths or content, for the repository's full name and the files it has.
        repository: `name` or `owner/name`.
        private: whether the repository is private; `None` leaves it to the owner's default, and to what it is.
        revision: branch to commit to, or that the pull request is for; `main` by default.
        create_pr: open a pull request instead.
        token: in place of the one that is logged in.
        remove: which files that are there, and not among `files`, leave.
        space_sdk: "gradio", say, for a Space in place of a model.

    Raises:
        ValueError: a name that cannot be a repository, or `private` for one that exists and is public, or the other way round:
            nothing is sent.
        HubError: what the Hub or the network refused; among others a commit that somebody else made meanwhile.
    """
    repository = check_repository(repository)
    api = HfApi(token=token)
    kind: dict[str, Any] = {"repo_type": "model" if space_sdk is None else "space"}
    with _hub_errors(repository):
        repository = api.create_repo(repository, private=private, exist_ok=True, space_sdk=space_sdk, **kind).repo_id
        if revision is not None and not create_pr:
            api.create_branch(repository, branch=revision, exist_ok=True, **kind)
        info = api.repo_info(repository, revision=revision, **kind)
    if private is not None and bool(info.private) != private:
        raise ValueError(f"`private` must be {bool(info.private)} for {repository!r}, which exists, got {private}.")
    with _hub_errors(repository):
        there = set(api.list_repo_files(repository, revision=info.sha, **kind))
    sent = files(repository, there)
    with _hub_errors(repository):
        operations: list[Any] = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=content if isinstance(content, bytes) else os.fspath(content))
            for name, content in sent.items()
        ]
        operations += [CommitOperationDelete(path_in_repo=name) for name in sorted(there - sent.keys()) if remove(name)]
        return api.create_commit(
            repository,
            operations,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
            parent_commit=info.sha,
            **kind,
        )


@contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of the client, of HTTP, of the network
        reason = " ".join(str(error).split()) or type(error).__name__
        raise HubError(f"`repository` must be one that can be pushed to, got {repository!r}: {reason}") from error


def push_scheduler(
    config: str, repository: str, *, config_name: str, subfolder: str | None = None, **options: Any
) -> CommitInfo:
    r"""Push a scheduler's configuration; see `push_files` for `options`.

    In a repository that holds more than that it is a change of the model: what was measured of it leaves, and a card that
    showed it is replaced by one without a number.
    """

    settings = json_config(json.loads(config))
    place = f"{subfolder.strip('/')}/{config_name}" if subfolder else config_name

    def files(name: str, there: set[str]) -> dict[str, Path | bytes]:
        sent: dict[str, Path | bytes] = {place: json_bytes(settings)}
        if there & {"report.json", *PICTURES}:
            sent["README.md"] = str(model_card(None, repository=name, settings=card_settings(settings))).encode()
        elif "README.md" not in there and not subfolder:
            sent["README.md"] = SCHEDULER_CARD.format(repository=name, scheduler=stock_name(settings)).encode()
        return sent

    return push_files(files, repository, remove=lambda name: name in ("report.json", *PICTURES), **options)


def check_repository(repository: Any) -> str:
    r"""A name that a repository can have.

    Raises:
        ValueError: any other.
    """
    try:
        validate_repo_id(repository)
    except ValueError as error:
        raise ValueError(f"`repository` must be a name on the Hub, `owner/name`, got {repository!r}: {error}") from error
    return repository
