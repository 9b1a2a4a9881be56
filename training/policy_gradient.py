r"""Train a DDPM on a reward: a policy gradient whose log-probabilities are the model's own.

    python training/policy_gradient.py --digit 3

Starts from the shipped digits and makes them more like one digit, as a logistic regression on the training digits sees it.
A chain of K steps is a policy (Black et al. 2023, DDPO): x_t is the state, x_s the action, and `step(return_log_prob=True)`
says how probable it was. The last action is an image drawn from the discretised decoder, so that the policy is the very model
that is scored. Each batch of chains is used for a few updates of the clipped objective of PPO (Schulman et al. 2017).
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.checks import check_count
from ddpm_vlb.data import load_images
from ddpm_vlb.evaluation import image_grid
from ddpm_vlb.files import locked, new_folder
from ddpm_vlb.pixel_grid import samples_to_levels

CHECKPOINT = Path(__file__).parents[1] / "spaces_demo" / "checkpoints" / "ddpm-vlb-digits"
NUM_SAMPLES = 256  # that the reward is compared on
CLIP = 0.2  # how far a ratio of probabilities may move in one batch


def policy_scheduler(scheduler: VLBDDPMScheduler, num_inference_steps: int) -> VLBDDPMScheduler:
    r"""The same chain on K steps, without clipping: a clipped prediction has no gradient."""
    scheduler = VLBDDPMScheduler.from_config(scheduler.config, clip_sample=False)
    scheduler.set_timesteps(num_inference_steps)
    return scheduler


def log_prob(scheduler: VLBDDPMScheduler, prev_sample, model_output, sample, timestep: int) -> torch.Tensor:
    r"""Of an action, in nats per image: of a density above the last step, of the levels of an image at it."""
    return scheduler.log_prob(prev_sample, model_output, sample, timestep, decoder="discretized")


@torch.no_grad()
def roll_out(pipe: VLBDDPMPipeline, batch_size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Chains of the scheduler's steps: latents `(K + 1, B, C, H, W)`, from noise to images, and log-probabilities `(K, B)`."""
    scheduler = pipe.scheduler
    chain, log_probs = [torch.randn(batch_size, *pipe.network.image_shape, generator=generator)], []
    *above, last = scheduler.timesteps.tolist()
    for timestep in above:
        model_output = pipe.unet(chain[-1], timestep).sample
        step = scheduler.step(model_output, timestep, chain[-1], generator=generator, return_log_prob=True)
        chain.append(step.prev_sample)
        log_probs.append(step.log_prob)
    model_output = pipe.unet(chain[-1], last).sample
    chain.append(scheduler.draw_from_decoder(model_output, last, chain[-1], generator))
    log_probs.append(log_prob(scheduler, chain[-1], model_output, chain[-2], last))
    return torch.stack(chain), torch.stack(log_probs)


def train(
    pipe: VLBDDPMPipeline,
    reward: Callable[[torch.Tensor], torch.Tensor],
    *,
    num_iterations: int,
    num_inference_steps: int = 10,
    batch_size: int = 64,
    updates_per_batch: int = 2,
    learning_rate: float = 2e-4,
    seed: int = 0,
) -> list[float]:
    r"""Raise the expected `reward`, which takes levels `(B, C, H, W)` and gives `(B,)`; trains `pipe.unet` in place.

    Returns the mean reward of each iteration's batch.
    """
    pipe.scheduler = policy_scheduler(pipe.scheduler, num_inference_steps)
    unet, scheduler = pipe.unet.eval(), pipe.scheduler  # no dropout: a policy is one network
    optimizer = torch.optim.AdamW(unet.parameters(), lr=learning_rate, weight_decay=0.0)
    generator, rewards = torch.Generator().manual_seed(seed), []
    for iteration in range(num_iterations):
        chain, old = roll_out(pipe, batch_size, generator)
        got = reward(samples_to_levels(chain[-1], scheduler.config.num_pixel_levels)).double()
        advantage = (got - got.mean()) / (got.std() + 1e-6)
        rewards.append(got.mean().item())
        for _ in range(updates_per_batch):
            for row, timestep in enumerate(scheduler.timesteps.tolist()):
                model_output = unet(chain[row], timestep).sample
                new = log_prob(scheduler, chain[row + 1], model_output, chain[row], timestep)
                ratio = torch.exp(new - old[row])
                gain = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
                (-gain.mean() / len(old)).backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        if iteration % 10 == 0:
            print(f"iteration {iteration:4}  mean reward {rewards[-1]:.3f}", flush=True)
    return rewards


def digit_reward(digit: int) -> Callable[[torch.Tensor], torch.Tensor]:
    r"""How probable it is that an image shows `digit`, to a logistic regression on the training digits."""
    digits = load_images("digits", split="train")
    classifier = LogisticRegression(max_iter=2000, C=0.01).fit(digits.images.flatten(1).numpy(), digits.labels.numpy())
    return lambda levels: torch.from_numpy(classifier.predict_proba(levels.flatten(1).numpy())[:, digit])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", default=CHECKPOINT, help="a pipeline of 8 x 8 digits (default: the shipped one)")
    parser.add_argument("--digit", type=int, default=3, choices=range(10), metavar="0-9", help="what is rewarded (default: 3)")
    parser.add_argument("--iterations", type=int, default=40, help="batches of chains (default: 40, a few minutes)")
    parser.add_argument("--steps", type=int, default=10, help="steps K of a chain (default: 10)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/policy-gradient"), help="folder for pipeline and samples")
    arguments = parser.parse_args(argv)
    try:
        check_count("iterations", arguments.iterations)
        pipe = VLBDDPMPipeline.from_pretrained(arguments.checkpoint)
        pipe.scheduler.inference_grid(arguments.steps)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        with locked(arguments.output):
            run(pipe, arguments)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(pipe: VLBDDPMPipeline, arguments: argparse.Namespace) -> None:
    r"""Train; compare samples of the same seed before and after; write."""
    start, reward, seed = time.monotonic(), digit_reward(arguments.digit), arguments.seed
    pipe.scheduler = policy_scheduler(pipe.scheduler, arguments.steps)

    def samples() -> torch.Tensor:
        chain, _ = roll_out(pipe, NUM_SAMPLES, torch.Generator().manual_seed(seed + 1))
        return samples_to_levels(chain[-1], pipe.scheduler.config.num_pixel_levels)

    before = samples()
    train(pipe, reward, num_iterations=arguments.iterations, num_inference_steps=arguments.steps, seed=seed)
    after = samples()
    with new_folder(arguments.output) as folder:
        pipe.save_pretrained(folder / "pipeline")
        for name, levels in (("before", before), ("after", after)):
            grey = levels[:64, 0].double() / (pipe.scheduler.config.num_pixel_levels - 1) * 255
            image_grid([Image.fromarray(image) for image in grey.round().byte().numpy()]).save(folder / f"{name}.png")
    print(f"mean reward of {NUM_SAMPLES} samples: {reward(before).mean():.3f} before, {reward(after).mean():.3f} after")
    print(f"{arguments.output}: pipeline, before.png, after.png; {time.monotonic() - start:.0f} seconds")


if __name__ == "__main__":
    sys.exit(main())
