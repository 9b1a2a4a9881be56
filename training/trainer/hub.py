r"""Where the result is pushed to."""

import argparse

from ddpm_vlb.hub.push import push_folder


def create_repository(arguments: argparse.Namespace) -> str:
    r"""The repository to push to; made before the work, so that a wrong name or token shows at once.

    Raises:
        ValueError: a repository that cannot be made, or one that is there and is not as private as asked for.
    """
    import huggingface_hub

    name = arguments.hub_model_id or arguments.output_dir.resolve().name
    try:
        api = huggingface_hub.HfApi(token=arguments.hub_token)
        repository = api.create_repo(name, private=arguments.hub_private_repo, exist_ok=True).repo_id
        private = bool(api.model_info(repository).private)
    except Exception as error:  # of the client, of HTTP, of the network
        raise ValueError(f"`push_to_hub` must be able to create the repository {name!r}, got: {error}") from error
    if arguments.hub_private_repo not in (None, private):
        raise ValueError(f"`hub_private_repo` must be {private} for {repository}, which exists, got {not private}.")
    return repository


def push_pipeline(arguments: argparse.Namespace, repository: str) -> None:
    r"""Push `pipeline/`, in one commit."""
    a, folder = arguments, arguments.output_dir / "pipeline"
    push_folder(folder, repository, private=a.hub_private_repo, token=a.hub_token, commit_message="Train")
    print(f"pushed {folder} to {repository}")
