"""Which test images a run predicted correctly: one bit an image, in the order of the dataset's test split."""

import numpy as np

from vitlab.storage.files import write_whole
from vitlab.storage.run import Run


def write(run: Run, correct: np.ndarray) -> None:
    """Writes test-correct.bin.

    Args:
        correct: a bool an image.
    """
    bits = np.packbits(correct).tobytes()
    write_whole(run.test_correct, lambda part: part.write_bytes(bits))


def read(run: Run, images: int, accuracy: float) -> np.ndarray | None:
    """A bool an image; None where the run has none, as earlier ones, or where it is not that of its accuracy.

    Args:
        images: how many it was tested on.
        accuracy: that it reports, 0 ... 1.
    """
    size = -(-images // 8)
    try:
        if run.test_correct.stat().st_size != size:
            return None
        bits = np.frombuffer(run.test_correct.read_bytes(), np.uint8)
    except OSError:
        return None
    correct = np.unpackbits(bits, count=images).astype(bool)
    return correct if abs(int(correct.sum()) - images * accuracy) < 0.5 else None
