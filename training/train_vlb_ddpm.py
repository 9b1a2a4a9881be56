r"""Train a `UNet2DModel` for likelihood, with Accelerate.

    accelerate launch training/train_vlb_ddpm.py --config training/configs/digits.yaml --output_dir runs/digits

Plain `python` and `torchrun` launch it too. Every option is a flag, or a line of a YAML file given with `--config`; the command
line wins. `--output_dir` receives

    pipeline/        the model, for VLBDDPMPipeline and stock DDPMPipeline: the best so far by bits/dim on a slice of the
                     training split that is kept out of training (with --eval_nll_every), else the latest
    checkpoint-N/    what a run goes on from (--resume_from_checkpoint latest)
    validation.npz   that slice: images that no update saw, for `ddpm-vlb calibrate`
    metrics.jsonl    one line per --logging_steps updates and one per scoring
    samples/         grids of samples

**Nothing random is stored.** Order of examples, timesteps and noise are functions of (seed, step, position in the global
batch), dropout of (seed, step, process). A resumed run therefore repeats an uninterrupted one bit for bit, in the middle of an
epoch too, and several processes see the very batches that one process with the whole batch would see.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainer.arguments import parse_arguments

from ddpm_vlb.cli.main import what_can_be_mended
from ddpm_vlb.files import locked

# Torch and what needs it is imported when a run begins, so that help and refusals are quick.
if TYPE_CHECKING:
    from accelerate import Accelerator


def set_up(arguments: argparse.Namespace) -> "Accelerator":
    r"""The output folder, and the processes that the launcher started."""
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration
    from diffusers.utils import logging

    from ddpm_vlb.evaluation.run import of_all_processes

    a = arguments
    try:
        a.output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"`output_dir` must be a folder that can be written to, got {str(a.output_dir)!r}: {error}") from error
    with of_all_processes():
        accelerator = Accelerator(
            mixed_precision=a.mixed_precision,
            dynamo_backend="inductor" if a.compile else None,  # none: the launcher's
            log_with=None if a.report_to == "none" else a.report_to,
            project_config=ProjectConfiguration(project_dir=str(a.output_dir), logging_dir=str(a.output_dir / a.logging_dir)),
        )
    accelerator.gradient_accumulation_steps = 1  # whatever the environment says: parts are counted here
    accelerator.print(f"processes: {accelerator.num_processes} on {accelerator.device.type}")
    if a.expected_processes not in (None, accelerator.num_processes):
        raise ValueError(
            f"`expected_processes` must be what was launched, got {a.expected_processes} for {accelerator.num_processes}."
            " (`accelerate launch --cpu --num_processes 2` starts one; see training/README.md.)"
        )
    logging.set_verbosity_error()
    return accelerator


def run(arguments: argparse.Namespace) -> None:
    r"""Set up, train, push."""
    accelerator = set_up(arguments)
    # One run in a folder at a time; what is in it is looked at once nobody else can change it.
    with locked(arguments.output_dir if accelerator.is_main_process else None, name="output_dir", inside=True):
        train(arguments, accelerator)


def train(arguments: argparse.Namespace, accelerator: "Accelerator") -> None:
    r"""Train and push, once no other run is in the folder."""
    from trainer.checkpoints import find_checkpoint
    from trainer.data import Data
    from trainer.hub import create_repository, push_pipeline
    from trainer.metrics import hide_host, tracked_settings
    from trainer.trainer import Trainer

    a = arguments
    start = find_checkpoint(a)
    repository = create_repository(a) if a.push_to_hub and accelerator.is_main_process else None
    trainer = Trainer(a, accelerator, Data(a))
    trainer.begin(start)
    accelerator.print(trainer.describe())
    if a.report_to != "none":
        accelerator.init_trackers("ddpm-vlb", config=tracked_settings(a))
    try:
        trainer.train()
        accelerator.end_training()
    finally:
        if accelerator.is_main_process:
            hide_host(a.output_dir / a.logging_dir)
    if repository is not None:
        push_pipeline(a, repository)


def main(argv: Sequence[str] | None = None) -> int:
    r"""Returns the exit status: 2, with one line on stderr, for anything that the user can mend."""
    try:
        run(parse_arguments(argv))
    except Exception as error:
        reason = what_can_be_mended(error)
        if reason is None:
            raise
        print(f"train_vlb_ddpm.py: {' '.join(reason.split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
