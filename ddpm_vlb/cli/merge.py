r"""`ddpm-vlb merge`."""

import argparse

from ..reports.schema import read_report
from ..reports.show import format_report
from .common import check_outputs, hold, write_outputs
from .options import add_report_options, new_command


def add(commands) -> argparse.ArgumentParser:
    r"""The command's parser."""
    parser = new_command(
        commands,
        "merge",
        help="one report of several: shards of a data set, or more seeds",
        description="Put reports of the same model and settings together: of shards, each of other images, or of several"
        " seeds, each of the same images with other noise.",
        examples=("half-0.json half-1.json --output whole.json",),
    )
    parser.add_argument("reports", metavar="REPORT", nargs="+", help="at least two of the same model and settings")
    add_report_options(parser)
    return parser


def run(arguments: argparse.Namespace) -> None:
    r"""Read, merge, write, print."""
    output = check_outputs(arguments.output, arguments.plot, arguments.scores)
    reports = [read_report(path) for path in arguments.reports]
    if len(arguments.reports) < 2:
        raise ValueError(f"`reports` must be at least two, got {len(arguments.reports)}.")

    from ..reports.merge import merge_reports

    report = merge_reports(reports)
    if arguments.scores is not None and report["per_image"] is None:
        raise ValueError("`scores` needs a score for each image, got sampled reports without.")
    if arguments.plot is not None and not report.has_terms:
        raise ValueError(f"`plot` draws the terms of the bound, and there are none with {report['method']!r}.")
    with hold(output, arguments.plot, arguments.scores):
        write_outputs(report, output, arguments.plot, arguments.scores)
    print(format_report(report))
    print(f"report: {output}")
