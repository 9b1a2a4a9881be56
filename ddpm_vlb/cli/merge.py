r"""`ddpm-vlb merge`."""

import argparse

from .common import check_outputs, write_outputs


def run_merge(arguments: argparse.Namespace) -> None:
    r"""`ddpm-vlb merge`."""
    from ..reports.merge import merge_reports
    from ..reports.schema import read_report
    from ..reports.show import format_report

    output = check_outputs(arguments.output, arguments.plot, arguments.scores)
    report = merge_reports([read_report(path) for path in arguments.reports])
    if arguments.scores is not None and report["per_image"] is None:
        raise ValueError("`scores` needs a score for each image, got sampled reports without.")
    write_outputs(report, output, arguments.plot, arguments.scores)
    print(format_report(report))
    print(f"report: {output}")
