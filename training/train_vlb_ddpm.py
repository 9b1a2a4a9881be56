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
import io
import json
import math
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from diffusers.utils import logging
from safetensors import SafetensorError
from tqdm.auto import tqdm
from train_arguments import parse_arguments
from train_data import DROPOUT, FLIP, NOISE, SAMPLING, SCORING, SHIFT, SYMMETRY, TIMESTEPS, Data, Plan, augment
from train_model import Objective, build_scheduler, build_unet

from ddpm_vlb import VLBDDPMPipeline
from ddpm_vlb.data import images_to_levels
from ddpm_vlb.evaluation import estimate_nll, image_grid
from ddpm_vlb.files import clean_up, new_folder, remove_folder, replace_folder, sync, write_atomically
from ddpm_vlb.hub.push import push_folder
from ddpm_vlb.noise import keyed_normal, keyed_uniform, mix
from ddpm_vlb.pixel_grid import levels_to_samples
from ddpm_vlb.timestep_samplers import TIMESTEP_SAMPLERS


class Stop:
    r"""Remembers SIGINT and SIGTERM until the step is done; a second one takes its usual course."""

    def __init__(self):
        self.signal = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: Any) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)


class Metrics:
    r"""`metrics.jsonl`, the trackers, and how a resumed run goes on in the file without a line lost or written twice."""

    def __init__(self, accelerator: Accelerator, path: Path, step: int, room: Callable):
        self.accelerator, self.path, self.room, self.start = accelerator, path, room, time.monotonic()
        if accelerator.is_main_process:
            lines = path.read_text().split("\n")[:-1] if path.exists() else []  # what follows the last newline was cut off
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            write_atomically(path, "".join(f"{line}\n" for line in kept).encode())

    def log(self, step: int, **values: Any) -> None:
        if self.accelerator.is_main_process:
            with self.room(), self.path.open("a") as file:
                line = {"step": step, **values, "seconds": round(time.monotonic() - self.start, 3)}
                file.write(json.dumps(line, allow_nan=False) + "\n")
            prefix = f"{values['split']}/" if "split" in values else ""
            self.accelerator.log({f"{prefix}{k}": v for k, v in values.items() if not isinstance(v, str)}, step=step)


class Trainer:
    r"""A run: what it consists of, and what is done with it."""

    def __init__(self, arguments: argparse.Namespace, accelerator: Accelerator, data: Data):
        self.arguments, self.accelerator, self.data = arguments, accelerator, data
        a = arguments
        self.plan = Plan(
            accelerator.process_index, accelerator.num_processes, a.train_batch_size, a.gradient_accumulation_steps
        )
        torch.manual_seed(a.seed)
        scheduler = build_scheduler(a, data.num_pixel_levels)
        unet = build_unet(a, data.shape, scheduler.reverse_process().learns_variance)
        objective = Objective(unet, scheduler, a.loss_type, a.learn_betas)
        groups = [{"params": list(unet.parameters()), "lr": a.learning_rate, "weight_decay": a.adam_weight_decay}]
        if a.learn_betas:
            betas = list(objective.noise_schedule.parameters())
            groups.append({"params": betas, "lr": a.learning_rate_betas, "weight_decay": 0.0})
        optimizer = torch.optim.AdamW(groups, betas=(a.adam_beta1, a.adam_beta2), eps=a.adam_epsilon)
        # Not prepared: a prepared one moves once per process. This one moves once per update, whatever the processes and parts.
        self.lr_scheduler = get_scheduler(
            a.lr_scheduler, optimizer, num_warmup_steps=a.lr_warmup_steps, num_training_steps=a.max_train_steps
        )
        self.model, self.optimizer = accelerator.prepare(objective, optimizer)
        self.objective: Objective = accelerator.unwrap_model(self.model)
        self.sampler = TIMESTEP_SAMPLERS[a.timestep_sampler](a.ddpm_num_steps)
        self.ema = None
        if a.use_ema:
            self.ema = EMAModel(
                self.objective.parameters(),
                decay=a.ema_max_decay,
                use_ema_warmup=True,
                inv_gamma=a.ema_inv_gamma,
                power=a.ema_power,
                foreach=True,
            )
        self.step, self.position, self.best = 0, (0, 0), None
        self.stop = Stop()

    # Saving and resuming.

    def identity(self) -> dict[str, Any]:
        r"""What must not change when a run is resumed."""
        a = self.arguments
        return {
            "unet": {k: v for k, v in self.objective.unet.config.items() if not k.startswith("_")},
            "scheduler": {k: v for k, v in self.objective.scheduler.config.items() if not k.startswith("_")},
            "loss_type": a.loss_type,
            "timestep_sampler": a.timestep_sampler,
            "learn_betas": a.learn_betas,
            "use_ema": a.use_ema,
            "seed": a.seed,
            "global_batch_size": self.plan.global_batch_size,
            "images": [self.data.count, self.data.fingerprint],
            "shuffle_buffer_size": a.shuffle_buffer_size if a.streaming else None,
            "augmentation": [a.random_flip, a.random_shift, a.random_symmetry, a.augment_above_log_snr],
            "mixed_precision": self.accelerator.mixed_precision,
            "validation": self.validates and [a.num_validation_images, a.evaluations_per_image],
        }

    @property
    def validates(self) -> bool:
        r"""Whether a slice of the training split chooses what is kept."""
        return self.data.validation is not None

    def save(self) -> Path:
        r"""Write `checkpoint-N`, on all processes, under another name until it is complete."""
        a, accelerator = self.arguments, self.accelerator
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.objective.parameters()):
            raise ValueError(
                f"The weights must be finite to be saved, got others after step {self.step}. {self.last_checkpoint()}"
            )
        target = a.output_dir / f"checkpoint-{self.step}"
        partial = a.output_dir / ".checkpoint-partial"
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        accelerator.wait_for_everyone()
        with self.room(partial):
            accelerator.save_state(str(partial))
            if accelerator.is_main_process:
                state = {
                    "step": self.step,
                    "position": self.position,
                    "best": self.best,
                    "lr_scheduler": self.lr_scheduler.state_dict(),
                    "sampler": self.sampler.state_dict(),
                    "ema": self.ema.state_dict() if self.ema else None,
                }
                torch.save(state, partial / "state.pt")
                (partial / "run.json").write_text(json.dumps(self.identity(), indent=2))
                sync(partial)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            replace_folder(partial, target)  # there is one already where a run was resumed from an older checkpoint
            for folder in checkpoints(a.output_dir)[: -a.checkpoints_total_limit if a.checkpoints_total_limit else 0]:
                remove_folder(folder)
        accelerator.wait_for_everyone()
        return target

    @contextmanager
    def room(self, unfinished: Path | None = None) -> Iterator[None]:
        r"""Say of a full disk what is safe; each library has an error of its own for it."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            if unfinished is not None:
                shutil.rmtree(unfinished, ignore_errors=True)
            raise OSError(f"`output_dir` must have room for the run's files, got: {error}. {self.last_checkpoint()}") from error

    def last_checkpoint(self) -> str:
        r"""A sentence on what is safe."""
        found = checkpoints(self.arguments.output_dir)
        return f"The last good checkpoint is {found[-1]}." if found else "There is no checkpoint yet."

    def resume(self, folder: Path) -> None:
        r"""Take up a checkpoint.

        Raises:
            ValueError: a folder that is no complete checkpoint, or one of another run.
        """
        problem = f"`resume_from_checkpoint` must be a complete checkpoint of this script, got {str(folder)!r}"
        try:
            identity = json.loads((folder / "run.json").read_text())
            state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file can make its reader stumble over anything
            raise ValueError(f"{problem}: {error}") from error
        now = json.loads(json.dumps(self.identity()))
        for name in now:
            if identity.get(name) != now[name]:
                before, after = _first_difference(identity.get(name), now[name])
                raise ValueError(
                    f"`resume_from_checkpoint` must be a checkpoint of the same run: its {name} has {before}, this run {after}."
                )
        try:
            settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
            rates = self.lr_scheduler.base_lrs
            self.accelerator.load_state(str(folder))
            self.lr_scheduler.load_state_dict(state["lr_scheduler"])
            # The flags of this run, not those that the checkpoint remembers.
            self.lr_scheduler.base_lrs = rates
            for group, setting, factor in zip(self.optimizer.param_groups, settings, self.lr_scheduler.lr_lambdas):
                group.update(setting, lr=setting["initial_lr"] * factor(self.lr_scheduler.last_epoch))
            self.sampler.load_state_dict(state["sampler"])
            if self.ema:
                a = self.arguments
                decay = {"decay": a.ema_max_decay, "inv_gamma": a.ema_inv_gamma, "power": a.ema_power}
                self.ema.load_state_dict({**state["ema"], **decay})
                self.ema.to(self.accelerator.device)
            self.step, self.position = state["step"], tuple(state["position"])
            # What was best is worth nothing where it is not at hand.
            self.best = state["best"] if (self.arguments.output_dir / "pipeline").exists() else None
        except Exception as error:
            raise ValueError(f"{problem}: {error}") from error

    # Training.

    def train(self) -> None:
        r"""Run to the last step, or until a signal comes; then the exit status tells which."""
        a, accelerator = self.arguments, self.accelerator
        self.metrics = Metrics(accelerator, a.output_dir / "metrics.jsonl", self.step, self.room)
        batches = self.data.batches(self.plan, self.step, self.position)
        smooth, saved = None, self.step
        progress = tqdm(
            range(a.max_train_steps),
            initial=self.step,
            desc="training",
            mininterval=1.0,
            disable=not accelerator.is_main_process,
        )
        with progress:
            while self.step < a.max_train_steps:
                loss, values, stop = self.update(batches)
                smooth = loss if smooth is None else 0.98 * smooth + 0.02 * loss
                progress.update()
                progress.set_postfix_str(self.summary(smooth), refresh=False)
                if self.step % a.logging_steps == 0:
                    self.metrics.log(self.step, **values)
                last = self.step == a.max_train_steps
                if a.eval_nll_every and (self.step % a.eval_nll_every == 0 or last):
                    self.score()
                    stop = max(stop, int(accelerator.gather(torch.tensor([self.stop.signal], device=accelerator.device)).max()))
                if self.step % a.checkpointing_steps == 0 or last or stop:
                    if not self.validates:
                        self.publish()  # first: what a kill leaves undone here, the resumed run does again
                    saved = self.save()
                if stop and not last:
                    accelerator.print(f"stopped by {signal.Signals(stop).name} after step {self.step}; saved {saved}")
                    accelerator.end_training()
                    sys.exit(128 + stop)

    def update(self, batches: Iterator) -> tuple[float, dict[str, float], int]:
        r"""One update of the weights; returns the loss, what to log, and the signal that any process received."""
        a, accelerator, plan = self.arguments, self.accelerator, self.plan
        losses, weights, steps = [], [], []
        for part, places in enumerate(plan.parts()):
            self.position, levels = next(batches)
            images, noise, timesteps, weight = self.examples(levels, places)
            # Dropout, the one thing that the network draws by itself.
            key = mix(mix(mix(a.seed, DROPOUT), self.step), places[0]) % 2**63
            if accelerator.device.type == "cpu":
                torch.default_generator.manual_seed(key)  # without the round over all kinds of devices
            else:
                torch.manual_seed(key)
            with accelerator.no_sync(self.model) if part < plan.num_parts - 1 else nullcontext():
                loss = self.model(images, noise, timesteps)
                accelerator.backward((loss * weight.to(loss)).mean() / plan.num_parts)
            losses.append(loss.detach())
            weights.append(weight)
            steps.append(timesteps)
        # One meeting of the processes per update: losses, timesteps, and whether any is asked to stop.
        local = torch.stack([torch.cat(losses), torch.cat(weights).to(losses[0]), torch.cat(steps).to(losses[0])])
        told = torch.full((1,), float(self.stop.signal)).to(local)
        everything = accelerator.gather(torch.cat([local.flatten(), told])).cpu().double().reshape(plan.num_processes, -1)
        stop = int(everything[:, -1].max())
        loss, weight, timesteps = (plan.in_order(x) for x in everything[:, :-1].chunk(3, dim=1))
        timesteps = timesteps.long()
        if not bool(torch.isfinite(loss).all()):
            bad = (~torch.isfinite(loss)).nonzero().flatten().tolist()
            terms = ", ".join(f"{loss[i].item()} at timestep {timesteps[i].item()}" for i in bad[:4])
            raise ValueError(
                f"`loss` must be finite, got {terms} ({len(bad)} of {len(loss)} terms) in step {self.step + 1}."
                f" The weights were not changed. {self.last_checkpoint()}"
            )
        grad_norm = self.clip_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not accelerator.optimizer_step_was_skipped:
            self.lr_scheduler.step()
            if self.ema:
                self.ema.step(self.objective.parameters())
        self.sampler.update(timesteps, loss)
        self.step += 1
        mean = (loss * weight).mean().item()
        return mean, {"loss": mean, "grad_norm": grad_norm, "lr": self.lr_scheduler.get_last_lr()[0]}, stop

    def examples(self, levels: torch.Tensor, places: range):
        r"""Images, noise, timesteps and weights for the examples at `places` of this step's global batch."""
        a = self.arguments
        images_to_levels(levels, self.data.num_pixel_levels, channels=self.data.shape[0], size=self.data.shape[1:])

        def keys(stream: int) -> list[int]:
            key = mix(mix(a.seed, stream), self.step)
            return [mix(key, place) for place in places]

        timesteps, weights = self.sampler.sample(mix(a.seed, TIMESTEPS), self.step, places, self.plan.global_batch_size)
        kinds = {
            "flip": (FLIP, 0.5 * a.random_flip),
            "shift": (SHIFT, a.random_shift),
            "symmetry": (SYMMETRY, a.random_symmetry),
        }
        draws = {
            name: ([keyed_uniform(key) for key in keys(stream)], share) for name, (stream, share) in kinds.items() if share
        }
        alphas_cumprod = self.objective.scheduler.forward_process().alphas_cumprod[timesteps]
        little_noise = a.augment_above_log_snr is None or torch.logit(alphas_cumprod) > a.augment_above_log_snr
        levels = augment(levels, where=little_noise, **draws)
        images = levels_to_samples(levels, self.data.num_pixel_levels, torch.float32)
        noise = keyed_normal(keys(NOISE), images.shape[1:])
        device = self.accelerator.device
        return images.to(device), noise.to(device), timesteps, weights

    def clip_gradients(self) -> float:
        r"""Clip, the network and the betas each by themselves; returns the network's norm before."""
        a, accelerator = self.arguments, self.accelerator
        accelerator.unscale_gradients(self.optimizer)  # once: fp16 allows no second time
        norm = float(torch.nn.utils.clip_grad_norm_(self.objective.unet.parameters(), a.max_grad_norm))
        norm_betas = 0.0
        if self.objective.noise_schedule is not None:
            betas = list(self.objective.noise_schedule.parameters())
            if self.step < a.learn_betas_after:
                for parameter in betas:
                    parameter.grad = None
            norm_betas = float(torch.nn.utils.clip_grad_norm_(betas, a.max_grad_norm))
        if not math.isfinite(norm + norm_betas) and accelerator.scaler is None:
            raise ValueError(
                f"`grad_norm` must be finite, got {norm} (betas: {norm_betas}) in step {self.step + 1}."
                f" The weights were not changed. {self.last_checkpoint()}"
            )
        return norm if math.isfinite(norm) else -1.0

    def summary(self, loss: float) -> str:
        r"""For the progress bar: the running loss (bits/dim where it is the bound) and the best validation so far."""
        text = f"{loss:.3f} bits/dim" if self.arguments.loss_type == "vlb" else f"loss {loss:.4f}"
        return text + (f", best {self.best:.3f} bits/dim" if self.best is not None else "")

    # Scoring, with averaged weights.

    @contextmanager
    def averaged(self) -> Iterator[VLBDDPMPipeline]:
        parameters = list(self.objective.parameters())
        if self.ema:
            self.ema.store(parameters)
            self.ema.copy_to(parameters)
        training = self.objective.training
        self.objective.eval()
        try:
            yield self.objective.pipeline()
        finally:
            self.objective.train(training)
            if self.ema:
                self.ema.restore(parameters)

    def score(self) -> None:
        r"""Score the validation slice and the held-out images, draw samples, and keep the model if it is the best so far."""
        a, accelerator = self.arguments, self.accelerator
        with self.averaged() as pipe:
            for split, levels in (("validation", self.data.validation), ("held_out", self.data.held_out)):
                if levels is None:
                    continue
                values = self.bits_per_dim(pipe, levels)
                self.metrics.log(self.step, split=split, **values)
                if split == "validation" and (self.best is None or values["bits_per_dim"] < self.best):
                    self.best = values["bits_per_dim"]
                    self.publish(pipe)
            if a.num_sample_images and accelerator.is_main_process:
                self.draw(pipe)
        accelerator.wait_for_everyone()

    def bits_per_dim(self, pipe: VLBDDPMPipeline, levels: torch.Tensor) -> dict[str, float]:
        r"""Means over images, in bits/dim, each process scoring its share of them."""
        a, accelerator = self.arguments, self.accelerator
        share = range(accelerator.process_index, len(levels), accelerator.num_processes)
        terms = torch.zeros(4, len(levels), dtype=torch.float64)
        if share:
            seeds = [mix(mix(a.seed, SCORING), index) for index in share]
            estimate = estimate_nll(pipe, levels[list(share)], seeds, a.evaluations_per_image, a.eval_batch_size)
            terms[:, list(share)] = torch.stack(estimate[:4])
        # Each column is filled by one process: the sum puts them together, and rounds nothing.
        terms = accelerator.reduce(terms.to(accelerator.device), "sum").cpu()
        names = ("bits_per_dim", "prior", "transitions", "decoder")
        values = dict(zip(names, terms.mean(dim=1).tolist()))
        if len(levels) > 1:
            values["standard_error"] = (terms[0].var() / len(levels)).sqrt().item()
        return values | {"num_images": len(levels)}

    def draw(self, pipe: VLBDDPMPipeline) -> None:
        a = self.arguments
        generator = torch.Generator().manual_seed(mix(a.seed, SAMPLING) % 2**63)
        steps = min(a.ddpm_num_inference_steps, a.ddpm_num_steps)
        images = pipe(a.num_sample_images, generator=generator, num_inference_steps=steps).images
        buffer = io.BytesIO()
        image_grid(images).save(buffer, format="png")
        (a.output_dir / "samples").mkdir(exist_ok=True)
        write_atomically(a.output_dir / "samples" / f"step-{self.step:07d}.png", buffer.getvalue())
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                pixels = np.stack([np.asarray(image.convert("RGB")) for image in images])
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"samples": pixels}, step=self.step, **layout)

    def publish(self, pipe: VLBDDPMPipeline | None = None) -> None:
        r"""Write `pipeline/`, whole or not at all."""
        if pipe is None:
            with self.averaged() as pipe:
                return self.publish(pipe)
        if self.accelerator.is_main_process:
            with self.room(), new_folder(self.arguments.output_dir / "pipeline") as folder:
                pipe.save_pretrained(folder)


def _first_difference(before: Any, after: Any, name: str = "") -> tuple[str, str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            if before.get(key) != after.get(key):
                return _first_difference(before.get(key), after.get(key), f"{key} = ")
    return f"{name}{before!r}", f"{name}{after!r}"


def checkpoints(output_dir: Path) -> list[Path]:
    r"""The complete checkpoints, oldest first."""
    found = (path for path in output_dir.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal())
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def find_checkpoint(arguments: argparse.Namespace) -> Path | None:
    r"""The checkpoint to go on from, `None` to start.

    Raises:
        ValueError: a folder that does not exist; an output folder that holds a run, or a part of one, that would be lost.
    """
    wanted, found = arguments.resume_from_checkpoint, checkpoints(arguments.output_dir)
    if wanted == "latest":
        return found[-1] if found else None
    if wanted is not None and not Path(wanted).is_dir():
        raise ValueError(f"`resume_from_checkpoint` must be latest or a checkpoint's folder, got {wanted!r}.")
    if wanted is not None and found and found[-1].samefile(wanted):
        return Path(wanted)
    if found or (arguments.output_dir / "pipeline").exists():
        raise ValueError(
            f"`output_dir` must not hold another run, or a later part of this one, got {str(arguments.output_dir)!r}: give"
            " --resume_from_checkpoint latest, or another folder."
        )
    return None if wanted is None else Path(wanted)


def run(arguments: argparse.Namespace) -> None:
    r"""Set up, train, push."""
    a = arguments
    start = find_checkpoint(a)
    try:
        a.output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"`output_dir` must be a folder that can be written to, got {str(a.output_dir)!r}: {error}") from error
    accelerator = Accelerator(
        mixed_precision=a.mixed_precision,
        log_with=None if a.report_to == "none" else a.report_to,
        project_config=ProjectConfiguration(project_dir=str(a.output_dir), logging_dir=str(a.output_dir / "logs")),
    )
    accelerator.gradient_accumulation_steps = 1  # whatever the environment says: parts are counted here
    accelerator.print(f"processes: {accelerator.num_processes} on {accelerator.device.type}")
    if a.expected_processes not in (None, accelerator.num_processes):
        raise ValueError(
            f"`expected_processes` must be what was launched, got {a.expected_processes} for {accelerator.num_processes}."
            " (`accelerate launch --cpu --num_processes 2` starts one; see the README.)"
        )
    logging.set_verbosity_error()
    repository = create_repository(a) if a.push_to_hub and accelerator.is_main_process else None
    trainer = Trainer(a, accelerator, Data(a))
    if accelerator.is_main_process:
        for name in ("pipeline", "checkpoint"):
            clean_up(a.output_dir / name)
    if start is not None:
        trainer.resume(start)
        accelerator.print(f"resumed from {start} at step {trainer.step}")
    if trainer.validates and accelerator.is_main_process:
        with trainer.room():
            write_atomically(a.output_dir / "validation.npz", trainer.data.validation_file())
    parameters = sum(parameter.numel() for parameter in trainer.objective.unet.parameters())
    accelerator.print(
        f"images: {trainer.data.count or 'a stream'} of {trainer.data.shape}, {trainer.data.num_pixel_levels} levels;"
        f" network: {parameters / 1e6:.2f} M parameters; batch: {trainer.plan.global_batch_size}"
    )
    if a.report_to != "none":
        settings = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in vars(a).items() if k != "hub_token"}
        accelerator.init_trackers("ddpm-vlb", config=settings)
    trainer.train()
    accelerator.end_training()
    if repository is not None:
        folder = a.output_dir / "pipeline"
        push_folder(folder, repository, private=a.hub_private_repo, token=a.hub_token, commit_message="Train")
        print(f"pushed {folder} to {repository}")


def create_repository(arguments: argparse.Namespace) -> str:
    r"""The repository to push to; made before the work, so that a wrong name or token shows at once."""
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


def main(argv: Sequence[str] | None = None) -> int:
    r"""Returns the exit status: 2, with one line on stderr, for anything that the user can mend."""
    try:
        run(parse_arguments(argv))
    except (ValueError, OSError) as error:
        print(f"train_vlb_ddpm.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
