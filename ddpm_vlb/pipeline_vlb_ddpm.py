r"""`VLBDDPMPipeline`: sample as `DDPMPipeline` does, and score images with the exact variational bound."""

import json
import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from huggingface_hub import CommitInfo

from .checkpoints.loading import (
    check_configurations,
    check_name,
    check_network,
    check_sampler,
    parts_folder,
    reading,
    upgrade_scheduler,
    without_loading_bar,
)
from .checkpoints.parts import check_parts, load_parts
from .checkpoints.prompts import TextParts, check_prompt, encode_prompts, keep_text, text_parts
from .checks import NonFiniteOutput, check_count, check_output_type
from .data.frame import Images
from .hub.push import check_repository, push_folder
from .hub.repository import saving, strip_paths
from .likelihoods.classify import classify
from .likelihoods.full_sweep import sweep_images
from .model.kinds import KnownModule, check_module, network_of
from .model.memory import check_batch_size
from .model.network import Network, unwrapped
from .model.preconditioned import preconditioned
from .model.scorer import Scorer, check_calibration, make_scorer, scheduler_of_run
from .noise import check_generator, draw_seeds, fresh_seed
from .noise_processes import stock_classes
from .outputs import VLBOutput
from .progress import progress_bar
from .reports.schema import Report
from .sampled_bound.draw_scorer import estimate_frame, evaluating_at_once, known_parts
from .sampled_bound.rules import check_rules
from .scheduling_vlb_ddpm import VLBDDPMScheduler

PUSH_ARGUMENTS = ("repo_id", "commit_message", "private", "token", "create_pr", "revision", "report", "pictures")


class VLBDDPMPipeline(DDPMPipeline):
    r"""
    A `DDPMPipeline` that also tells the likelihood of images.

    Parameters:
        unet ([`UNet2DModel`]):
            The network, with as many output as input channels, or twice as many where variances are learned; out of its
            wrapper, where it is in a `DataParallel` or `DistributedDataParallel`.
        scheduler ([`DDPMScheduler`]):
            Any DDPM scheduler, or another of diffusers' for a DDPM's network (DDIM, PNDM, DPM-Solver, Euler ...); it becomes
            a [`VLBDDPMScheduler`] of the same configuration. Or one of flow matching, EDM or a variance-exploding process,
            whose network is scored as a DDPM (`noise_processes.py`).
        network_kwargs (`dict[str, torch.Tensor]`, *optional*):
            What the network is given besides, `(P, ...)` each: `encoder_hidden_states` of prompts, say. With P > 1 an image's
            class label is the number of its row.

    `autocast` may be set to `torch.bfloat16`, or float16: scoring and sampling then have `torch.autocast` around the network.
    """

    def __init__(self, unet: KnownModule, scheduler: DDPMScheduler, network_kwargs: dict[str, torch.Tensor] | None = None):
        super().__init__(unet=unwrapped(unet), scheduler=upgrade_scheduler(scheduler))
        self.network_kwargs = network_kwargs
        self.text_parts: TextParts | None = None
        self.autocast: torch.dtype | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, unwrapped(value))

    # Loading and saving.

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, prompt=None, **kwargs) -> "VLBDDPMPipeline":
        r"""Load any DDPM checkpoint: stock or ours, in sub-folders or flat, from a folder or from the Hub.

        Arguments as [`~diffusers.DiffusionPipeline.from_pretrained`]. A folder needs no `model_index.json`: a network's
        `config.json` and a `scheduler_config.json`, beside each other or in `unet/` and `scheduler/`, do. `low_cpu_mem_usage`
        is always on: only then does a weight that is missing from the files show. Nothing but classes of diffusers is loaded,
        and no code from a repository unless `custom_pipeline` and `trust_remote_code` ask for it.

        Args:
            prompt (`str` or `list[str]`, *optional*):
                What the images show, of a network that takes prompts: the checkpoint's text encoder makes `network_kwargs` of
                it. The likelihood is p(x | prompt); of several, an image's class label is the number of its own.

        Raises:
            CheckpointError: files that are missing, damaged, lack some of the network's weights, or (`.bin`) hold anything but
                tensors; an index that names other classes than diffusers'. It is a `ValueError` and an `OSError`.
        """
        conditions = kwargs.pop("network_kwargs", None)
        prompts = check_prompt(prompt, conditions)
        name = check_name(pretrained_model_name_or_path, kwargs)
        with reading(name), without_loading_bar():
            folder = parts_folder(name, kwargs, prompts is not None)
            own = None if folder is None else load_parts(folder, **kwargs)
            pipe = super().from_pretrained(name, **kwargs) if own is None else cls(**own)
            pipe.text_parts = text_parts(folder)
        pipe.unet = check_network(pipe.unet, name)
        pipe.network_kwargs = encode_prompts(prompts, pipe.text_parts, pipe.unet, name) if prompts else conditions
        return pipe

    @classmethod
    def download(cls, pretrained_model_name, **kwargs) -> str:
        r"""As [`~diffusers.DiffusionPipeline.download`], and `ValueError` for configurations that no model can be made of."""
        return check_configurations(super().download(pretrained_model_name, **kwargs), kwargs)

    @classmethod
    def from_pipe(cls, pipeline, **kwargs) -> "VLBDDPMPipeline":
        r"""A pipeline of another's parts, as [`~diffusers.DiffusionPipeline.from_pipe`]; `ValueError` unless it is a DDPM."""
        check_parts(pipeline.config, type(pipeline).__name__)
        return cast(VLBDDPMPipeline, super().from_pipe(pipeline, **kwargs))

    def to_json_string(self) -> str:
        r"""The pipeline's index, which names the stock classes: every user of diffusers can load and sample it, and this class
        upgrades what it loads. Another scheduler that was put in the place of ours keeps its name."""
        index = json.loads(super().to_json_string())
        index["_class_name"] = DDPMPipeline.__name__
        if type(self.scheduler) is VLBDDPMScheduler:
            index["_class_name"], scheduler = stock_classes(self.scheduler.config)
            index["scheduler"] = ["diffusers", scheduler]
        index |= {} if self.text_parts is None else self.text_parts.index
        return json.dumps(strip_paths(index), indent=2, sort_keys=True) + "\n"

    def __repr__(self) -> str:
        return f"{type(self).__name__} {super().to_json_string()}"  # the classes that are here, not those of the index

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs,
    ) -> None:
        r"""Save for all users of diffusers: under the names of the stock classes, without the path that the network was loaded
        from, and with the file `pipeline.py`, which holds this package for those who do not have it and trust it.

        Arguments as [`~diffusers.DiffusionPipeline.save_pretrained`]; with `push_to_hub`, further ones as
        [`~VLBDDPMPipeline.push_to_hub`], `repo_id` being the folder's name by default.
        """
        folder = Path(save_directory)
        options = {name: kwargs.pop(name) for name in PUSH_ARGUMENTS if name in kwargs} if push_to_hub else {}
        if options.get("report") is not None:
            options["report"] = self.check_report(options["report"])
        with saving(folder, variant, unet=self.unet, scheduler=self.scheduler) as fresh:
            super().save_pretrained(fresh, safe_serialization, variant, max_shard_size, **kwargs)
            keep_text(self.text_parts, fresh)
        if push_to_hub:
            push_folder(folder, options.pop("repo_id", folder.resolve().name), variant=variant, **options)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
        report: dict[str, Any] | None = None,
        pictures: dict[str, bytes] | None = None,
    ) -> CommitInfo:
        r"""Push to the Hub, in one commit, what `save_pretrained` writes and a model card.

        Args:
            repo_id (`str`), commit_message (`str`, *optional*), private (`bool`, *optional*), token (`str`, *optional*),
                create_pr (`bool`), safe_serialization (`bool`), variant (`str`, *optional*), subfolder (`str`, *optional*):
                As [`~diffusers.utils.PushToHubMixin.push_to_hub`]; but `private` is refused for a repository that exists and
                is not, and so is `subfolder`, from which nobody can load a pipeline.
            revision (`str`, *optional*):
                Branch to commit to, made where it does not exist.
            report (`dict`, *optional*):
                Of this pipeline, as `ddpm_vlb.evaluation.make_report` makes it: what the card is made from. Without one, the
                card says that nothing was scored.
            pictures (`dict`, *optional*):
                PNG files for the card, `"terms.png"` and `"samples.png"`.

        Returns:
            `CommitInfo`: the commit, a string that is its address, with that of the pull request as `pr_url`.

        Raises:
            ValueError: a report that does not agree with itself or with this pipeline, or a name that cannot be a repository;
                nothing is sent.
            HubError: what the Hub or the network refused. It is an `OSError`.
        """
        check_repository(repo_id)
        if subfolder is not None:
            raise ValueError(f"`subfolder` must be left out: no pipeline can be loaded from one, got {subfolder!r}.")
        if report is not None:
            report = self.check_report(report)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, safe_serialization=safe_serialization, variant=variant)
            return push_folder(
                folder,
                repo_id,
                report=report,
                pictures=pictures,
                variant=variant,
                private=private,
                token=token,
                create_pr=create_pr,
                revision=revision,
                commit_message=commit_message,
            )

    def check_report(self, report: dict[str, Any]) -> Report:
        r"""The report, or `ValueError` unless it is complete, agrees with itself, and is of this very model: its network, its
        scheduler, and the sub-sequence that its number of steps stands for."""
        report = Report.of(report)
        steps = report.config["num_inference_steps"]
        scorer = self.scorer(steps, report.config["inference_timesteps"] if steps is None else None)
        sha256 = scorer.network.sha256(getattr(torch, report.config["dtype"], None))
        report.check_model(scorer.describe() | {"network_sha256": sha256})
        return report

    # Sampling.

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        inference_timesteps: Sequence[int] | None = None,
        class_labels: int | Sequence[int] | torch.Tensor | None = None,
        draw_from_decoder: bool = False,
    ) -> ImagePipelineOutput | tuple:
        r"""
        Generate images.

        Args:
            batch_size (`int`, *optional*, defaults to 1):
                Number of images.
            generator (`torch.Generator`, *optional*):
                Source of all noise, or a list with one per image.
            num_inference_steps (`int`, *optional*):
                Number of steps K, on the scheduler's grid; by default 1000 as in `DDPMPipeline`, or all T if there are fewer;
                of a calibrated model its best number of steps.
            output_type (`str`, *optional*, defaults to `"pil"`):
                `"pil"`, `"np"` (`(B, H, W, C)` in [0, 1]) or `"pt"` (`(B, C, H, W)` in [0, 1]).
            return_dict (`bool`, *optional*, defaults to `True`):
                Return an [`~pipelines.ImagePipelineOutput`] or a tuple.
            inference_timesteps (`list[int]`, *optional*):
                The grid itself, strictly descending, in place of `num_inference_steps`.
            class_labels (`int`, or integers of shape `(batch_size,)`, *optional*):
                Classes, for a class-conditional network.
            draw_from_decoder (`bool`, *optional*, defaults to `False`):
                Draw the image from the decoder, on the grid of levels: a sample of the very model that is scored. By default
                it is the decoder's mean (Ho et al. 2020), which looks cleaner where the decoder has much to decide.

        Returns:
            [`~pipelines.ImagePipelineOutput`] or `tuple`: the images.

        Raises:
            ValueError: no grid of the scheduler's, or two; epsilon from zero terminal SNR; class labels that do not fit.
        """
        batch_size = check_count("batch_size", batch_size)
        check_generator(generator, batch_size)
        network, device = self.network, self._execution_device
        check_output_type(output_type, network.channels)
        labels = network.check_class_labels(class_labels, batch_size)
        check_sampler(self.scheduler, network, inference_timesteps=inference_timesteps, draw_from_decoder=draw_from_decoder)
        check_calibration(self.scheduler, network)
        scheduler = scheduler_of_run(self.scheduler, num_inference_steps, inference_timesteps)
        network.check(scheduler.timesteps.tolist(), network.size)
        dtype, shape = network.dtype, (batch_size, *network.image_shape)
        image = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        # Latents stay in float32 or better between the steps, whatever the network's dtype.
        image = image.to(torch.promote_types(dtype, torch.float32))

        labels = None if labels is None else labels.to(device)
        timesteps = scheduler.timesteps.to(device)
        finite = torch.ones((), dtype=torch.bool, device=device)
        with network.evaluating(autocast=True):
            for timestep, on_device in zip(cast(Any, self).progress_bar(scheduler.timesteps.tolist()), timesteps.unbind()):
                model_output = network(image, on_device, labels)
                finite &= torch.isfinite(model_output).all()
                latents, image = image, scheduler.step(model_output, timestep, image, generator=generator).prev_sample
        if draw_from_decoder and finite:
            image = scheduler.draw_from_decoder(model_output, timestep, latents, generator)

        if not finite:
            raise NonFiniteOutput(f"NaN or infinity with dtype {str(dtype)[6:]}", dtype=dtype)
        image = (image / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            image = image.cpu().permute(0, 2, 3, 1).numpy()
            if output_type == "pil":
                image = self.numpy_to_pil(image)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=cast(Any, image)) if return_dict else (image,)

    # Scoring.

    @torch.no_grad()
    def evaluate_nll(
        self,
        images: Any,
        batch_size: int | str = 64,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int | None = None,
        inference_timesteps: Sequence[int] | None = None,
        class_labels: int | Sequence[int] | torch.Tensor | None = None,
        clip_sample: bool | None = None,
        thresholding: bool | None = None,
        method: str = "full",
        evaluations_per_image: int | None = None,
    ) -> VLBOutput:
        r"""
        The variational bound on the negative log-likelihood of `images`, term by term.

        By default every step of the chain is evaluated for every image, each with noise of its own: an unbiased estimate of
        the bound, whose prior term and KL terms are in closed form (eq. 5, Ho et al. 2020). The noise of an image depends on
        `generator`, the image's position and the timestep, not on `batch_size`. With `method="sampled"` each image is
        evaluated at a few timesteps instead, placed where they tell most: unbiased too, and with an error of its own.

        Args:
            images:
                A tensor `(N, C, H, W)` (uint8 levels, or float on the pixel grid in [-1, 1]), numpy arrays `(N, H, W, C)`, PIL
                images, paths, one image of these kinds, a `datasets.Dataset`, a Dataset or DataLoader of torch.
            batch_size (`int` or `"auto"`, defaults to 64):
                Images, or pairs of image and timestep, per network call; `"auto"`: 256 (64 on a CPU), halved till they fit.
            generator (`torch.Generator`, *optional*):
                Makes the result reproducible; or a list with one generator per image, for a full sweep.
            num_inference_steps (`int`, *optional*):
                Score the K-step model that `__call__(num_inference_steps=K)` samples from, instead of all T steps (of a
                calibrated model, its best number of steps).
            inference_timesteps (`list[int]`, *optional*):
                Score the model on this strictly descending sub-sequence of [0, T).
            class_labels (`int`, or integers of shape `(N,)`, *optional*):
                Classes, for a class-conditional network.
            clip_sample (`bool`, *optional*), thresholding (`bool`, *optional*):
                Override the scheduler's configuration. They change the model that is scored; the bound stays a bound.
            method (`str`, defaults to `"full"`):
                `"full"` or `"sampled"` (see `sampled_bound/`). The bound of a whole data set takes far fewer evaluations
                still, and is `ddpm_vlb.evaluation.evaluate`'s.
            evaluations_per_image (`int`, *optional*):
                Of each image where they are sampled, an even number; 64 by default. A pilot of up to a quarter as many, at
                most 1000, and of two at each of about 30 timesteps at least, comes on top, and is counted.

        Returns:
            [`VLBOutput`]: float64 tensors on the CPU, in bits per dimension.

        Raises:
            ValueError: images that are not exactly on the model's pixel grid, or of the wrong size; a model that cannot be
                scored; a network whose output is not finite.
        """
        if method not in ("full", "sampled"):
            raise ValueError(f"`method` must be 'full' or 'sampled', got {method!r}.")
        evaluations = 64 if evaluations_per_image is None else evaluations_per_image
        if sampled := method == "sampled":
            check_rules(None, None, evaluations)
            if isinstance(generator, (list, tuple)):
                raise ValueError(f"`generator` must be a single one with method='sampled', got {len(generator)}.")
        elif evaluations_per_image is not None:
            raise ValueError(f"`evaluations_per_image` must be left out with method='full', got {evaluations_per_image!r}.")
        scorer = self.scorer(num_inference_steps, inference_timesteps, clip_sample, thresholding)
        batch_size = check_batch_size(batch_size, scorer.network)
        levels, labels = scorer.read(images, class_labels)
        config = scorer.config(image_shape=list(levels.shape[1:]), batch_size=batch_size, seed=fresh_seed(generator))
        with scorer.network.evaluating():
            if sampled:
                output = self._score_some(scorer, levels, generator, labels, batch_size, evaluations)
            else:
                output = self._score_all(scorer, levels, generator, labels, batch_size)
        self.maybe_free_model_hooks()
        return VLBOutput(timesteps=scorer.reverse.forward.timesteps[1:].clone(), config=config, **output)

    classify = classify

    def _score_all(self, scorer: Scorer, levels, generator, labels, batch_size: int) -> dict[str, Any]:
        r"""The full sweep: the fields of a `VLBOutput`."""
        seeds = draw_seeds(len(levels), generator)
        with self._scoring_bar(-(-len(levels) // batch_size) * len(scorer.timesteps)) as bar:
            prior, terms = sweep_images(scorer, levels, seeds, labels, batch_size, bar.update)
        total = terms[:, 1:].sum(dim=1)
        return {
            "bits_per_dim": prior + terms[:, 0] + total,
            "prior": prior,
            "transitions": terms[:, 1:],
            "transitions_total": total,
            "decoder": terms[:, 0],
            "num_network_evaluations": terms.numel(),
        }

    def _score_some(self, scorer: Scorer, levels, generator, labels, batch_size: int, evaluations: int) -> dict[str, Any]:
        r"""A few evaluations of each image: the fields of a `VLBOutput`."""
        (seed,) = draw_seeds(1, generator)
        ids = np.arange(len(levels))
        prior, features = known_parts([scorer], levels)
        images = Images(ids, prior, features, frame=ids, levels=levels, labels=labels, sha256="")
        with self._scoring_bar(len(levels) * evaluations) as bar:
            evaluating = partial(evaluating_at_once, batch_size=batch_size, step=bar.update)
            estimate = estimate_frame([scorer], images, evaluating, seed=seed, evaluations_per_image=evaluations)
        total, decoder = cast(torch.Tensor, estimate.per_image), cast(torch.Tensor, estimate.per_image_decoder)
        return {
            "bits_per_dim": total,
            "prior": prior,
            "transitions": None,
            "transitions_total": total - prior - decoder,
            "decoder": decoder,
            "num_network_evaluations": estimate.num_evaluations,
            "monte_carlo_error": estimate.per_image_error,
            "degrees_of_freedom": estimate.per_image_degrees_of_freedom,
        }

    def _scoring_bar(self, total: int) -> Any:
        r"""As `set_progress_bar_config` says, and lines where there is nothing to draw a bar on."""
        config = getattr(self, "_progress_bar_config", {})
        others = torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank() > 0
        return progress_bar(total, **({"disable": others} | config))

    @property
    def network(self) -> Network:
        r"""The network as scoring sees it."""
        network = network_of(check_module(self.unet), self._execution_device, self.network_kwargs)
        return preconditioned(network, self.scheduler).with_autocast(self.autocast)

    def scorer(
        self,
        num_inference_steps: int | None = None,
        inference_timesteps: Sequence[int] | None = None,
        clip_sample: bool | None = None,
        thresholding: bool | None = None,
        calibrated: bool = True,
    ) -> Scorer:
        r"""What `evaluate_nll` scores with the same arguments, for any pairs of images and timesteps; `calibrated=False` leaves
        a calibration aside.

        Raises:
            ValueError: a model that cannot be scored.
        """
        return make_scorer(
            self.network, self.scheduler, num_inference_steps, inference_timesteps, clip_sample, thresholding, calibrated
        )
