r"""What the host does for a batch of an evaluation, and of training: `python tests/benchmarks/host.py`.

On a GPU the host draws, gathers the images, and calls torch's operators, and the device computes meanwhile. Here it is timed
with the network on torch's meta device, where nothing is computed: an operator says the shape of what it gives. Most can say it
in compiled code, which takes a microsecond, and in Python, which takes a hundred and which torch prefers, to trace with: `host`
is the time with the compiled ones, and beside it stands that with torch as it comes. What it takes a GPU's driver to start the
work comes on top of it. Then how many of the calls start work on the device, and the whole of a batch on a CPU, arithmetic and
all. The network does nothing. Of training it is noise, loss and gradient; then an update reads losses and the gradient's norm.
"""

import argparse
import time
from types import SimpleNamespace

import numpy as np
import torch
from diffusers.configuration_utils import FrozenDict
from torch import _meta_registrations
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.likelihoods.full_sweep import sweep
from ddpm_vlb.noise import keyed_normal, mix_array, to_device
from ddpm_vlb.pixel_grid import levels_to_samples
from ddpm_vlb.sampled_bound.draw_scorer import DrawScorer
from ddpm_vlb.sampled_bound.draws import Draws

# Side of the images, images in a batch.
CASES = {"3 x 32 x 32": (32, 128), "3 x 64 x 64": (64, 64), "3 x 256 x 256": (256, 16)}
BATCHES = 8
# Operators that give another view of a tensor, or memory, and start nothing on the device.
NO_WORK = (
    "view",
    "expand",
    "unsqueeze",
    "squeeze",
    "select",
    "slice",
    "transpose",
    "permute",
    "detach",
    "alias",
    "unbind",
    "empty",
)


class Nothing(torch.nn.Module):
    """Costs nothing, and gives what a network gives."""

    def __init__(self, side, device):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, device=device))
        self.config = FrozenDict(in_channels=3, out_channels=3, sample_size=side, num_class_embeds=None)
        self.dtype, self.device = torch.float32, torch.device(device)

    def forward(self, sample, timestep):
        # The weight, for a gradient.
        return SimpleNamespace(sample=sample + self.weight if torch.is_grad_enabled() else sample)


class Recorded(TorchDispatchMode):
    """Every operator that is called, with its arguments."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    @property
    def launches(self) -> int:
        r"""How many of them start work on the device."""
        return sum(
            any(isinstance(value, torch.Tensor) and value.is_meta for value in tree_iter((args, kwargs)))
            and not any(func.__name__.lstrip("_").startswith(name) for name in NO_WORK)
            for func, args, kwargs in self.calls
        )


def milliseconds(run, rounds) -> float:
    r"""CPU time; the least of some rounds, for other work on the machine can only add to it."""
    run()
    times = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return 1e3 * min(times)


def batches(side, count, device):
    r"""What is done with a batch, by name, and how often: scoring the draws of a sampled evaluation, a full sweep, training."""
    pipe = VLBDDPMPipeline(Nothing(side, device), VLBDDPMScheduler(1000))
    rng = np.random.default_rng(0)
    levels = torch.from_numpy(rng.integers(256, size=(count, 3, side, side), dtype=np.uint8))
    scorer, ids = pipe.scorer(), np.arange(count)
    score = DrawScorer([scorer], levels, ids, ids, 0)
    # One in 20 is the decoder's.
    rows = rng.integers(1, 1000, count) * (np.arange(count) % 20 > 0)
    draws = Draws(np.sort(rng.integers(count, size=count)), rows, mix_array(0, np.arange(count)))
    some = pipe.scorer(inference_timesteps=list(range(BATCHES - 1, -1, -1)))
    timesteps = torch.from_numpy(rng.integers(1000, size=count))

    def train():
        images = levels_to_samples(to_device(levels, torch.device(device)), 256, torch.float32)
        noise = keyed_normal(mix_array(0, np.arange(count)), images.shape[1:], torch.device(device))
        noisy_images = pipe.scheduler.forward_process().q_sample(images, noise, timesteps)
        output = pipe.network(noisy_images, timesteps, None)
        # As the training script has it.
        how = {"loss_type": "vlb", "clip_sample": False, "thresholding": False, "validate_args": False}
        loss = pipe.scheduler.training_loss(output, images, noise, noisy_images, timesteps, **how)
        loss.mean().backward()

    return {
        "sampled": (torch.inference_mode()(lambda: score(draws)), 1),
        "sweep": (torch.inference_mode()(lambda: sweep(some, levels, ids.tolist())), BATCHES),
        "training": (train, 1),
    }


def compile_shapes(operators: torch.library.Library) -> None:
    r"""Takes torch's operators in Python from the meta device, for good.

    Three operators that scoring calls have none that is compiled: theirs is here, no more than a shape.
    """
    _meta_registrations._meta_lib_dont_use_me_use_register_meta._destroy()

    def empty(shape, dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    operators.impl(
        "where.self", lambda which, a, b: empty(torch.broadcast_shapes(which.shape, a.shape, b.shape), torch.result_type(a, b))
    )
    operators.impl(
        "index_select",
        lambda source, axis, index: empty((*source.shape[:axis], len(index), *source.shape[axis + 1 :]), source.dtype),
    )
    operators.impl("abs.out", lambda source, out: out.resize_(source.shape))


def product(device):
    r"""What torch itself takes for an operator, a thousand times."""
    one = torch.ones((), dtype=torch.float64, device=device)
    return lambda: [one * one for _ in range(1000)]


def in_microseconds(rounds) -> str:
    cpu, meta = (milliseconds(product(device), rounds) for device in ("cpu", "meta"))  # of a thousand
    return f"{cpu:.1f} us on the CPU, {meta:.1f} us on the meta device"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    few = max(3, arguments.rounds // 4)
    print(
        f"{arguments.threads} CPU thread(s), CPU time a batch, least of {arguments.rounds} rounds; a network that does nothing"
    )
    print(f"a product of two tensors of one number, torch as it comes: {in_microseconds(arguments.rounds)}")
    timed = []
    for name, (side, count) in CASES.items():
        on_the_cpu = batches(side, count, "cpu")
        for kind, (run, number) in batches(side, count, "meta").items():
            with Recorded() as recorded:
                run()
            times = [milliseconds(run, arguments.rounds), milliseconds(on_the_cpu[kind][0], few)]
            timed.append((f"{name:13} batch {count:3} {kind:8}", run, number, recorded.launches, times))
    with torch.library._scoped_library("aten", "IMPL", "Meta") as operators:
        compile_shapes(operators)
        print(f"with compiled shapes: {in_microseconds(arguments.rounds)}")
        for name, run, number, launches, times in timed:
            host, as_it_comes, cpu = (time / number for time in (milliseconds(run, arguments.rounds), *times))
            print(
                f"{name}  host {host:5.2f} ms  {launches / number:3.0f} operators  torch as it comes {as_it_comes:5.1f} ms"
                f"  on the CPU {cpu:6.1f} ms"
            )


if __name__ == "__main__":
    main()
