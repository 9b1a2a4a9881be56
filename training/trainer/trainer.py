r"""The run: what it consists of, and what is done with it."""

import argparse
import math
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

from ddpm_vlb import VLBDDPMPipeline
from ddpm_vlb.data import images_to_levels
from ddpm_vlb.files import clean_up, new_folder, write_atomically
from ddpm_vlb.noise import NOISE_VERSION, keyed_normal, mix, to_device
from ddpm_vlb.pixel_grid import levels_to_samples
from ddpm_vlb.progress import progress_bar
from ddpm_vlb.timestep_samplers import TIMESTEP_SAMPLERS

from .augment import augment_examples, drop_labels
from .checkpoints import Checkpoints, read_state, reading
from .data import DROPOUT, NOISE, TIMESTEPS, Data, Plan, example_keys
from .metrics import Metrics
from .network import build_network
from .objective import Objective, build_scheduler
from .pretrained import load_pretrained, noise_process
from .validation import MOST_CLASSES, accuracy, bits_per_dim, draw_samples, why_no_pictures


class Stop:
    r"""Remembers SIGINT and SIGTERM until the step is done; a second one takes its usual course."""

    def __init__(self):
        self.signal = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: Any) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)


def compile_network(module: torch.nn.Module, accelerator: Accelerator) -> str:
    r"""Compile the network in place and say so, where `--compile` or the launcher's `--dynamo_backend` asks for it.

    Accelerate would compile the loss with it, which is float64 and in part the host's: many pieces, and minutes.
    """
    dynamo = accelerator.state.dynamo_plugin
    if dynamo.backend == DynamoBackend.NO:
        return ""
    how = {"dynamic": False, **dynamo.to_kwargs()}
    module.compile(**how)
    dynamo.backend = DynamoBackend.NO
    return f", compiled by {how['backend']}"


class Trainer:
    r"""A run: what it consists of, and what is done with it."""

    def __init__(self, arguments: argparse.Namespace, accelerator: Accelerator, data: Data):
        self.arguments, self.accelerator, self.data = arguments, accelerator, data
        a = arguments
        self.checkpoints = Checkpoints(a.output_dir, accelerator, a.checkpoints_total_limit)
        self.plan = Plan(
            accelerator.process_index, accelerator.num_processes, a.train_batch_size, a.gradient_accumulation_steps
        )
        if a.num_epochs is not None:
            a.max_train_steps = self.plan.steps_of(a.num_epochs, data.count)
        # Updates between grids of samples, and between pipelines; 0 is never.
        self.images_every, self.models_every = (
            0 if epochs is None else self.plan.steps_of(epochs, data.count)
            for epochs in (a.save_images_epochs, a.save_model_epochs)
        )
        self.no_pictures = why_no_pictures(data.shape[0])
        torch.manual_seed(a.seed)
        pretrained = load_pretrained(a)
        process = noise_process(a, pretrained)
        scheduler = build_scheduler(a, data.num_pixel_levels, data.unlabelled_class, process)
        network = build_network(a, data.shape, scheduler, data.num_embeddings, pretrained)
        self.compiled = compile_network(network.module, accelerator)
        text_parts = None if pretrained is None else pretrained.text_parts
        objective = Objective(network, scheduler, a.loss_type, a.learn_betas, text_parts)
        groups = [{"params": list(network.module.parameters()), "lr": a.learning_rate, "weight_decay": a.adam_weight_decay}]
        if a.learn_betas:
            betas = list(objective.noise_schedule.parameters())
            groups.append({"params": betas, "lr": a.learning_rate_betas, "weight_decay": 0.0})
        fused = {"fused": True} if a.adam_fused else {}
        optimizer = torch.optim.AdamW(groups, betas=(a.adam_beta1, a.adam_beta2), eps=a.adam_epsilon, **fused)
        # Not prepared: a prepared one moves once per process. This one moves once per update, whatever the processes and parts.
        self.lr_scheduler = get_scheduler(
            a.lr_scheduler,
            optimizer,
            step_rules=a.lr_step_rules,
            num_warmup_steps=a.lr_warmup_steps,
            num_training_steps=a.max_train_steps,
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

    def describe(self) -> str:
        r"""A line on what is trained, on what."""
        parameters = sum(parameter.numel() for parameter in self.objective.unet.parameters())
        return (
            f"images: {self.data.count or 'a stream'} of {self.data.shape}, {self.data.num_pixel_levels} levels;"
            f" network: {parameters / 1e6:.2f} M parameters{self.compiled}; batch: {self.plan.global_batch_size};"
            f" updates: {self.arguments.max_train_steps}{self._kept_out()}"
        )

    def _kept_out(self) -> str:
        lines, kept, count = "", self.data.num_validation_images, self.data.count
        if self.validates:
            of = "" if count is None else f" of {count + kept}"
            lines += f"\nvalidation: {kept}{of} images are kept out of training (--num_validation_images)"
        if self.no_pictures is not None and self._draws:
            lines += f"\nno pictures of samples: {self.no_pictures}"
        return lines

    @property
    def _draws(self) -> bool:
        return bool(self.arguments.num_sample_images and (self.arguments.eval_nll_every or self.images_every))

    # Saving and resuming.

    def begin(self, start: Path | None) -> None:
        r"""Make the output folder ready: nothing of a run that was killed lies about, and the slice kept out is there.

        Args:
            start: the checkpoint to take up; see `resume`.
        """
        accelerator, output_dir = self.accelerator, self.arguments.output_dir
        if accelerator.is_main_process:
            for name in ("pipeline", "checkpoint"):
                clean_up(output_dir / name)
        if start is not None:
            self.resume(start)
            accelerator.print(f"resumed from {start} at step {self.step}")
        if self.validates and accelerator.is_main_process:
            with self.checkpoints.room():
                write_atomically(output_dir / "validation.npz", self.data.validation_file())

    def identity(self) -> dict[str, Any]:
        r"""What must not change when a run is resumed."""
        a = self.arguments
        return {
            **self.objective.configuration(),
            "loss_type": a.loss_type,
            "timestep_sampler": a.timestep_sampler,
            "learn_betas": a.learn_betas,
            "use_ema": a.use_ema,
            "seed": a.seed,
            "noise_version": NOISE_VERSION,
            "global_batch_size": self.plan.global_batch_size,
            "images": [self.data.count, self.data.fingerprint],
            "shuffle_buffer_size": a.shuffle_buffer_size if a.streaming else None,
            "augmentation": [a.random_flip, a.random_shift, a.random_symmetry, a.augment_above_log_snr],
            "mixed_precision": self.accelerator.mixed_precision,
            "validation": self.validates and [self.data.num_validation_images, a.evaluations_per_image],
            "squares": self.data.squares,
            **({"condition": self.objective.network.condition_sha256} if self.objective.network.conditions else {}),
            **({"num_classes": self.data.num_classes} if a.class_conditional else {}),
            **({"class_dropout": a.class_dropout} if a.class_dropout else {}),
        }

    @property
    def validates(self) -> bool:
        r"""Whether a slice of the training split chooses what is kept."""
        return self.data.validation is not None

    def save(self) -> Path:
        r"""Write a checkpoint, on all processes."""
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.objective.parameters()):
            raise ValueError(
                f"The weights must be finite to be saved, got others after step {self.step}. {self.checkpoints.last()}"
            )
        state = {
            "step": self.step,
            "position": self.position,
            "best": self.best,
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "sampler": self.sampler.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
        }
        return self.checkpoints.write(self.identity(), state)

    def resume(self, folder: Path) -> None:
        r"""Take up a checkpoint.

        Raises:
            ValueError: a folder that is no complete checkpoint, or one of another run.
        """
        state = read_state(folder, self.identity())
        with reading(folder):
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

    # Training.

    def train(self) -> None:
        r"""Run to the last step, or until a signal comes; then the exit status tells which."""
        a, accelerator = self.arguments, self.accelerator
        self.metrics = Metrics(accelerator, a.output_dir / "metrics.jsonl", self.step, self.checkpoints.room)
        batches = self.data.batches(self.plan, self.step, self.position)
        smooth, saved = None, self.step
        progress = progress_bar(
            a.max_train_steps,
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
                scores = bool(a.eval_nll_every) and (self.step % a.eval_nll_every == 0 or last)
                if not scores and self.images_every and (self.step % self.images_every == 0 or last):
                    with self.averaged() as pipe:
                        self.draw(pipe)
                if scores:
                    self.score()
                    stop = max(stop, int(accelerator.gather(torch.tensor([self.stop.signal], device=accelerator.device)).max()))
                saves = self.step % a.checkpointing_steps == 0 or last or stop
                if not self.validates and not saves and self.models_every and self.step % self.models_every == 0:
                    self.publish()
                if saves:
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
            self.position, levels, labels = next(batches)
            images, noise, timesteps, weight = self.examples(levels, places)
            # Dropout, the one thing that the network draws by itself.
            key = mix(mix(mix(a.seed, DROPOUT), self.step), places[0]) % 2**63
            if accelerator.device.type == "cpu":
                torch.default_generator.manual_seed(key)  # without the round over all kinds of devices
            else:
                torch.manual_seed(key)
            with accelerator.no_sync(self.model) if part < plan.num_parts - 1 else nullcontext():
                given = drop_labels(labels, self.data.unlabelled_class, a, self.step, places)
                loss = self.model(images, noise, timesteps, given)
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
                f" The weights were not changed. {self.checkpoints.last()}"
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
        timesteps, weights = self.sampler.sample(mix(a.seed, TIMESTEPS), self.step, places, self.plan.global_batch_size)
        log_snr = torch.logit(self.objective.scheduler.forward_process().alphas_cumprod[timesteps])
        levels = augment_examples(levels, a, self.step, places, log_snr)
        device = self.accelerator.device
        images = levels_to_samples(to_device(levels, device), self.data.num_pixel_levels, torch.float32)
        noise = keyed_normal(example_keys(a.seed, NOISE, self.step, places), images.shape[1:], device)
        return images, noise, timesteps, weights

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
                f" The weights were not changed. {self.checkpoints.last()}"
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
            for split, levels, labels in (
                ("validation", self.data.validation, self.data.validation_labels),
                ("held_out", self.data.held_out, self.data.held_out_labels),
            ):
                if levels is None:
                    continue
                values = bits_per_dim(pipe, levels, labels, a, accelerator, split.replace("_", "-"))
                if labels is not None and self.data.num_classes <= MOST_CLASSES:
                    values["accuracy"] = accuracy(pipe, levels, labels, a)
                self.metrics.log(self.step, split=split, **values)
                if split == "validation" and (self.best is None or values["bits_per_dim"] < self.best):
                    self.best = values["bits_per_dim"]
                    self.publish(pipe)
            self.draw(pipe)

    def draw(self, pipe: VLBDDPMPipeline) -> None:
        r"""Draw samples, on the main process; the others wait. Pictures are no reason to stop a training."""
        a, accelerator = self.arguments, self.accelerator
        if a.num_sample_images and self.no_pictures is None and accelerator.is_main_process:
            try:
                draw_samples(pipe, self.step, a, accelerator)
            except Exception as error:  # of the network, of PIL, of the disk, of trackers
                self.no_pictures = f"{error} (step {self.step})"
                print(f"no pictures of samples from here on: {self.no_pictures}", file=sys.stderr)
        accelerator.wait_for_everyone()

    def publish(self, pipe: VLBDDPMPipeline | None = None) -> None:
        r"""Write `pipeline/`, whole or not at all."""
        if pipe is None:
            with self.averaged() as pipe:
                return self.publish(pipe)
        if self.accelerator.is_main_process:
            with self.checkpoints.room(), new_folder(self.arguments.output_dir / "pipeline") as folder:
                pipe.save_pretrained(folder)
