import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from tiny import generator, quiet, tiny_unet

from ddpm_vlb import FunctionModel, VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.calibration import calibrate
from ddpm_vlb.cli import main
from ddpm_vlb.evaluation import compare, evaluate
from ddpm_vlb.likelihoods.importance_weighted import importance_weighted_nll
from ddpm_vlb.likelihoods.rate_distortion import rate_distortion
from ddpm_vlb.model.network import Network

UNET = tiny_unet()


def pipe_with_room(most, error=torch.OutOfMemoryError, sizes=None):
    """A network that has memory for so many images, and tells how many it was asked about."""

    def function(x, t):
        if sizes is not None:
            sizes.append(len(x))
        if len(x) > most:
            raise error(f"CUDA out of memory. Tried to allocate {len(x)} MiB. GPU 0 has a total capacity of {most} MiB.")
        return UNET(x, t).sample

    model = FunctionModel(function, (1, 8, 8))
    return quiet(VLBDDPMPipeline(model, VLBDDPMScheduler(num_train_timesteps=20, num_pixel_levels=17)))


SCORES = {
    "full": lambda pipe, x, size: pipe.evaluate_nll(x, size, generator()).bits_per_dim,
    "sampled": lambda pipe, x, size: pipe.evaluate_nll(x, size, generator(), method="sampled").bits_per_dim,
    "iw": lambda pipe, x, size: importance_weighted_nll(pipe, x, k=4, batch_size=size).bits_per_dim,
    "rate_distortion": lambda pipe, x, size: rate_distortion(pipe, x, batch_size=size).rate,
    "calibrate": lambda pipe, x, size: torch.as_tensor(
        calibrate(pipe, x, num_timesteps=2, evaluations=32, batch_size=size, quiet=True).decoder_costs
    ),
    "evaluate": lambda pipe, x, size: torch.tensor(
        evaluate(pipe, x, batch_size=size, max_evaluations=400, quiet=True)["bits_per_dim"]
    ),
}


@pytest.fixture
def many(images):
    return images.repeat(8, 1, 1, 1)


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_batches_are_halved_until_they_fit_and_the_numbers_are_the_same(score, many):
    sizes = []
    expected = score(pipe_with_room(1000), many, 40)
    got = score(pipe_with_room(9, sizes=sizes), many, "auto")
    # float32 networks differ in the last place between batch shapes: 1e-7 of terms of up to 300 bits/dim.
    assert torch.allclose(got, expected, rtol=1e-4, atol=2e-5)
    refused = [size for size in sizes if size > 9]
    # What was found is kept: no larger batch is tried again.
    assert refused and max(sizes[len(refused) :]) <= 9 and refused == sorted(refused, reverse=True)
    assert len(refused) == len(set(refused))


def test_two_networks_have_each_its_own_room(many):
    rules = {"num_inference_steps": (20, 5), "max_evaluations": 200, "quiet": True}
    got, expected = (
        compare([pipe_with_room(most), pipe_with_room(1000)], many, batch_size=size, **rules)["difference"]
        for most, size in ((9, "auto"), (1000, 40))
    )
    assert got == pytest.approx(expected, rel=1e-4)


def test_halving_is_said_and_reports_hold_where_it_began(many, caplog):
    report = evaluate(pipe_with_room(9), many, method="full", batch_size="auto", quiet=True)
    assert report["config"]["batch_size"] == 64
    assert caplog.messages == [
        f"{size} images do not fit into the memory of cpu: going on with batches of {size // 2}." for size in (40, 20, 10)
    ]


def test_halves_of_a_compiled_network_are_of_few_sizes():
    sizes = []

    class Counting(Network):
        def answer(self, noisy_samples, timesteps, class_labels):
            if len(noisy_samples) > 12:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            sizes.append(len(noisy_samples))
            return noisy_samples + timesteps.reshape(-1, *[1] * (3 * timesteps.ndim))

    network = Counting(torch.compile(torch.nn.Linear(1, 1)))
    network.halves = True
    for size in (40, 23, 20, 19, 11, 9, 6, 5, 3, 2, 1):
        x, t = torch.arange(size).float().reshape(-1, 1, 1, 1), torch.arange(size) % 7
        assert torch.equal(network(x, t), x + t.reshape(x.shape)) and torch.equal(network(x, 5), x + 5)
    assert network.most == 10 and set(sizes) == {10, 8, 4, 2, 1}


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_what_does_not_fit_is_refused(error, many):
    with pytest.raises(ValueError, match="`batch_size` cannot be less than one image, and one does not fit into the memory of"):
        pipe_with_room(0, error).evaluate_nll(many, "auto")
    match = "`batch_size` must be of images that fit into the memory of cpu, got 32: CUDA out of memory. Give less, or 'auto'."
    with pytest.raises(ValueError, match=match):
        pipe_with_room(9, error).evaluate_nll(many, 32)
    # Another error of the network is its own, and no batch is a string of another kind.
    with pytest.raises(KeyError, match="out of memory"):
        pipe_with_room(9, KeyError).evaluate_nll(many, "auto")
    for bad in ("all", "8", 0, None):
        with pytest.raises(ValueError, match=r"`batch_size` must be a positive integer"):
            pipe_with_room(9).evaluate_nll(many, bad)


def test_allocations_that_a_cpu_cannot_make_count_too(many):
    def too_large(x, t):
        return x + torch.empty(2**48, len(x), device="cpu")[0, 0]

    pipe = quiet(VLBDDPMPipeline(FunctionModel(too_large, (1, 8, 8)), VLBDDPMScheduler(20, num_pixel_levels=17)))
    with pytest.raises(ValueError, match="one does not fit into the memory of cpu: .*allocate"):
        pipe.evaluate_nll(many, "auto")


def test_the_command_takes_auto(pipe, tmp_path, capsys):
    pipe.save_pretrained(tmp_path / "pipeline")
    command = ["evaluate", str(tmp_path / "pipeline"), "--dataset", "digits", "--max-images", "20", "--max-evaluations", "400"]
    assert main([*command, "--batch-size", "auto", "--output", str(tmp_path / "report.json")]) == 0
    for bad in ("0", "-3"):
        assert main([*command, "--batch-size", bad, "--output", str(tmp_path / "other.json")]) == 2
    assert "`batch_size` must be a positive integer" in capsys.readouterr().err


# Weights that are elsewhere, or in several places.


def tiny_pipe(unet):
    return quiet(VLBDDPMPipeline(unet, VLBDDPMScheduler(num_train_timesteps=20, num_pixel_levels=17)))


def by_group(unet, folder):
    cpu = torch.device("cpu")
    unet.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    return tiny_pipe(unet)


def by_model(unet, folder):
    pipe = tiny_pipe(unet)
    pipe.enable_model_cpu_offload(device="cpu")
    return pipe


def in_two_places(unet, folder):
    places = {name: "disk" if name == "mid_block" else "cpu" for name, _ in unet.named_children()}
    return tiny_pipe(dispatch_model(unet, places, main_device="cpu", offload_dir=str(folder)))


OFFLOADS = {
    "group": by_group,
    "model": by_model,
    "accelerate": lambda unet, folder: tiny_pipe(cpu_offload(unet, torch.device("cpu"))),
    "disk": lambda unet, folder: tiny_pipe(disk_offload(unet, str(folder), torch.device("cpu"))),
    "split": in_two_places,
}


@pytest.mark.parametrize("offload", OFFLOADS.values(), ids=OFFLOADS)
def test_networks_whose_weights_come_when_they_are_needed(offload, images, tmp_path):
    pipe = offload(tiny_unet(), tmp_path)
    expected = tiny_pipe(tiny_unet()).evaluate_nll(images, generator=generator())
    for _ in range(2):  # before and after the hooks have been at rest
        assert torch.equal(pipe.evaluate_nll(images, generator=generator()).bits_per_dim, expected.bits_per_dim)
    assert pipe(num_inference_steps=2, output_type="pt").images.shape == (1, 1, 8, 8)


@pytest.mark.parametrize("offload", OFFLOADS.values(), ids=OFFLOADS)
def test_what_half_precision_moves_is_told_of_them_too_or_refused(offload, images, tmp_path):
    options = {"max_evaluations": 200, "quiet": True}
    expected = evaluate(tiny_pipe(tiny_unet().bfloat16()), images, **options)["half_precision_bias"]
    pipe = offload(tiny_unet().bfloat16(), tmp_path)
    if not any(weight.is_meta for weight in pipe.unet.parameters()):
        assert evaluate(pipe, images, **options)["half_precision_bias"] == expected
        return
    # A copy would take the weights from where they are, in half precision again.
    with pytest.raises(ValueError, match="`unet` must have its weights at hand for a copy of it in float32, got"):
        evaluate(pipe, images, **options)
    report = evaluate(pipe, images, float32_unet=tiny_unet().bfloat16().float(), **options)
    assert report["half_precision_bias"]["bits_per_dim"] == expected["bits_per_dim"]


def test_a_network_in_two_places_is_refused(images):
    unet = tiny_unet()
    unet.up_blocks.to("meta")
    with pytest.raises(ValueError, match="`unet` must have its weights on one device, or hooks that .*, got cpu, meta"):
        tiny_pipe(unet).evaluate_nll(images)
