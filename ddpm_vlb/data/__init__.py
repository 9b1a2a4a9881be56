r"""Images in, levels out."""

from ..pixel_grid import quantize
from .image_sets import ImageSet, StoredImages, StreamedImages, quantize_images
from .levels import check_shape, images_to_levels
from .sources import load_images, open_images, stream_images
from .transforms import Transform

__all__ = [
    "ImageSet",
    "StoredImages",
    "StreamedImages",
    "Transform",
    "check_shape",
    "images_to_levels",
    "load_images",
    "open_images",
    "quantize",
    "quantize_images",
    "stream_images",
]
