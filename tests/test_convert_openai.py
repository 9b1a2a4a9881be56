r"""Checkpoints of openai/improved-diffusion: a second forward pass, written from the paper's description, is the oracle."""

import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMPipeline
from tiny import generator, quiet

from ddpm_vlb import VLBDDPMPipeline
from ddpm_vlb.checkpoints.openai import convert_openai, timestep_embedding
from ddpm_vlb.cli import main


def converted(weights, **arguments) -> VLBDDPMPipeline:
    return VLBDDPMPipeline(*convert_openai(weights, **arguments))


class Reference:
    r"""The UNet of Nichol & Dhariwal 2021 on a dictionary of random weights under the names of its published checkpoints.

    Per level: residual blocks (each followed by attention where the level has it), then a convolution of stride 2; in the
    middle a residual block, attention, a residual block; back up one block more per level, each on the concatenation with what
    came down, then nearest upsampling and a convolution. Residual blocks: norm, SiLU, convolution; the time embedding enters as
    a scale and a shift of the second norm's output (or is added before it); SiLU, convolution.
    """

    def __init__(self, width, multipliers, blocks, attention_levels, heads, scale_shift, out_channels, seed=0, classes=None):
        self.width, self.multipliers, self.blocks, self.heads = width, multipliers, blocks, heads
        self.attention_levels, self.scale_shift, self.generator = attention_levels, scale_shift, generator(seed)
        self.weights, self.embedding = {}, 4 * width
        self.make("time_embed.0", self.embedding, width)
        self.make("time_embed.2", self.embedding, self.embedding)
        if classes:
            self.weights["label_emb.weight"] = torch.randn(classes, self.embedding, generator=self.generator)
        self.make("input_blocks.0.0", width, 3, 3, 3)
        index, channels, skips = 1, width, [width]
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                channels = self.make_block(f"input_blocks.{index}", channels, multiplier * width, level)
                skips.append(channels)
                index += 1
            if level < len(multipliers) - 1:
                self.make(f"input_blocks.{index}.0.op", channels, channels, 3, 3)
                skips.append(channels)
                index += 1
        self.make_residual("middle_block.0", channels, channels)
        self.make_attention("middle_block.1", channels)
        self.make_residual("middle_block.2", channels, channels)
        index = 0
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for block in range(blocks + 1):
                name = f"output_blocks.{index}"
                channels = self.make_block(name, channels + skips.pop(), multiplier * width, level)
                if level and block == blocks:
                    self.make(f"{name}.{2 if level in attention_levels else 1}.conv", channels, channels, 3, 3)
                index += 1
        self.make_norm("out.0", channels)
        self.make("out.2", out_channels, width, 3, 3)

    def make(self, name, *shape):
        self.weights[f"{name}.weight"] = torch.randn(shape, generator=self.generator) / math.prod(shape[1:]) ** 0.5
        self.weights[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=self.generator)

    def make_norm(self, name, channels):
        self.weights[f"{name}.weight"] = 1 + 0.2 * torch.randn(channels, generator=self.generator)
        self.weights[f"{name}.bias"] = 0.2 * torch.randn(channels, generator=self.generator)

    def make_residual(self, name, channels, out):
        self.make_norm(f"{name}.in_layers.0", channels)
        self.make(f"{name}.in_layers.2", out, channels, 3, 3)
        self.make(f"{name}.emb_layers.1", 2 * out if self.scale_shift else out, self.embedding)
        self.make_norm(f"{name}.out_layers.0", out)
        self.make(f"{name}.out_layers.3", out, out, 3, 3)
        if channels != out:
            self.make(f"{name}.skip_connection", out, channels, 1, 1)

    def make_attention(self, name, channels):
        self.make_norm(f"{name}.norm", channels)
        self.make(f"{name}.qkv", 3 * channels, channels, 1)
        self.make(f"{name}.proj_out", channels, channels, 1)

    def make_block(self, name, channels, out, level):
        self.make_residual(f"{name}.0", channels, out)
        if level in self.attention_levels:
            self.make_attention(f"{name}.1", out)
        return out

    def layer(self, function, name, x, **options):
        return function(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], **options)

    def norm(self, name, x):
        return F.group_norm(x, 32, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], eps=1e-5)

    def convolve(self, name, x, **options):
        return self.layer(F.conv2d, name, x, **options)

    def residual(self, name, x, embedding):
        h = self.convolve(f"{name}.in_layers.2", F.silu(self.norm(f"{name}.in_layers.0", x)), padding=1)
        embedding = self.layer(F.linear, f"{name}.emb_layers.1", F.silu(embedding))[..., None, None]
        if self.scale_shift:
            scale, shift = embedding.chunk(2, dim=1)
            h = self.norm(f"{name}.out_layers.0", h) * (1 + scale) + shift
        else:
            h = self.norm(f"{name}.out_layers.0", h + embedding)
        h = self.convolve(f"{name}.out_layers.3", F.silu(h), padding=1)
        return h + (self.convolve(f"{name}.skip_connection", x) if f"{name}.skip_connection.weight" in self.weights else x)

    def attend(self, name, x):
        batch, channels, height, width = x.shape
        size = channels // self.heads
        qkv = self.layer(F.conv1d, f"{name}.qkv", self.norm(f"{name}.norm", x).flatten(2))
        out = []
        for head in qkv.split(3 * size, dim=1):
            q, k, v = head.split(size, dim=1)
            out.append(v @ torch.softmax(q.transpose(1, 2) @ k / size**0.5, dim=-1).transpose(1, 2))
        out = self.layer(F.conv1d, f"{name}.proj_out", torch.cat(out, dim=1))
        return x + out.reshape(x.shape)

    def block(self, name, x, embedding, level):
        x = self.residual(f"{name}.0", x, embedding)
        return self.attend(f"{name}.1", x) if level in self.attention_levels else x

    def __call__(self, x, time, labels=None):
        embedding = self.layer(F.linear, "time_embed.0", timestep_embedding(time, self.width))
        embedding = self.layer(F.linear, "time_embed.2", F.silu(embedding))
        if labels is not None:
            embedding = embedding + self.weights["label_emb.weight"][labels]
        x = self.convolve("input_blocks.0.0", x, padding=1)
        index, skips = 1, [x]
        for level in range(len(self.multipliers)):
            for _ in range(self.blocks):
                x = self.block(f"input_blocks.{index}", x, embedding, level)
                skips.append(x)
                index += 1
            if level < len(self.multipliers) - 1:
                x = self.convolve(f"input_blocks.{index}.0.op", x, padding=1, stride=2)
                skips.append(x)
                index += 1
        x = self.attend("middle_block.1", self.residual("middle_block.0", x, embedding))
        x = self.residual("middle_block.2", x, embedding)
        index = 0
        for level in reversed(range(len(self.multipliers))):
            for block in range(self.blocks + 1):
                name = f"output_blocks.{index}"
                x = self.block(name, torch.cat([x, skips.pop()], dim=1), embedding, level)
                if level and block == self.blocks:
                    x = F.interpolate(x, scale_factor=2, mode="nearest")
                    x = self.convolve(f"{name}.{2 if level in self.attention_levels else 1}.conv", x, padding=1)
                index += 1
        return self.convolve("out.2", F.silu(self.norm("out.0", x)), padding=1)


def like_cifar(**changes):
    # The published CIFAR-10 model has width 128 and three blocks per level.
    config = dict(width=32, multipliers=(1, 2, 2, 2), blocks=2, attention_levels=(1, 2), heads=4, scale_shift=True)
    return Reference(**{**config, "out_channels": 6, **changes})


TRAINED = {"diffusion_steps": 4000, "noise_schedule": "cosine", "rescale_timesteps": True}


def test_the_embedding_is_the_papers():
    out = timestep_embedding(torch.tensor([0.0, 2.5]), 8)
    expected = [f(2.5 * 10000 ** (-i / 4)) for f in (math.cos, math.sin) for i in range(4)]
    assert out[0].tolist() == [1.0] * 4 + [0.0] * 4 and out[1].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("reference", "arguments"),
    [
        (like_cifar(), {"diffusion_steps": 4000}),
        (like_cifar(blocks=3), {"diffusion_steps": 1000, "noise_schedule": "linear"}),
        (like_cifar(), {"diffusion_steps": 300, "rescale_timesteps": False}),
        (like_cifar(scale_shift=False, out_channels=3), {"diffusion_steps": 4000, "sigma_small": True}),
        # A single head fits any widths, as on LSUN.
        (
            like_cifar(multipliers=(1, 1, 2, 4), attention_levels=(2, 3), heads=1, scale_shift=False),
            {**TRAINED, "num_heads": 1, "image_size": 32},
        ),
        (like_cifar(multipliers=(1, 2), attention_levels=(1,), classes=5), {**TRAINED, "num_heads": 4, "image_size": 16}),
    ],
)
def test_the_same_function(reference, arguments):
    pipe = converted(reference.weights, **arguments)
    num_steps, size = pipe.scheduler.config.num_train_timesteps, pipe.unet.config.sample_size
    factor = 1000 / num_steps if arguments.get("rescale_timesteps", True) else 1
    x = torch.randn(2, 3, size, size, generator=generator())
    labels = torch.tensor([1, 4]) if "label_emb.weight" in reference.weights else None
    for t in (0, 1, num_steps // 3, num_steps - 1):
        with torch.no_grad():
            got = pipe.unet(x, torch.tensor(t), class_labels=labels).sample
        expected = reference(x, torch.full((2,), t * factor), labels)
        assert expected.std() > 0.3 and (got - expected).abs().max() < 1e-5


def test_the_diffusion(tmp_path):
    pipe = converted(like_cifar().weights, diffusion_steps=4000)
    config = pipe.scheduler.config
    assert (config.beta_schedule, config.variance_type, config.prediction_type) == (
        "squaredcos_cap_v2",
        "learned_range",
        "epsilon",
    )
    # The cosine schedule's products, from the paper's eq. 17.
    forward = pipe.scheduler.forward_process()
    f = [math.cos((t / 4000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (0, 1, 2000)]
    assert forward.alphas_cumprod[[0, 1999]].tolist() == pytest.approx([f[1] / f[0], f[2] / f[0]], rel=1e-9)
    linear = converted(like_cifar().weights, diffusion_steps=4000, noise_schedule="linear").scheduler
    assert linear.betas[[0, -1]].tolist() == pytest.approx([2.5e-5, 0.005], rel=1e-5)
    # Their respacing: evenly spaced from the first to the last.
    assert pipe.scheduler.inference_grid(100)[::-1] == [round(i * 3999 / 99) for i in range(100)]


def test_the_published_models_have_their_flags():
    lsun = like_cifar(multipliers=(1, 1, 2, 2, 4, 4), attention_levels=(4,), blocks=1, scale_shift=False)
    pipe = converted(lsun.weights)
    assert pipe.unet.config.sample_size == 256 and pipe.unet.config.attention_head_dim is None
    config = pipe.scheduler.config
    assert (config.num_train_timesteps, config.beta_schedule, config.beta_end) == (1000, "linear", 0.02)
    assert pipe.unet.config.time_embedding_type == "positional"
    cifar = converted(like_cifar().weights)
    assert cifar.unet.config.sample_size == 32 and cifar.unet.config.attention_head_dim == 16
    assert (cifar.scheduler.config.num_train_timesteps, cifar.unet.config.time_embedding_type) == (4000, "learned")


def test_the_command(tmp_path, capsys):
    reference = like_cifar()
    torch.save(reference.weights, tmp_path / "ema.pt")
    arguments = ["convert-openai", str(tmp_path / "ema.pt"), str(tmp_path / "out"), "--diffusion-steps", "40"]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "32 x 32" in told and "learned_range" in told and "40 steps, squaredcos_cap_v2, timesteps rescaled" in told
    pipe, stock = (quiet(cls.from_pretrained(tmp_path / "out")) for cls in (VLBDDPMPipeline, DDPMPipeline))
    images = torch.randint(256, (2, 3, 32, 32), generator=generator()).to(torch.uint8)
    out = pipe.evaluate_nll(images, generator=generator(), num_inference_steps=4)
    assert torch.isfinite(out.bits_per_dim).all() and out.config["decoder_variance"].startswith("between")
    options = {"num_inference_steps": 4, "output_type": "np"}
    samples = [p(generator=generator(), **options).images for p in (pipe, stock)]
    assert abs(samples[0] - samples[1]).max() < 1e-3
    assert main(arguments) == 2 and "`output` must be a folder that does not exist yet" in capsys.readouterr().err


def test_a_full_disk_is_said_in_one_line(tmp_path, small_disk, capsys):
    torch.save(like_cifar().weights, tmp_path / "ema.pt")
    disk = small_disk("1m")
    assert main(["convert-openai", str(tmp_path / "ema.pt"), str(disk / "new" / "out"), "--diffusion-steps", "40"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("ddpm-vlb convert-openai: [Errno 28] The weights could not be written: ")
    assert "No space left on device" in line and line.endswith(repr(str(disk / "new" / "out")))
    assert [path.name for path in disk.iterdir()] == ["new"] and not list((disk / "new").iterdir())


def test_what_cannot_be_exact_is_refused(tmp_path, capsys):
    weights = like_cifar().weights
    imagenet = like_cifar(multipliers=(1, 2, 3, 4), attention_levels=(2, 3), blocks=1).weights
    without = {name: weight for name, weight in weights.items() if name != "middle_block.1.qkv.weight"}
    pooled = {name: weight for name, weight in weights.items() if not name.startswith("input_blocks.3.")}
    wider = weights | {"out_layers.3.weight": torch.zeros(1)}
    wrong = weights | {"time_embed.0.bias": torch.zeros(3)}
    cases = [
        (imagenet, {}, "4 heads on levels of 96, 128 channels, that is 24, 32 channels per head"),
        (without, {}, "got other shapes for mid_block.attentions.0.to_k.weight"),
        (pooled, {}, "downsamples by convolutions, got no weights for 'input_blocks.3'"),
        (wider, {}, "got 'out_layers.3.weight' besides"),
        (wrong, {}, "got other shapes for time_embedding.linear_1.bias"),
        ({}, {}, "got no 'input_blocks.0.0.weight'|levels are alike"),
        (weights, {"num_heads": 3}, "`num_heads` must divide the 64 channels"),
        (weights, {"noise_schedule": "quadratic"}, "`noise_schedule` must be one of"),
        (weights, {"diffusion_steps": 0}, "`diffusion_steps` must be at least 1"),
        (like_cifar(multipliers=(1, 2), attention_levels=(1,)).weights, {}, "`diffusion_steps` must be given"),
        (weights, {"image_size": 0}, "`image_size` must be at least 1"),
        (weights, {"dropout": math.nan}, r"`dropout` must lie in \[0, 1\)"),
        (weights, {"diffusion_steps": 10, "noise_schedule": "linear"}, "beta"),
        (weights | {"time_embed.0.bias": torch.full((128,), math.nan)}, {}, "`weights` must be finite"),
    ]
    for bad, arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            convert_openai(bad, **arguments)

    class Program:
        def __reduce__(self):
            return open, (str(tmp_path / "taken"), "w")

    (tmp_path / "code.pt").write_bytes(pickle.dumps(Program()))
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "noise.pt").write_bytes(b"\x00" * 100)
    for name, message in (("code", "a file of weights"), ("list", "tensors by name"), ("noise", "weights"), ("no", "weights")):
        assert main(["convert-openai", str(tmp_path / f"{name}.pt"), str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert "`checkpoint` must" in error and message in error and error.count("\n") == 1
    assert not (tmp_path / "taken").exists() and not (tmp_path / "out").exists()
