"""What the training did since somebody last looked."""

import time

import torch
from torch import Tensor

from vitlab.parallel import World


class Meter:
    """Loss and accuracy of the training so far, summed on the device; reading them is the only wait for it."""

    def __init__(self, device: torch.device):
        self.totals = torch.zeros(2, dtype=torch.float64, device=device)  # loss, right answers
        self.bad = torch.full((), -1, dtype=torch.int64, device=device)  # first step whose loss was no number
        self.step = 0
        self.images = self.clocked = 0
        self.seconds = 0.0
        self.last = time.perf_counter()

    def add(self, step: int, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        loss, labels = loss.detach(), targets if targets.ndim == 1 else targets.argmax(dim=-1)
        right = (logits.detach().argmax(dim=-1) == labels).sum()
        self.totals += torch.stack((loss.double() * len(logits), right.double()))
        self.bad = torch.where((self.bad < 0) & ~loss.isfinite(), step, self.bad)
        self.images += len(logits)
        self.step = step

    def read(self, here: World) -> tuple[dict[str, float], int | None]:
        """Means since the last reading, over all processes, and the first step whose loss was no number, if any."""
        loss, right, bad = here.sum(torch.cat((self.totals, (self.bad >= 0).double()[None]))).tolist()
        first_bad = None if not bad else int(self.bad) if self.bad >= 0 else self.step
        images, elapsed = self.images * here.size, time.perf_counter() - self.last
        self.seconds += elapsed
        self.clocked += images
        self.images = 0
        self.totals.zero_()
        self.last = time.perf_counter()
        means = {"train/loss": loss / images, "train/accuracy": right / images, "images_per_second": images / elapsed}
        return means, first_bad

    def skip(self) -> None:
        """Leaves the time since the last reading out of the pace: it went into something else than training."""
        self.last = time.perf_counter()

    def pace(self) -> float:
        """Training images a second, evaluation and saving left out."""
        return self.clocked / self.seconds if self.seconds else 0.0
