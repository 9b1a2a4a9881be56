r"""`ddpm-vlb push-space`."""

import argparse

from .options import DEFAULT, add_push_options, new_command


def add(commands) -> argparse.ArgumentParser:
    r"""The command's parser."""
    parser = new_command(
        commands,
        "push-space",
        help="the demo to the Hub, as a Space",
        description="Send the demo to the Hub in one commit, as a Space that is complete in itself.",
        examples=("your-name/ddpm-vlb",),
    )
    add_push_options(parser, "Upload the demo")
    parser.add_argument("--folder", default="spaces_demo", help=f"the demo's, as in a clone {DEFAULT}")
    return parser


def run(arguments: argparse.Namespace) -> None:
    r"""Push the demo."""
    from ..hub.space import push_space

    commit = push_space(
        arguments.folder,
        arguments.repository,
        commit_message=arguments.message,
        private=arguments.private,
        revision=arguments.revision,
        create_pr=arguments.create_pr,
        token=arguments.token,
    )
    print(f"pushed {arguments.folder} to {commit.pr_url or commit.commit_url}")
