import gzip
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile
from tiny import tiny_unet
from vlb_demo import uploads
from zygote import shared

from ddpm_vlb.data import StoredImages, Transform, images_to_levels, load_images, open_images, quantize, stream_images
from ddpm_vlb.data.frame import read_images
from ddpm_vlb.data.image_sets import quantize_images
from ddpm_vlb.data.sources import source_of
from ddpm_vlb.model.kinds import network_of
from ddpm_vlb.pixel_grid import levels_to_samples

ROOT = Path(__file__).parents[1]


def write_idx(path, array, opener=open):
    with opener(path, "wb") as file:
        file.write(bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())


GREY = np.arange(5 * 8 * 8, dtype=np.int64).reshape(5, 8, 8).astype(np.uint8)


def test_digits():
    train, test = load_images("digits", "train"), load_images("digits")
    assert train.images.shape == (1437, 1, 8, 8) and test.images.shape == (360, 1, 8, 8) and test.split == "test"
    assert train.num_pixel_levels == 17 and int(train.images.max()) == 16 and len(test.labels) == 360
    assert len(load_images("digits", max_images=7)) == 7 == len(load_images("digits", max_images=7).labels)
    with pytest.raises(ValueError, match="`split` must be 'train' or 'test' for the digits, got 'valid'"):
        load_images("digits", "valid")


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files(tmp_path, zipped):
    path = tmp_path / ("images-idx3-ubyte" + ".gz" * zipped)
    write_idx(path, GREY, gzip.open if zipped else open)
    loaded = load_images(path)
    assert np.array_equal(loaded.images[:, 0].numpy(), GREY) and loaded.num_pixel_levels == 256 and loaded.labels is None
    # The labels of MNIST lie beside its images, packed or not.
    write_idx(tmp_path / "labels-idx1-ubyte", np.array([3, 1, 4, 1, 5], dtype=np.uint8))
    assert load_images(path).labels.tolist() == [3, 1, 4, 1, 5] and load_images(path, max_images=2).labels.tolist() == [3, 1]
    write_idx(tmp_path / "labels-idx1-ubyte", np.array([3, 1], dtype=np.uint8))
    with pytest.raises(ValueError, match="`dataset` must have one label per image, got 2 in .*labels-idx1-ubyte.* for the 5"):
        load_images(path)
    write_idx(tmp_path / "labels-idx1-ubyte", GREY)
    with pytest.raises(ValueError, match=r"got the file .*labels-idx1-ubyte' that starts with b'.x00.x00.x08.x03'"):
        load_images(path)


def test_npz_files(tmp_path):
    colour = np.stack([GREY] * 3, axis=-1)
    np.savez(tmp_path / "a.npz", images=colour, labels=np.arange(5), index=np.arange(5))
    loaded = load_images(tmp_path / "a.npz")
    assert np.array_equal(loaded.images.permute(0, 2, 3, 1).numpy(), colour) and loaded.labels.tolist() == list(range(5))
    np.savez(tmp_path / "b.npz", GREY)
    assert load_images(tmp_path / "b.npz", max_images=2).images.shape == (2, 1, 8, 8)


def test_folders(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
    for i, array in enumerate(GREY):
        Image.fromarray(array).save(tmp_path / ("test" if i < 3 else "train") / f"{i}.png")
    # The test part where there are parts and none is named; training asks for its own.
    assert np.array_equal(load_images(tmp_path).images[:, 0].numpy(), GREY[:3])
    assert len(open_images(tmp_path, default_split="train")) == 2 and len(load_images(tmp_path / "test")) == 3
    # Without such parts, all images below the folder, sorted by path: test, then train.
    assert np.array_equal(open_images(tmp_path, default_split="nope").load().images[:, 0].numpy(), GREY)
    assert len(load_images(tmp_path, "train")) == 2 and len(load_images(tmp_path, max_images=2)) == 2
    with pytest.raises(ValueError, match="`split` must name a sub-folder"):
        load_images(tmp_path, "valid")
    assert open_images(tmp_path, default_split="nope").labels is None


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["3/a.png", "10/b.png", "10/c.png"], [10, 10, 3]),
        (["7/a.png"], [7]),
        # Words would stand for other classes in a folder without one of them.
        (["cat/a.png", "cat/b.png", "dog/a.png"], None),
        (["3/a.png", "dog/a.png"], None),
        (["03/a.png", "3/b.png"], None),
        (["a.png", "3/b.png"], None),
        (["x/3/a.png", "x/4/b.png"], None),
        (["train/a.png", "test/b.png"], None),
    ],
)
def test_sub_folders_are_classes(tmp_path, names, labels):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(GREY[0]).save(tmp_path / name)
    opened = open_images(tmp_path, default_split="nope")
    assert opened.names == sorted(names) and opened.labels == labels
    if labels:
        assert load_images(tmp_path, max_images=1).labels.tolist() == labels[:1]
        # Brought onto another grid, they have theirs still.
        assert quantize_images(opened, 17).labels == labels


def test_data_sets_of_the_datasets_library(tmp_path):
    from datasets import Dataset
    from datasets import Image as ImageFeature

    rows = Dataset.from_dict({"image": [Image.fromarray(a) for a in GREY], "label": [4, 3, 2, 1, 0]})
    rows.cast_column("image", ImageFeature()).to_parquet(tmp_path / "test-0.parquet")
    loaded = load_images(tmp_path, "test")
    assert np.array_equal(loaded.images[:, 0].numpy(), GREY) and loaded.labels.tolist() == [4, 3, 2, 1, 0]
    assert open_images(tmp_path, "test").names is None
    with pytest.raises(ValueError, match="with the split 'train'"):
        load_images(tmp_path, "train")
    for number, array in enumerate(GREY):
        Image.fromarray(array).save(tmp_path / f"{number}.png")
    files = Dataset.from_dict({"image": [str(tmp_path / f"{number}.png") for number in range(5)]})
    (tmp_path / "named").mkdir()
    files.cast_column("image", ImageFeature()).to_parquet(tmp_path / "named" / "test-0.parquet")
    assert open_images(tmp_path / "named", "test").names == [f"{number}.png" for number in range(5)]


def png_of_16_bit_colour(pixels):
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def bad_sources(folder):
    def file(name, content):
        (folder / name).write_bytes(content)
        return folder / name

    def images(name, *pictures):
        (folder / name).mkdir()
        for i, picture in enumerate(pictures):
            picture.save(folder / name / f"{i}.png")
        return folder / name

    write_idx(folder / "whole", GREY)
    whole = (folder / "whole").read_bytes()
    np.savez(folder / "two.npz", a=GREY, b=GREY)
    np.savez(folder / "float.npz", images=GREY.astype(float))
    np.savez(folder / "object.npz", images=np.array([object()]))
    np.savez(folder / "none.npz", images=GREY[:0])
    broken = images("broken", Image.fromarray(GREY[0]))
    (broken / "0.png").write_bytes((broken / "0.png").read_bytes()[:50])
    png16, pgm, clear = folder / "png16", folder / "pgm", folder / "clear"
    for path in (png16, pgm, clear):
        path.mkdir()
    (png16 / "a.png").write_bytes(png_of_16_bit_colour(np.full((2, 2, 3), 55746)))
    (pgm / "a.pgm").write_bytes(b"P5 2 2 15\n" + bytes(4))
    Image.new("L", (8, 8)).save(clear / "a.png", transparency=0)
    np.savez(folder / "labels.npz", images=GREY, labels=np.arange(4))
    animated = folder / "animated"
    animated.mkdir()
    frames = [Image.fromarray(a) for a in GREY]
    frames[0].save(animated / "a.gif", save_all=True, append_images=frames[1:])
    yield "idx cut off", file("cut", whole[:-1]), "whole idx file"
    yield "idx header cut off", file("head", whole[:9]), "whole idx file"
    yield "idx of floats", file("floats", b"\x00\x00\x0d" + whole[3:]), "idx file of uint8 images"
    yield "gzip cut off", file("cut.gz", gzip.compress(whole)[:-20]), "idx file|gzip file"
    yield "not gzip", file("not.gz", b"hello"), "readable idx file"
    yield "empty file", file("empty", b""), "'digits', a folder"
    yield "not npz", file("not.npz", b"hello"), "readable npz file"
    yield "two arrays", folder / "two.npz", "array `images`"
    yield "npz of floats", folder / "float.npz", "uint8 or uint16 images, got dtype float64"
    yield "npz of objects", folder / "object.npz", "readable npz file"
    yield "npz without images", folder / "none.npz", "at least one image"
    yield "no images in the folder", images("nothing"), "folder with images"
    yield "two sizes", images("sizes", Image.new("L", (8, 8)), Image.new("L", (8, 9))), "images of one size and type"
    yield "RGBA", images("rgba", Image.new("RGBA", (8, 8))), "got mode RGBA"
    yield "16-bit colour", png16, "rescale to 8 bits"
    yield "PGM of 16 levels", pgm, "rescale to 8 bits"
    yield "transparent colour", clear, "got transparency"
    yield "labels of another length", folder / "labels.npz", "one integer label per image"
    yield "truncated image", broken, "readable images"
    yield "animation", animated, "still images, got 5 frames"
    yield "missing file", folder / "missing.npz", "file or folder that exists"
    yield "missing data set", "no-such-name/no-such-data-set", "a Hub data set"


@pytest.mark.parametrize("case", range(22))
def test_bad_sources(tmp_path, case):
    cases = list(bad_sources(tmp_path))
    assert len(cases) == 22
    _, source, message = cases[case]
    with pytest.raises(ValueError, match=message):
        load_images(source)


def test_arguments():
    with pytest.raises(ValueError, match="`max_images` must be at least 1, got 0"):
        load_images("digits", max_images=0)


def test_a_single_file_has_no_split(tmp_path):
    write_idx(tmp_path / "a", GREY)
    with pytest.raises(ValueError, match="`split` must be left out"):
        load_images(tmp_path / "a", "test")


@given(st.integers(2, 65536), st.integers(2, 65536))
def test_quantize_goes_to_the_nearest_level(source_levels, num_pixel_levels):
    levels = torch.unique(torch.linspace(0, source_levels - 1, 50).round().to(torch.int32))
    got = quantize(levels, num_pixel_levels, source_levels=source_levels).to(torch.int32)
    values = levels_to_samples(levels, source_levels)
    error = (levels_to_samples(got, num_pixel_levels) - values).abs().max().item()
    assert error <= 1 / (num_pixel_levels - 1) + 1e-12


def test_quantize_is_idempotent_and_feeds_the_grid_check():
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    levels = quantize(images, 17)
    assert torch.equal(images_to_levels(levels, 17), levels)
    assert torch.equal(quantize(levels, 17, source_levels=17), levels)
    assert torch.equal(quantize(torch.tensor([0, 255], dtype=torch.uint8), 17), torch.tensor([0, 16], dtype=torch.uint8))
    for bad in (images * 3, images * float("nan")):
        with pytest.raises(ValueError, match=r"`images` must lie in \[-1, 1\]"):
            quantize(bad, 17)


def write_folder(path, images):
    path.mkdir(parents=True)
    for index, image in enumerate(images):
        Image.fromarray(image).save(path / f"{index:03d}.png")


def test_images_stay_on_the_disk_until_they_are_asked_for(tmp_path):
    write_folder(tmp_path / "train", GREY)
    (tmp_path / "train" / "003.png").write_bytes(b"damaged")
    stored = open_images(tmp_path, "train")
    assert isinstance(stored, StoredImages) and len(stored) == 5 and stored.num_pixel_levels == 256
    assert np.array_equal(stored[4][0].numpy(), GREY[4]) and stored[4].shape == (1, 8, 8)
    with pytest.raises(ValueError, match="`dataset` must hold readable images, got .*003.png"):
        stored[3]
    Image.fromarray(GREY[0][:4]).save(tmp_path / "train" / "003.png")
    with pytest.raises(ValueError, match="of one size and type: .*000.png' is \\(8, 8\\) uint8, .*003.png' is \\(4, 8\\)"):
        stored[3]
    assert torch.equal(open_images("digits", "train")[7], load_images("digits", "train").images[7])


def test_streams(tmp_path):
    write_folder(tmp_path / "train", GREY)
    stream = stream_images(tmp_path, "train", buffer_size=3)
    assert stream.num_pixel_levels == 256 and np.array_equal(stream[0][0].numpy(), GREY[0])

    def order(seed, source=stream):
        return [int(decode()[0, 0, 0]) for decode in source.epoch(seed)]

    assert sorted(order(0)) == sorted(GREY[:, 0, 0].tolist()) and order(0) == order(0)
    assert len({tuple(order(seed)) for seed in range(8)}) > 1
    rest, first = stream.split_off(2)
    assert np.array_equal(first[:, 0].numpy(), GREY[:2]) and sorted(order(0, rest)) == sorted(GREY[2:, 0, 0].tolist())
    with pytest.raises(ValueError, match="`index` must be 0 for a stream"):
        stream[1]
    with pytest.raises(ValueError, match="`dataset` must hold at least one image, got none"):
        stream.split_off(5)
    with pytest.raises(ValueError, match="`dataset` must be a folder or a data set of the Hub to be streamed, got 'digits'"):
        stream_images("digits")
    with pytest.raises(ValueError, match="`split` must name a sub-folder of the data set, got 'nope'"):
        stream_images(tmp_path, "nope")


def mixed_folder(folder):
    r"""Pictures that readers could differ in: turned by their EXIF, hidden, in folders that sort in two ways. The pixels that
    count, in order."""
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter to the right
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    names = ("Z.png", "a-b/x.jpg", "a/x.png", "b.webp")  # as datasets sorts them: by the whole path
    hidden = ("._Z.png", ".ipynb_checkpoints/Z-checkpoint.png", "__MACOSX/Z.png", "a/.hidden.png")
    for index, name in enumerate((*names, *hidden)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        lossless = {"quality": 100, "subsampling": 0} if name.endswith(".jpg") else {"lossless": True}
        Image.fromarray(pixels[index % 4]).save(folder / name, exif=turned, **lossless)
    (folder / "notes.txt").write_text("no image")
    return [np.rot90(np.asarray(Image.open(folder / name)), -1) for name in names]


def sha256_of(images):
    return read_images(source_of(images, network_of(tiny_unet(3)), 256).blocks(3), None, 0, 10**6).sha256


def test_all_readers_find_the_same_images_in_a_folder(tmp_path):
    import datasets

    expected = mixed_folder(tmp_path / "pictures")
    stored = open_images(tmp_path / "pictures")
    assert np.array_equal(stored.load().images.permute(0, 2, 3, 1), expected)
    loaded = datasets.load_dataset("imagefolder", data_dir=tmp_path / "pictures", split="train", cache_dir=tmp_path / "cache")
    loaded = loaded.remove_columns([name for name in loaded.column_names if name != "image"])
    loaded.to_parquet(tmp_path / "rows" / "train.parquet")
    readers = {
        "a folder": stored,
        "a folder, as its one part": open_images(tmp_path / "pictures", "train"),
        "in memory": load_images(tmp_path / "pictures"),
        "a folder as a stream": stream_images(tmp_path / "pictures"),
        "datasets": loaded,
        "datasets, decoded": [row["image"] for row in loaded],
        "datasets, as a stream": loaded.to_iterable_dataset(),
        "parquet files": open_images(tmp_path / "rows", "train"),
        "parquet files as a stream": stream_images(tmp_path / "rows"),
        "the demo": [uploads.open_picture(path) for path in stored._rows],
        "Pillow": [Image.open(stored._rows[index]) for index in range(len(stored))],
    }
    assert {name: sha256_of(images) for name, images in readers.items()} == dict.fromkeys(
        readers, sha256_of(np.stack(expected))
    )


def test_a_folder_of_mixed_pictures_is_brought_to_one_size_and_colour(tmp_path):
    for index, (mode, size) in enumerate([("RGB", (20, 30)), ("L", (25, 12)), ("P", (9, 9)), ("1", (8, 40))]):
        Image.fromarray(GREY[index]).resize(size).convert(mode).save(tmp_path / f"{index}.png")
    with pytest.raises(ValueError, match="`dataset` must hold images of one size and type|got mode"):
        load_images(tmp_path)
    steps = Transform("RGB", 8, 8)
    stored, stream = open_images(tmp_path, transform=steps), stream_images(tmp_path, transform=steps)
    expected = [np.asarray(steps(Image.open(tmp_path / f"{index}.png"))) for index in range(4)]
    assert np.array_equal(stored.load().images.permute(0, 2, 3, 1), expected)
    assert sha256_of(stored) == sha256_of(stream) == sha256_of(np.stack(expected))
    assert stored.settings == stream.settings == stored.load().settings == steps.settings
    np.savez(tmp_path / "grey.npz", images=GREY)
    small = load_images(tmp_path / "grey.npz", transform=Transform(center_crop=4))
    assert np.array_equal(small.images[:, 0], GREY[:, 2:6, 2:6]) and small.settings == {"center_crop": 4}
    with pytest.raises(ValueError, match="`resize` must be left out for images that are not 8-bit grey or RGB, got 17 levels"):
        load_images("digits", transform=Transform(resize=4))


def test_parts_of_a_folder_are_never_taken_for_one_another(tmp_path):
    write_folder(tmp_path / "test", GREY)
    for read in (open_images, stream_images):
        with pytest.raises(ValueError, match="`split` must name a sub-folder of the data set, got 'train'"):
            read(tmp_path, "train")


def starts_ghostscript(folder, monkeypatch):
    r"""A file that is there once something has been started under Ghostscript's name."""
    started = folder / "started"
    (folder / "gs").write_text(f"#!/bin/sh\ntouch {started}\n")
    (folder / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    return started


def test_no_reader_starts_another_program(tmp_path, monkeypatch):
    import datasets

    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    started = starts_ghostscript(tmp_path, monkeypatch)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "b.png").write_bytes(eps)
    features = datasets.Features({"image": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": [{"bytes": eps, "path": None}]}, features=features)
    rows.to_parquet(tmp_path / "rows" / "test.parquet")
    for read in (
        lambda: open_images(tmp_path / "pictures"),
        lambda: open_images(tmp_path / "pictures" / "b.png"),
        lambda: stream_images(tmp_path / "pictures"),
        lambda: open_images(tmp_path / "rows"),
        lambda: stream_images(tmp_path / "rows", "test"),
        lambda: images_to_levels(rows),
    ):
        with pytest.raises(ValueError, match="`dataset` must hold readable images, got .*: cannot identify image file"):
            read()
    assert not started.exists()
    with pytest.raises(OSError):
        Image.open(tmp_path / "pictures" / "b.png").load()
    assert started.exists()  # what is watched for does happen


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    (tmp_path / "pictures" / "folder.png").mkdir(parents=True)  # is not taken for an image
    Image.fromarray(GREY[0]).save(tmp_path / "pictures" / "a.png")
    assert len(open_images(tmp_path / "pictures")) == 1
    os.mkfifo(tmp_path / "pictures" / "b.png")
    stored = open_images(tmp_path / "pictures")
    with pytest.raises(ValueError, match="`dataset` must hold regular files, got .*b.png"):
        stored[1]
    (tmp_path / "pictures" / "a.png").unlink()
    for read in (open_images, stream_images):
        with pytest.raises(ValueError, match="`dataset` must hold regular files"):
            read(tmp_path / "pictures")
    with pytest.raises(ValueError, match="`dataset` must be a file or folder that exists"):
        open_images(tmp_path / "pictures" / "b.png")


def test_no_more_is_unpacked_than_a_header_says(tmp_path, monkeypatch):
    header = bytes([0, 0, 8, 3]) + struct.pack(">3I", 5, 8, 8)
    zeros = gzip.compress(bytes(2**26), 1)
    for name, content, message in [
        ("more", gzip.compress(header) + zeros, r"whole idx file, got another number of bytes for shape \(5, 8, 8\)"),
        ("none", zeros, "an idx file of uint8 images, or a Hub data set"),
        (
            "large",
            gzip.compress(header[:4] + struct.pack(">3I", 10**6, 100, 100)) + zeros,
            "unpacks to at most 4294967296 bytes",
        ),
        ("lie", gzip.compress(header[:4] + struct.pack(">3I", 10**5, 100, 100)), "whole idx file"),
    ]:
        (tmp_path / f"{name}.gz").write_bytes(content)
        tracemalloc.start()
        with pytest.raises(ValueError, match=message):
            open_images(tmp_path / f"{name}.gz")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**23, name
    np.savez_compressed(tmp_path / "many.npz", images=np.zeros((2**10, 32, 32), np.uint8))
    monkeypatch.setattr("ddpm_vlb.data.readers.MAX_UNPACKED_BYTES", 2**19)
    with pytest.raises(ValueError, match="unpacks to at most 524288 bytes, got 1048704 .* Unpack it first."):
        open_images(tmp_path / "many.npz")
    np.savez(tmp_path / "many.npz", images=np.zeros((2**10, 32, 32), np.uint8))
    assert len(open_images(tmp_path / "many.npz")) == 2**10


def test_pictures_are_measured_before_they_are_decoded(tmp_path, monkeypatch):
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 12_000, 12_000, 8, 0, 0, 0, 0))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # Pillow's own limit, which anyone may set
    monkeypatch.setattr(Image.Image, "load", None)
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    with pytest.raises(
        ValueError, match="`dataset` must hold pictures of at most 67108864 pixels, got 12000 x 12000 in .*a.png"
    ):
        open_images(tmp_path)


def test_columns_of_a_data_set(tmp_path):
    import datasets

    def write(name, labels, kind):
        features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image(), "label": kind, "breed": kind})
        images = [Image.fromarray(a) for a in GREY]
        rows = {"image": images, "mask": images[::-1], "label": labels, "breed": labels[::-1]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / name / "test.parquet")
        return tmp_path / name

    counted = write("counted", [0, 1, 2, 3, 4], datasets.ClassLabel(5))
    masks = load_images(counted, image_column="mask", label_column="breed")
    assert np.array_equal(masks.images[:, 0], GREY[::-1]) and masks.labels.tolist() == [4, 3, 2, 1, 0]
    assert masks.settings == {"image_column": "mask", "label_column": "breed"}
    assert load_images(counted, image_column="image").labels.tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(stream_images(counted, "test", image_column="mask")[0][0], GREY[-1])
    words, gaps = (
        write("words", [*"abcde"], datasets.Value("string")),
        write("gaps", [0, None, 2, 3, 4], datasets.Value("int64")),
    )
    assert open_images(words, image_column="image").labels is None and open_images(gaps, image_column="image").labels is None
    for source, columns, message in [
        (counted, {}, "`images` must have one image column, got .* with images in \\['image', 'mask'\\]"),
        (counted, {"image_column": "label"}, "`image_column` must be a column of images, got 'label'"),
        (
            counted,
            {"image_column": "image", "label_column": "kind"},
            "`label_column` must be a column of integers, got 'kind' for",
        ),
        (words, {"image_column": "image", "label_column": "label"}, "of integers, got 'label' of string"),
        (gaps, {"image_column": "image", "label_column": "label"}, "of integers, got 'label' of int64, some missing"),
        ("digits", {"label_column": "target"}, "`label_column` must be left out for 'digits', which has no columns"),
    ]:
        with pytest.raises(ValueError, match=message):
            open_images(source, **columns)


class Pairs(torch.utils.data.Dataset):
    def __init__(self, images, make):
        self.images, self.make = images, make

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.make(self.images[index], index)  # never an IndexError


def test_one_image_is_as_good_as_several(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(colour).save(tmp_path / "a.png")
    Image.fromarray(GREY[1]).save(tmp_path / "b.png")
    of_colour = torch.from_numpy(colour).permute(2, 0, 1)
    for channels, expected, images in [
        (3, of_colour, [colour, of_colour, of_colour.numpy(), Image.fromarray(colour)]),
        (3, of_colour, [tmp_path / "a.png", [tmp_path / "a.png"]]),
        (1, GREY[1:2], [GREY[1], torch.from_numpy(GREY[1]), GREY[1:2], torch.from_numpy(GREY[1:2]), GREY[1][..., None]]),
        (1, GREY[1:2], [str(tmp_path / "b.png"), [GREY[1]], [torch.from_numpy(GREY[1])]]),
    ]:
        for one in images:
            got = images_to_levels(one, channels=channels, size=(8, 8))
            assert got.shape == (1, channels, 8, 8) and np.array_equal(got[0], expected)
    # Of grey images there may be several.
    for several in (GREY, torch.from_numpy(GREY)):
        assert np.array_equal(images_to_levels(several, channels=1, size=(8, 8))[:, 0], GREY)
    assert np.array_equal(images_to_levels(GREY[0])[0, 0], GREY[0])
    for images, channels, message in [
        (torch.from_numpy(GREY), None, r"the shape \(N, C, H, W\), got \(5, 8, 8\)"),
        (torch.from_numpy(colour), 3, r"the shape \(N, C, H, W\), got \(8, 8, 3\)"),
        (torch.from_numpy(GREY[0]), 3, r"the shape \(N, C, H, W\), got \(8, 8\)"),
        (GREY[0], 3, "must have 3 channels|an array of shape"),
        (tmp_path, 3, "`images` must be paths of pictures .*`ddpm_vlb.load_images` reads"),
        (tmp_path / "c.png", 3, "`images` must be paths of pictures"),
        (stream_images(tmp_path, transform=Transform("L")), 1, "`images` must be a tensor, .*, got StreamedImages"),
    ]:
        with pytest.raises(ValueError, match=message):
            images_to_levels(images, channels=channels, size=(8, 8))


def test_data_sets_and_loaders_of_torch():
    from torch.utils.data import DataLoader, IterableDataset, TensorDataset

    levels = torch.from_numpy(GREY)[:, None]
    tensors, pictures = (
        TensorDataset(levels, torch.arange(5)),
        Pairs(GREY, lambda image, index: (Image.fromarray(image), index)),
    )
    named = Pairs(levels, lambda image, index: {"pixel_values": image, "label": index, "name": f"{index}.png"})

    class Endless(IterableDataset):
        def __iter__(self):
            return iter(levels)

    whole = [levels, tensors, TensorDataset(levels), pictures, named, Pairs(GREY, lambda image, index: image), Endless()]
    loaders = [DataLoader(data, batch_size=2) for data in (tensors, named, Endless(), list(levels))]
    loaders += [DataLoader(pictures, batch_size=2, collate_fn=lambda pairs: [image for image, _ in pairs])]
    for data in [*whole, *loaders]:
        assert torch.equal(images_to_levels(data, channels=1, size=(8, 8)), levels)
    values = levels_to_samples(levels, 256, torch.float32)
    assert torch.equal(images_to_levels(DataLoader(TensorDataset(values), 2)), levels)
    assert torch.equal(images_to_levels(open_images("digits"), 17), load_images("digits").images)
    for data, message in [
        (DataLoader(tensors, batch_size=2, shuffle=True), "`images` must have an order, got a DataLoader that shuffles"),
        (TensorDataset(levels, levels), "tuples or dictionaries with one image each, got 2 of them in a tuple"),
        (Pairs(GREY, lambda image, index: {"label": index}), "one image each, got 0 of them in a dict"),
        (Pairs(GREY, lambda image, index: index), "one image each, got int"),
        (Pairs([], None), "`images` must not be empty, got no image from Pairs"),
        (TensorDataset(values / 2 + 0.5), "grid"),  # what torchvision makes of them
        (open_images("digits"), "`images` must have the 256 levels of the model's grid, got 17 levels"),
    ]:
        with pytest.raises(ValueError, match=message):
            images_to_levels(data)


def test_more_digits_are_made_without_the_held_out_ones(tmp_path):
    train, held_out = (load_images("digits", split).images[:, 0].numpy() for split in ("train", "test"))
    further = np.random.default_rng(0).integers(0, 17, (5, 8, 8), dtype=np.uint8)

    def make(output, *parts):
        files = []
        for part, images in enumerate(parts):
            files.append(tmp_path / f"optdigits-{part}.tra")
            rows = [",".join(map(str, [*image.flatten(), 7])) for image in images]
            files[-1].write_text("\n".join(["# levels and class", *rows, ""]))
        script = ROOT / "training" / "shipped" / "make_optdigits.py"
        return shared().run(script, *files, output)

    first, second = tmp_path / "new" / "first.npz", tmp_path / "second.npz"
    done = make(first, np.concatenate([further, held_out[:3], train[:2], further[:1]]))
    assert done.returncode == 0 and f"{len(train) + len(further)} images" in done.stdout, done.stderr
    made = {image.tobytes() for image in load_images(first).images[:, 0].numpy()}
    assert made == {image.tobytes() for image in np.concatenate([train, further])}
    assert not made & {image.tobytes() for image in held_out}
    # With their classes: scikit-learn's own, and those of the files.
    own = dict(zip((image.tobytes() for image in train), load_images("digits", "train").labels.tolist()))
    loaded = load_images(first)
    assert [own.get(x.tobytes(), 7) for x in loaded.images[:, 0].numpy()] == loaded.labels.tolist()
    # The same images in other files and another order are the same data.
    assert make(second, further[3:], further[2::-1]).returncode == 0
    assert np.array_equal(load_images(first).images, load_images(second).images)

    for images, message in [(further[:, :7], "64 levels and a class"), (further + 12, "levels from 0 to 16")]:
        refused = make(tmp_path / "refused.npz", images)
        assert refused.returncode == 2 and message in refused.stderr and "Traceback" not in refused.stderr
    missing = shared().run(ROOT / "training" / "shipped" / "make_optdigits.py", tmp_path / "none.tra", tmp_path / "refused.npz")
    assert missing.returncode == 2 and "numbers and commas" in missing.stderr and not (tmp_path / "refused.npz").exists()


def test_transforms_are_what_torchvision_does():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (21, 33, 3), dtype=np.uint8))
    # torchvision: the shorter side, the longer one rounded down; the middle, halves rounded to even.
    resized = Transform(resize=14)(picture)
    assert np.array_equal(resized, picture.resize((22, 14), Image.Resampling.BILINEAR))
    assert np.array_equal(Transform(center_crop=8)(picture), np.asarray(picture)[6:14, 12:20])
    both = Transform(convert="L", resize=14, center_crop=14)(picture)
    assert np.array_equal(both, np.asarray(picture.convert("L").resize((22, 14), Image.Resampling.BILINEAR))[:, 4:18])
    assert Transform(resize=21)(picture) is picture and Transform()(picture) is picture
    assert Transform(center_crop=8, convert="RGB").settings == {"convert": "RGB", "center_crop": 8}
    for options, message in [
        ({"resize": 0}, "`resize` must be a positive integer, got 0"),
        ({"center_crop": 2.5}, "`center_crop` must be a positive integer, got 2.5"),
        ({"convert": "RGBA"}, "`convert` must be 'L' or 'RGB', got 'RGBA'"),
    ]:
        with pytest.raises(ValueError, match=message):
            Transform(**options)


def test_transforms_refuse_what_has_several_answers():
    grey, half = Image.new("L", (8, 6)), Image.new("RGBA", (8, 6), (0, 0, 0, 128))
    assert Transform(convert="L")(Image.new("RGBA", (8, 6), (9, 9, 9, 255))).getpixel((0, 0)) == 9
    assert Transform(convert="RGB")(grey.convert("P")).mode == "RGB"
    for options, picture, message in [
        ({"convert": "RGB"}, half, "without transparency, got mode RGBA with transparency"),
        ({"convert": "L"}, Image.new("I;16", (8, 6)), "8-bit pictures without transparency, got mode I;16"),
        ({"convert": "L"}, Image.new("CMYK", (8, 6)), "got mode CMYK"),
        ({"resize": 4}, grey.convert("P"), "8-bit grey or RGB pictures, got mode P"),
        ({"center_crop": 7}, grey, "at most the shorter side, got 7 for 8 x 6 pixels"),
    ]:
        with pytest.raises(ValueError, match=message):
            Transform(**options)(picture)
