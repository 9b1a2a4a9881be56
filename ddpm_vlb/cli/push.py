r"""`ddpm-vlb push`."""

import argparse
from pathlib import Path

from ..reports.schema import read_report
from .common import SAMPLES, card_pictures, load_folder
from .options import add_network_kwargs_option, add_push_options, new_command


def add(commands) -> argparse.ArgumentParser:
    r"""The command's parser."""
    parser = new_command(
        commands,
        "push",
        help="a pipeline's folder to the Hub, with its card and the package in one file",
        description="Send a pipeline's folder to the Hub in one commit, and nothing else that lies in it. Its card is made from"
        " its report.json, which must be of this very network and scheduler.",
        examples=(
            "runs/quickstart/pipeline your-name/ddpm-vlb-digits --private",
            'runs/quickstart/pipeline your-name/ddpm-vlb-digits --create-pr --message "Longer training"',
        ),
    )
    parser.add_argument("folder", metavar="FOLDER", help="a pipeline's folder, with its report.json if it has been scored")
    add_network_kwargs_option(parser)
    add_push_options(parser, "Upload VLBDDPMPipeline")
    return parser


def run(arguments: argparse.Namespace) -> None:
    r"""Push the pipeline as it is loaded, saved anew, so that nothing else in the folder goes with it."""
    from ..hub.cards import check_card
    from ..hub.eval_results import EVAL_RESULTS
    from ..hub.push import check_repository
    from ..hub.repository import check_no_link, pipeline_files
    from .card import check_results

    folder = Path(arguments.folder)
    check_repository(arguments.repository)
    if (folder / "transformer" / "config.json").is_file():  # as another pipeline saved it
        for path in folder.rglob("*"):
            if not path.is_dir():
                check_no_link(path, folder)
    else:
        pipeline_files(folder)
    for name in ("report.json", SAMPLES, EVAL_RESULTS):
        check_no_link(folder / name, folder)
    report = read_report(folder / "report.json") if (folder / "report.json").exists() else None
    pipe = load_folder(folder, arguments)
    # Samples are shown if a card beside them was made of the same report.
    with_samples = False
    if report is not None and (folder / "README.md").is_file():
        text = (folder / "README.md").read_text(encoding="utf-8")
        check_card(text, report)
        check_results(folder, report, text)
        with_samples = f"({SAMPLES})" in text
    commit = pipe.push_to_hub(
        arguments.repository,
        report=report,
        pictures=card_pictures(folder, report, with_samples),
        private=arguments.private,
        revision=arguments.revision,
        create_pr=arguments.create_pr,
        commit_message=arguments.message,
        token=arguments.token,
    )
    print(f"pushed {folder} to {commit.pr_url or commit.commit_url}")
    if report is None:
        print("Its card says that it was not scored: `ddpm-vlb evaluate` writes the report.json that a card is made from.")
