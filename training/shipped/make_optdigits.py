r"""More digits to train on: scikit-learn's training part and those of 30 further writers, as one npz file.

    python training/shipped/make_optdigits.py optdigits.tra runs/optdigits.npz

scikit-learn's digits are the test set of UCI's "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, CC BY 4.0,
https://archive.ics.uci.edu/dataset/80): 1797 images of 13 writers, the last 360 of which are held out here. From so few writers
a network learns their hands along with the digits. UCI's training set, `optdigits.tra`, holds 3823 images of 30 others: a line
for each, 64 levels from 0 to 16 and the class, divided by commas.
"""

import argparse
import io
from pathlib import Path

import numpy as np

from ddpm_vlb.data import load_images
from ddpm_vlb.files import write_atomically

NUM_PIXELS, MAX_LEVEL = 64, 16


def read_optdigits(path: Path) -> tuple[np.ndarray, np.ndarray]:
    r"""Images `(N, 64)` and classes `(N,)` of one of UCI's files.

    Raises:
        ValueError: a file that is missing or not of that form.
    """
    try:
        rows = np.loadtxt(path, dtype=np.int64, delimiter=",", ndmin=2)
    except (OSError, ValueError) as error:
        raise ValueError(f"`files` must be UCI's optdigits files, numbers and commas, got {str(path)!r}: {error}") from error
    if rows.shape[1:] != (NUM_PIXELS + 1,) or not len(rows):
        raise ValueError(f"`files` must hold {NUM_PIXELS} levels and a class a line, got shape {rows.shape} in {str(path)!r}.")
    levels = rows[:, :NUM_PIXELS]
    if levels.min() < 0 or levels.max() > MAX_LEVEL:
        raise ValueError(
            f"`files` must hold levels from 0 to {MAX_LEVEL}, got {levels.min()} to {levels.max()} in {str(path)!r}."
        )
    return levels.astype(np.uint8), rows[:, NUM_PIXELS]


def training_digits(files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    r"""All images but the held-out ones, `(N, 8, 8)`, each once and in an order that does not depend on the files', and their
    classes `(N,)`."""
    train, test = load_images("digits", "train"), load_images("digits", "test")
    parts = [(train.images.reshape(-1, NUM_PIXELS).numpy(), np.asarray(train.labels)), *map(read_optdigits, files)]
    images, labels = (np.concatenate(part) for part in zip(*parts))
    images, first = np.unique(images, axis=0, return_index=True)
    held_out = {image.tobytes() for image in test.images.reshape(-1, NUM_PIXELS).numpy()}
    others = np.array([image.tobytes() not in held_out for image in images])
    return images[others].reshape(-1, 8, 8), labels[first][others].astype(np.int64)


def main() -> None:
    r"""Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, help="optdigits.tra, whole or in parts")
    parser.add_argument("output", type=Path, help="npz file to write, `images` (N, 8, 8) and `labels` (N,)")
    arguments = parser.parse_args()
    try:
        images, labels = training_digits(arguments.files)
    except ValueError as error:
        parser.error(str(error))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images, labels=labels)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.output, buffer.getvalue())
    print(f"{arguments.output}: {len(images)} images, none of them held out")


if __name__ == "__main__":
    main()
