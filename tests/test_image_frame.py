from functools import partial

import numpy as np
import pytest
import torch
from tiny import generator

from ddpm_vlb import VLBDDPMPipeline
from ddpm_vlb.data import ImageSet, open_images, quantize_images, stream_images
from ddpm_vlb.data.frame import read_images
from ddpm_vlb.data.sources import source_of
from ddpm_vlb.sampled_bound.draw_scorer import known_parts

PIXELS = 64


@pytest.fixture
def many():
    return ImageSet(torch.randint(17, (1000, 1, 8, 8), generator=generator(1)).to(torch.uint8), 17, "random")


def read(pipe: VLBDDPMPipeline, source, shard=(0, 1), max_images=None, image_seed=None, buffer=10**6, block=256, seed=0):
    source = source_of(source, pipe.network, 17, shard=shard, max_images=max_images, image_seed=image_seed)
    return read_images(source.blocks(block), partial(known_parts, [pipe.scorer()]), seed, buffer * PIXELS)


def test_everything_is_known_of_all_images(pipe, many):
    images = read(pipe, many)
    assert (images.numbers == np.arange(1000)).all() and (images.frame == np.arange(1000)).all()
    assert torch.equal(images.levels, many.images) and len(images.prior) == len(images.features) == 1000
    expected = pipe.evaluate_nll(many.images[:5], generator=generator()).prior
    assert torch.allclose(images.prior[:5], expected, rtol=1e-12)


@pytest.mark.parametrize("block", [7, 64, 256])
def test_what_is_kept_depends_on_no_blocks(pipe, many, block):
    images = read(pipe, many, buffer=300, block=block)
    others = read(pipe, many, buffer=300)
    assert (images.frame == others.frame).all() and torch.equal(images.levels, others.levels)
    assert len(images.frame) == 300 and len(images.prior) == 1000 and images.sha256 == others.sha256
    assert torch.equal(images.levels, many.images[torch.as_tensor(images.frame)])
    assert torch.allclose(images.prior, others.prior, rtol=1e-12)
    assert (read(pipe, many, buffer=300, seed=1).frame != images.frame).any()


def test_each_image_is_kept_as_often_as_any(pipe, many):
    kept = np.zeros(1000)
    for seed in range(100):
        kept[read(pipe, many, buffer=300, seed=seed).frame] += 1
    # Each is kept 30 times of 100: the chi-square of the counts, which are drawn without replacement, has mean 700.
    assert abs(((kept - 30) ** 2).sum() / 30 - 700) < 5 * (2 * 700) ** 0.5


@pytest.mark.parametrize("shard", [(0, 3), (1, 3), (2, 3)])
def test_shards(pipe, many, shard):
    images = read(pipe, many, shard=shard, max_images=100)
    assert (images.numbers == np.arange(100)[shard[0] :: 3]).all()
    assert torch.equal(images.levels, many.images[:100][shard[0] :: 3])


def test_images_are_taken_at_random_by_a_seed_of_their_own(pipe, many):
    first = read(pipe, many, max_images=100, image_seed=0)
    assert len(set(first.numbers)) == 100 and (np.diff(first.numbers) > 0).all() and first.numbers.max() > 900
    assert torch.equal(first.levels, many.images[torch.as_tensor(first.numbers)])
    # By it alone: not by the seed of the evaluation, nor by what the images are.
    assert read(pipe, many, max_images=100, image_seed=0, seed=1).sha256 == first.sha256
    assert (read(pipe, many.images, max_images=100, image_seed=0).numbers == first.numbers).all()
    assert read(pipe, many, max_images=100, image_seed=1).sha256 != first.sha256
    # Fewer are a part of more, and shards are all of them.
    assert set(read(pipe, many, max_images=10, image_seed=0).numbers) < set(first.numbers)
    shards = [read(pipe, many, max_images=100, image_seed=0, shard=(index, 3)).numbers for index in range(3)]
    assert [len(numbers) for numbers in shards] == [34, 33, 33] and set(np.concatenate(shards)) == set(first.numbers)
    assert (read(pipe, many, max_images=2000, image_seed=0).numbers == np.arange(1000)).all()
    # Each is taken 10 times of 100: the chi-square of the counts, which are drawn without replacement, has mean 900.
    taken = np.zeros(1000)
    for image_seed in range(100):
        taken[source_of(many, pipe.network, 17, max_images=100, image_seed=image_seed)._numbers(1000)] += 1
    assert abs(((taken - 10) ** 2).sum() / 10 - 900) < 5 * (2 * 900) ** 0.5
    for options, message in [
        ({"image_seed": 0}, "`image_seed` must go with `max_images`"),
        ({"image_seed": -1, "max_images": 5}, r"`image_seed` must lie in \[0, 2\^63\), got -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            read(pipe, many, **options)


def test_streams_are_read_in_their_order(pipe, many, tmp_path):
    from PIL import Image

    for number, image in enumerate(many.images[:30]):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{number:03}.png")
    stream = stream_images(tmp_path, "train")
    stored = open_images(tmp_path)
    one, other = (quantize_images(source, 17) for source in (stream, stored))
    assert one.num_pixel_levels == other.num_pixel_levels == 17
    for options in ({}, {"shard": (1, 4)}, {"max_images": 17}):
        first, second = read(pipe, one, **options), read(pipe, other, **options)
        assert (first.numbers == second.numbers).all() and first.sha256 == second.sha256
        assert torch.equal(first.levels, second.levels) and torch.equal(first.prior, second.prior)
    with pytest.raises(ValueError, match="`image_seed` must be left out for a stream"):
        read(pipe, one, max_images=5, image_seed=0)


def test_images_in_memory_are_read_as_a_set_is(pipe, many):
    r"""Levels that are made once, and levels made image after image, are the same images."""
    for options in ({}, {"shard": (1, 3)}, {"max_images": 100, "shard": (2, 7)}):
        first, second = read(pipe, many.images, **options), read(pipe, many, **options)
        assert (first.numbers == second.numbers).all() and first.sha256 == second.sha256
        assert torch.equal(first.levels, second.levels) and torch.equal(first.features, second.features)


def test_no_images_are_refused(pipe, many):
    with pytest.raises(ValueError, match="`images` must hold at least one image, got none"):
        read(pipe, many, shard=(5, 6), max_images=5)
