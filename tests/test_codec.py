r"""Files that hold images to the last bit, at the price of the bound; what is damaged, or another model's, is refused."""

import copy
import io
import json
import os
import random
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import damaged, parts, sealed
from PIL import Image
from tiny import generator, quiet, tiny_unet
from zygote import shared

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler, compress, decompress, files, load_images
from ddpm_vlb.cli import main
from ddpm_vlb.cli.decompress import _write_folder, safe_name
from ddpm_vlb.codec import DamagedFile, codec, read_info
from ddpm_vlb.codec.arguments import check_image_numbers, check_sizes
from ddpm_vlb.codec.chain import BAND, Chain
from ddpm_vlb.codec.container import CodedBlock, Header, frame, write_integer
from ddpm_vlb.codec.rounding import Notes, round_as_noted, round_noting
from ddpm_vlb.codec.stack import Stack

pytest.importorskip("constriction")
ROOT = Path(__file__).parents[1]
SHIPPED = "spaces_demo/checkpoints/ddpm-vlb-digits"


@pytest.fixture(scope="module")
def tiny():
    scheduler = VLBDDPMScheduler(num_train_timesteps=8, beta_end=0.9, num_pixel_levels=17, variance_type="fixed_large")
    return VLBDDPMPipeline(tiny_unet(), scheduler)


@pytest.fixture(scope="module")
def digits():
    return load_images("digits").images


@pytest.fixture(scope="module")
def shipped():
    return VLBDDPMPipeline.from_pretrained(ROOT / SHIPPED)


@pytest.fixture(scope="module")
def written(shipped, digits):
    r"""Two blocks, and what they are of; by a network that is worth its while, unlike a tiny one."""
    data = compress(shipped, digits[:24], block_size=14, num_inference_steps=4)
    assert all(block.num_plain < 5 for _, block in read_info(data)[1])
    return data, digits[:24]


def perturbed(monkeypatch, amount):
    r"""Have the networks of the codec differ by up to so much, in every output."""
    plain = codec.in_float64

    def noisy(network):
        network = plain(network)
        output, noise = network.output, generator(7)

        def differing(*arguments):
            y = output(*arguments)
            return y + amount * (2 * torch.rand(y.shape, generator=noise, dtype=torch.float64) - 1)

        network.output = differing
        return network

    monkeypatch.setattr(codec, "in_float64", noisy)


# The bound is what a file takes.


def test_a_file_of_a_trained_model_takes_what_the_bound_says(shipped, digits):
    file = io.BytesIO()
    images = digits[:60]
    said = compress(shipped, images, num_inference_steps=10, file=file).as_dict()
    assert torch.equal(decompress(shipped, file.getvalue()), images)
    assert said["file_bytes"] == len(file.getvalue())
    assert said["bits_per_dim"] == pytest.approx(8 * len(file.getvalue()) / images.numel())
    assert said["net_bits_per_dim"] == pytest.approx(said["bound"], rel=3e-3)
    # All of the file is explained.
    assert sum(said["overhead"].values()) == pytest.approx(said["bits_per_dim"] - said["bound"], abs=1e-9)
    # The trajectory's log-ratios are the bound that is evaluated elsewhere, of the same model; but for chance.
    out = shipped.evaluate_nll(images, generator=generator(), num_inference_steps=10).bits_per_dim
    assert said["bound"] == pytest.approx(out.mean().item(), rel=0.03)


def test_what_is_pushed_is_popped_and_the_bits_beneath_are_untouched(tiny, digits):
    chain = codec.chain_of(tiny, timesteps=[0, 3, 7])
    words = np.random.default_rng(0).integers(0, 2**32, 500, dtype=np.uint32)
    stack = Stack(words)
    chain.push(stack, digits[:3])
    chain.push(stack, digits[3:5])
    again = Stack(stack.words(), is_sealed=True)
    assert torch.equal(chain.pop(again, (2, 1, 8, 8)), digits[3:5])
    assert torch.equal(chain.pop(again, (3, 1, 8, 8)), digits[:3])
    assert np.array_equal(again.unsealed(), words)


@pytest.mark.parametrize(
    "settings",
    [
        {"variance_type": "fixed_small"},
        {"variance_type": "learned_range", "clip_sample": False},
        {"prediction_type": "sample", "thresholding": True},
        {"prediction_type": "v_prediction", "num_pixel_levels": 256},
        {"num_pixel_levels": 4096},
    ],
)
@pytest.mark.parametrize("steps", [1, 3])
def test_every_kind_of_model_gives_its_images_back(settings, steps):
    scheduler = VLBDDPMScheduler(num_train_timesteps=8, beta_end=0.9, **{"num_pixel_levels": 17} | settings)
    channels = 2 if settings.get("variance_type") == "learned_range" else 1
    pipe = VLBDDPMPipeline(tiny_unet(out_channels=channels), scheduler)
    levels = scheduler.config.num_pixel_levels
    images = torch.randint(0, levels, (6, 1, 8, 8), generator=generator())
    images = images.to(torch.uint8 if levels <= 256 else torch.uint16)
    found = decompress(pipe, compress(pipe, images, num_inference_steps=steps))
    assert torch.equal(found.int(), images.int())


def test_classes_are_coded_and_labels_and_names_are_kept(tiny, digits):
    scheduler = tiny.scheduler
    pipe = VLBDDPMPipeline(tiny_unet(num_class_embeds=3), scheduler)
    classes = [0, 1, 2, 2, 1, 0, 1, 1]
    data = compress(pipe, digits[:8], num_inference_steps=3, class_labels=classes)
    assert torch.equal(decompress(pipe, data), digits[:8]) and read_info(data)[1][0][1].labels == classes
    names = [f"{n}/ü.png" for n in range(8)]
    data = compress(tiny, digits[:8], num_inference_steps=3, labels=classes, names=names, block_size=5)
    blocks = [block for _, block in read_info(data)[1]]
    assert [*blocks[0].labels, *blocks[1].labels] == classes and [*blocks[0].names, *blocks[1].names] == names
    with pytest.raises(ValueError, match="`names` must be one for each of 8 images, got 1"):
        compress(tiny, digits[:8], names=["a"])


def test_what_a_file_cannot_hold_is_refused_before_it_is_written(tiny, digits):
    for options, words in (
        ({"labels": [2**63, 0]}, "lie in"),
        ({"labels": [-1, 0]}, "lie in"),
        ({"labels": [0.5, 0]}, "be integers"),
        ({"names": ["\0" * 1000, "b"]}, "at most 4096 bytes"),
        ({"block_size": 65_537}, None),
    ):
        if words is None:  # as many as there are: a large size harms nobody
            assert torch.equal(decompress(tiny, compress(tiny, digits[:2], num_inference_steps=1, **options)), digits[:2])
            continue
        with pytest.raises(ValueError, match=words):
            compress(tiny, digits[:2], num_inference_steps=1, **options)
    with pytest.raises(ValueError, match="`block_size` must be at most 4 for images of"):
        check_sizes((1, 8192, 8192), 10, 5)
    conditional = VLBDDPMPipeline(tiny_unet(num_class_embeds=3), tiny.scheduler)
    with pytest.raises(ValueError, match="`labels` must be left out"):
        compress(conditional, digits[:2], class_labels=[0, 1], labels=[0, 1])
    # A name that is no text, as Linux allows, is kept.
    names = [os.fsdecode(b"\xff.png"), "b"]
    assert read_info(compress(tiny, digits[:2], num_inference_steps=1, names=names))[1][0][1].names == names


@pytest.mark.parametrize("scale", [1e3, 1e12, 1e200])
def test_a_network_gone_wild_is_exact_or_refused(digits, scale):
    scheduler = VLBDDPMScheduler(num_train_timesteps=8, beta_end=0.9, num_pixel_levels=17, clip_sample=False)
    pipe = VLBDDPMPipeline(tiny_unet(), scheduler)
    with torch.no_grad():
        pipe.unet.conv_out.bias += 1
    chain = codec.chain_of(pipe, 3)
    output = chain.scorer.network.output
    chain.scorer.network.output = lambda *a: scale * output(*a)
    stack = Stack(np.random.default_rng(0).integers(0, 2**32, 500, dtype=np.uint32))
    try:
        chain.push(stack, digits[:2])
    except ValueError as error:
        assert scale > 1e3 and ("`pipe` must predict" in str(error) or "no coder holds" in str(error))
    else:
        assert torch.equal(chain.pop(Stack(stack.words(), True), (2, 1, 8, 8)), digits[:2])


def test_one_image_is_exact_however_long(tiny, digits):
    data = compress(tiny, digits[:1])
    assert torch.equal(decompress(tiny, data), digits[:1]) and len(data) < 200


def test_bad_images_are_refused(tiny, digits):
    for images, words in (
        (digits[:0], "empty"),
        (digits[:2] + 200, "levels below"),
        (digits[:2].repeat(1, 3, 1, 1), "channel"),
    ):
        with pytest.raises(ValueError, match=words):
            compress(tiny, images)


# Parts.


def test_one_image_costs_one_block(shipped, written, monkeypatch):
    data, images = written
    decoded, plain = [], codec.decode_block
    monkeypatch.setattr(codec, "decode_block", lambda *a: decoded.append(a[3]) or plain(*a))
    assert torch.equal(decompress(shipped, data, images=[17]), images[[17]]) and decoded == [1]
    assert torch.equal(decompress(shipped, data, images=slice(12, 16)), images[12:16])
    assert torch.equal(decompress(shipped, io.BytesIO(data), images=[-1, 0]), images[[-1, 0]])
    with pytest.raises(ValueError, match="numbers of the 24 images"):
        decompress(shipped, data, images=[24])


def test_images_are_asked_for_by_any_integers(shipped, written):
    data, images = written
    for numbers in ([3, 3, -24], np.array([3, 3, -24]), torch.tensor([3, 3, -24]), (3, np.int64(3), 0)):
        assert check_image_numbers(numbers, 24) == [3, 3, 0]
    assert torch.equal(decompress(shipped, data, images=np.array([3, 3, -24])), images[[3, 3, 0]])
    assert check_image_numbers(np.int64(5), 24) == check_image_numbers(5, 24) == [5] and check_image_numbers(
        slice(9, 3, -3), 24
    ) == [9, 6]
    # A mask would be read as numbers 0 and 1.
    for numbers in ([True, False], np.ones(24, bool), torch.ones(24, dtype=torch.bool), [1.0], [-25], [], slice(5, 5), "a"):
        with pytest.raises(ValueError, match="`images` must be numbers of the 24 images"):
            decompress(shipped, data, images=numbers)


def test_a_file_that_was_being_written_goes_on(shipped, written, digits):
    data, images = written
    how = {"block_size": 14, "num_inference_steps": 4}
    for length in (0, 9, len(data) * 3 // 4):
        file = io.BytesIO()
        file.write(data[:length])
        compress(shipped, images, file=file, **how)
        assert file.getvalue() == data
    with pytest.raises(ValueError, match="one of other images"):
        compress(shipped, digits[100:124], file=io.BytesIO(data[:-1]), **how)
    with pytest.raises(ValueError, match="one of other labels or names"):
        compress(shipped, images, labels=range(24), file=io.BytesIO(data[:-1]), **how)
    with pytest.raises(ValueError, match="one of blocks of 14 images"):
        compress(shipped, images, file=io.BytesIO(data[:-1]), **how | {"block_size": 7})


# Machines that differ.


@pytest.mark.parametrize("amount", [1e-13, 0.9 * BAND])
def test_outputs_that_differ_by_less_than_the_band_decode(shipped, written, monkeypatch, amount):
    data, images = written
    perturbed(monkeypatch, amount)
    assert torch.equal(decompress(shipped, data), images)


def test_outputs_that_differ_by_far_more_are_refused(shipped, written, monkeypatch):
    perturbed(monkeypatch, 1e-3)
    with pytest.raises(DamagedFile):
        decompress(shipped, written[0])


def test_doubtful_values_are_noted_and_followed(shipped, digits, monkeypatch):
    r"""With a band so wide that there are many: the notes carry the file."""
    wide = 2.0**-18
    plain = codec.chain_of
    monkeypatch.setattr(codec, "chain_of", lambda pipe, *a, **k: plain(pipe, *a[:2], **k | {"band": wide}))
    file = io.BytesIO()
    summary = compress(shipped, digits[:40], num_inference_steps=4, file=file)
    assert summary.account.num_notes > 5
    perturbed(monkeypatch, 0.9 * wide)
    assert torch.equal(decompress(shipped, file.getvalue()), digits[:40])


def test_rounding_by_notes_is_that_of_the_one_who_noted():
    values = np.random.default_rng(0).normal(size=20000)
    unit, band = 2.0**-10, 2.0**-15
    notes = Notes()
    rounded = round_noting(values, unit, band, notes)
    assert 0 < len(notes.places) < 2000
    others = values + band * 0.99 * np.random.default_rng(1).uniform(-1, 1, 20000)
    assert np.array_equal(round_as_noted(others, unit, Notes(notes.places, notes.is_up)), rounded)
    assert not np.array_equal(round_as_noted(others, unit, Notes()), rounded)


@pytest.mark.parametrize("other", ["batches", "threads", "channels last", "no oneDNN"])
def test_another_way_to_compute_decodes(shipped, digits, other, monkeypatch):
    data = compress(shipped, digits[:40], num_inference_steps=3, batch_size=4)
    threads = torch.get_num_threads()
    try:
        if other == "threads":
            torch.set_num_threads(threads + 1)
        if other == "channels last":
            plain = codec.in_float64

            def channels_last(network):
                network = plain(network)
                network.module.to(memory_format=torch.channels_last)
                return network

            monkeypatch.setattr(codec, "in_float64", channels_last)
        with torch.backends.mkldnn.flags(enabled=other != "no oneDNN"):
            assert torch.equal(decompress(shipped, data, batch_size=3 if other == "batches" else 16), digits[:40])
    finally:
        torch.set_num_threads(threads)


def test_the_embedding_of_timesteps_is_float64(shipped):
    r"""diffusers' own is float32, and its sines differ by more than the band from library to library."""
    steps = torch.tensor([0, 17, 999])
    ours = codec.in_float64(shipped.network).module.time_proj(steps)
    assert ours.dtype == torch.float64
    assert torch.allclose(ours.float(), shipped.unet.time_proj(steps), atol=1e-4) and not torch.equal(
        ours, ours.float().double()
    )
    half = ours.shape[1] // 2
    exact = np.cos(999 * np.exp(-np.log(1e4) * np.arange(half) / (half - shipped.unet.config.freq_shift)))
    first = ours[2, :half] if shipped.unet.config.flip_sin_to_cos else ours[2, half:]
    assert np.allclose(first, exact, atol=1e-12)


# Files that are not as they were.


def test_another_model_is_refused(shipped, written):
    data, _ = written
    other = VLBDDPMPipeline(copy.deepcopy(shipped.unet), shipped.scheduler)
    with torch.no_grad():
        next(other.unet.parameters()).view(-1)[0] += 1e-3
    with pytest.raises(ValueError, match="`pipe` must be the model that the file was made with"):
        decompress(other, data)
    clipped = VLBDDPMScheduler.from_config(shipped.scheduler.config, clip_sample=not shipped.scheduler.config.clip_sample)
    with pytest.raises(ValueError, match="another network, scheduler or calibration"):
        decompress(VLBDDPMPipeline(shipped.unet, clipped), data)


def test_a_thousand_damaged_files_are_refused(written):
    r"""The checksums are asked before anything is decoded."""
    data, _ = written
    chance = random.Random(0)
    for _ in range(1000):
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(max(len(damaged), 1))
            how = chance.randrange(4) if damaged else 2
            if how == 0:
                damaged[place] ^= 1 << chance.randrange(8)
            elif how == 1:
                del damaged[place : place + chance.randint(1, 9)]
            elif how == 2:
                damaged[place:place] = chance.randbytes(chance.randint(1, 9))
            else:
                damaged = damaged[: place + 1]
        if bytes(damaged) != data:
            with pytest.raises(DamagedFile):
                read_info(bytes(damaged))


def forged(data, change):
    r"""A file whose first block is another, its checksums right."""
    header, body, *_ = parts(data)
    return sealed(header, change(CodedBlock.parse(body)))


def test_what_was_damaged_before_the_checksums_gives_no_wrong_images(shipped, digits):
    r"""A hostile file has checksums of its own; `tests/benchmarks/codec_damage.py` tries more."""
    images = digits[:12]
    data = compress(shipped, images, num_inference_steps=3)
    assert read_info(data)[1][0][1].runs
    chance, refused = random.Random(0), 0
    for _ in range(8):
        try:
            assert torch.equal(decompress(shipped, damaged(data, chance)), images)
        except ValueError:  # another model's, where the header was damaged
            refused += 1
    assert refused >= 7


def test_a_header_that_claims_other_images_is_refused(shipped, written):
    data, _ = written
    header, *bodies = parts(data)
    told = Header.read(codec.Reader(data))
    for change, words in (
        ({"shape": (1, 8192, 8192)}, "values in a block"),
        ({"shape": (1, 16, 16)}, "the bits of its images"),
        ({"shape": (1, 64, 1)}, "halve the images evenly"),
        ({"has_classes": True}, "one without classes"),
        ({"num_steps": 65_536}, "cannot decode it"),
        ({"inference_timesteps": (0, 5, 7, 999_999)}, "cannot decode it"),
        ({"num_pixel_levels": 16}, "17 levels"),
    ):
        other = replace(told, **change).to_bytes()
        with pytest.raises(ValueError, match=words):
            decompress(shipped, sealed(other, *bodies))
    with pytest.raises(DamagedFile):  # a block in the place of another
        decompress(shipped, sealed(header, bodies[1], bodies[0]))


def test_labels_in_a_part_of_the_blocks_are_refused(written):
    data, _ = written
    header, first, second = parts(data)
    labelled = CodedBlock.parse(first)._replace(labels=[1] * 14).to_bytes()
    with pytest.raises(DamagedFile, match="in all of its blocks or in none"):
        read_info(sealed(header, labelled, second))


def test_huge_sizes_are_refused_at_once(shipped, written):
    data, _ = written
    claims = [
        lambda block: block._replace(num_images=65_536, num_plain=0, runs=[(16, 4096)]).to_bytes(),
        lambda block: block._replace(num_images=60_000, num_plain=60_000, runs=[]).to_bytes(),
        lambda block: block._replace(num_images=65_536, num_plain=0, runs=[(65_536, 1)]).to_bytes(),
        lambda block: block.to_bytes()[:1] + b"\xff" * 12,
    ]
    for claim in claims:
        with pytest.raises(DamagedFile):
            decompress(shipped, forged(data, claim))
    header = Header((65_536, 65_536, 1), 256, bytes(8), 4, 34)
    with pytest.raises(DamagedFile, match="at most"):
        read_info(header.to_bytes())
    bomb = zlib.compress(bytes(10**7))
    with pytest.raises(DamagedFile):
        CodedBlock.parse(b"\x01\x02\x00" + write_integer(len(bomb)) + b"\x00" + bomb + bytes(8))


def test_blocks_in_another_order_are_refused(written):
    data, _ = written
    header, reader, crc = codec.read_header(data)
    bodies = [block.to_bytes() for _, _, block, _ in codec.read_blocks(reader, crc)]
    first, second = (frame(body, crc) for body in reversed(bodies))
    with pytest.raises(DamagedFile, match="checksum in the block 1"):
        read_info(header.to_bytes() + first + second + codec.end(second[-4:]))


def test_the_bytes_of_a_file_are_those_of_the_page(tiny):
    r"""A format that changes has another version, and files of the first are refused as such."""
    images = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8) % 17
    data = compress(tiny, images, num_inference_steps=2)
    assert data[:5] == b"\x89VLB\x02"
    with pytest.raises(DamagedFile, match="must be of version 2 of the format, got 1"):
        read_info(b"\x89VLB\x01" + data[5:])
    # flags, C, H, W, levels - 2, K, band
    assert list(data[5:12]) == [0, 1, 8, 8, 15, 2, 34] and data[12:18] == codec.chain_of(tiny, 2).digest[:6]
    assert data[18:19] == b"B" and data[-5:-4] == b"E"
    # The first checksum is of the header too.
    assert int.from_bytes(data[-9:-5], "little") == zlib.crc32(data[:-9])
    with pytest.raises(DamagedFile, match="another checksum in the block 0, or before it"):
        read_info(data[:10] + b"\x03" + data[11:])
    assert isinstance(codec.chain_of(tiny, 2), Chain)


# Commands.


def test_commands_there_and_back(tmp_path, digits, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = str(ROOT / SHIPPED)
    command = ["compress", checkpoint, "--dataset=digits", "--max-images=20", "--num-inference-steps=3", "--output=d.vlb"]
    assert main(command) == 0
    said, printed = json.loads(Path("d.vlb.json").read_text()), capsys.readouterr().out
    assert said["file_bytes"] == Path("d.vlb").stat().st_size and f"{said['bits_per_dim']:.4f}" in printed
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["d.vlb", "d.vlb.json"]
    assert main(["info", "d.vlb"]) == 0
    assert "20 of 1 x 8 x 8, 17 levels" in capsys.readouterr().out
    assert main(["decompress", checkpoint, "d.vlb", "--output=back.npz"]) == 0
    back = np.load("back.npz")
    assert np.array_equal(back["images"][..., 0], digits[:20, 0]) and len(back["labels"]) == 20
    assert main(["decompress", checkpoint, "d.vlb", "--output=folder"]) == 2
    Path("d.vlb").write_bytes(Path("d.vlb").read_bytes()[:-9])
    capsys.readouterr()
    assert main(["decompress", checkpoint, "d.vlb", "--output=none.npz"]) == 2
    assert "ddpm-vlb decompress: `data` must" in capsys.readouterr().err and not Path("none.npz").exists()


@pytest.mark.parametrize("kept", [0.8, 1.0])
def test_a_killed_command_goes_on(tmp_path, monkeypatch, capsys, kept):
    monkeypatch.chdir(tmp_path)
    options = ["--dataset=digits", "--max-images=12", "--num-inference-steps=2", "--block-size=6"]
    command = ["compress", str(ROOT / SHIPPED), *options, "--output=d.vlb"]
    assert main(command) == 0
    whole = Path("d.vlb").read_bytes()
    Path("d.vlb").unlink()
    Path("d.vlb.journal").write_bytes(whole[: int(kept * len(whole))])
    assert main(command) == 0
    assert Path("d.vlb").read_bytes() == whole and not Path("d.vlb.journal").exists()
    assert json.loads(Path("d.vlb.json").read_text())["file_bytes"] == len(whole)


def test_a_command_that_is_killed_goes_on(tmp_path):
    r"""A real process, a real SIGKILL; what stands is gone on with, to the same bytes."""
    options = ["--dataset=digits", "--max-images=40", "--num-inference-steps=4", "--block-size=5"]
    command = ["-m", "ddpm_vlb", "compress", ROOT / SHIPPED, *options]
    assert shared().run(*command, "--output=whole.vlb", cwd=tmp_path).returncode == 0
    process = shared().start(*command, "--output=cut.vlb", cwd=tmp_path)
    journal = tmp_path / "cut.vlb.journal"
    while process.poll() is None and not (journal.exists() and journal.stat().st_size > 100):
        time.sleep(0.002)
    process.kill()
    process.wait()
    cut = journal.stat().st_size
    assert not (tmp_path / "cut.vlb").exists() and 100 < cut < (tmp_path / "whole.vlb").stat().st_size
    assert shared().run(*command, "--output=cut.vlb", cwd=tmp_path).returncode == 0
    assert (tmp_path / "cut.vlb").read_bytes() == (tmp_path / "whole.vlb").read_bytes() and not journal.exists()


def test_a_full_disk_and_a_second_command_lose_nothing(tmp_path, small_disk, capsys, monkeypatch):
    disk = small_disk("12k")  # three pages, two of them for the locks
    (disk / "full").write_bytes(b"x" * 4096)
    options = ["--dataset=digits", "--max-images=6", "--num-inference-steps=2", f"--output={disk / 'd.vlb'}"]
    command = ["compress", str(ROOT / SHIPPED), *options]
    assert main(command) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on device: " in line and "d.vlb.journal" in line and not (disk / "d.vlb").exists()
    # Not even room for the lock.
    (disk / "full").write_bytes(b"x" * 12288)
    assert main(command) == 2 and "No space left on device: " in capsys.readouterr().err
    assert main(command[:-1] + [f"--output={tmp_path / 'd.vlb'}"]) == 0
    before = (tmp_path / "d.vlb").read_bytes()
    monkeypatch.setattr(files, "SECONDS_BETWEEN_TRIES", 0.001)
    with files.locked(tmp_path / "d.vlb"):
        assert main(command[:-1] + [f"--output={tmp_path / 'd.vlb'}", "--max-images=3"]) == 2
    assert "must be written by one process at a time" in capsys.readouterr().err
    # Nor does what is refused: no journal is left, and the file is as it was.
    assert main(command[:-1] + [f"--output={tmp_path / 'd.vlb'}", "--num-inference-steps=2000"]) == 2
    assert (tmp_path / "d.vlb").read_bytes() == before and not list(tmp_path.glob("*.journal"))


def test_half_precision_is_another_model_that_is_coded_exactly(shipped, digits, written):
    rounded = quiet(VLBDDPMPipeline.from_pretrained(ROOT / SHIPPED, dtype=torch.bfloat16))
    data = compress(rounded, digits[:6], num_inference_steps=2)
    assert torch.equal(decompress(rounded, data), digits[:6])
    with pytest.raises(ValueError, match="another network, scheduler or calibration"):
        decompress(shipped, data)


def test_a_stream_is_read_once(shipped, written):
    data, images = written
    read, write = os.pipe()
    with open(write, "wb") as end:
        end.write(data)
    with open(read, "rb") as stream:
        assert torch.equal(decompress(shipped, stream, images=[17]), images[[17]])


def test_pictures_keep_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scheduler = VLBDDPMScheduler(num_train_timesteps=4, beta_end=0.9)
    VLBDDPMPipeline(tiny_unet(), scheduler).save_pretrained("model")
    Path("in").mkdir()
    for name in ("b", "a"):
        Image.fromarray(np.full((8, 8), ord(name), np.uint8)).save(f"in/{name}.png")
    assert main(["compress", "model", "--dataset=in", "--output=p.vlb"]) == 0
    assert main(["decompress", "model", "p.vlb", "--output=out"]) == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.png", "b.png"]
    assert np.asarray(Image.open("out/a.png")).tolist() == [[97] * 8] * 8


def test_pictures_whose_names_lead_to_one_place_are_all_kept(tmp_path, tiny):
    pictures = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 1, 8, 8)
    block = CodedBlock(4, 4, False, [], None, ["a", "a.png", "./a.png", "../a"], b"", b"")
    _write_folder([(0, pictures, block)], tmp_path / "out")
    found = {path.name: int(np.asarray(Image.open(path))[0, 0]) for path in (tmp_path / "out").iterdir()}
    assert found == {"a.png": 0, "a-00000001.png": 1, "a-00000002.png": 2, "00000003.png": 3}


@pytest.mark.parametrize("name", ["../a.png", "/etc/passwd", "c:\\x", "a/../../b", "", "..\\..\\x"])
def test_names_lead_nowhere_else(name):
    assert safe_name(name, 3) == Path("00000003.png")
