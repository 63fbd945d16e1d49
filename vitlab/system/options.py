"""The `system` group of the configuration: options that do not change results."""

import math
import os
from dataclasses import dataclass
from typing import Literal

from vitlab.config.errors import ConfigError
from vitlab.system import graphs
from vitlab.system.hardware import COMPILED_FOR, device_count, device_named


@dataclass(kw_only=True)
class System:
    """Options that do not change results.

    Args:
        device: auto, cpu, cuda, cuda:1 ...; auto is CUDA where there is one, else the CPU. Any other accelerator of
            torch's is named, such as mps (Apple) or xpu (Intel): vitlab was not run there yet.
        workers: processes that read and augment images; auto is this process's share of the cores, less an eighth for
            the training itself, and none where images in memory are used as they are or augmented as whole batches.
        threads: of torch on a CPU; None is torch's default.
        compile: whether the model is compiled (torch.compile), once for all models of a shape that the process trains;
            `graphs` also records its kernels as CUDA graphs, for small models on a GPU that waits for Python. Other
            processes find what was compiled in torch's cache (TORCHINDUCTOR_CACHE_DIR).
        capture: whether a whole training step, and a batch of an evaluation, is captured as a CUDA graph and launched
            at once, for models so small that a GPU waits for Python; auto is not, until it was tested on a GPU.
        parallel: how the processes that torchrun started train together. ddp: each has the whole model and a part of
            the batch; fsdp: each has a part of every weight as well (FSDP2); auto is ddp; none refuses several.
        activation_checkpointing: whether the backward pass computes each block's activations again instead of keeping
            them (Chen et al. 2016): less memory, about a third more time.
        save_minutes: a checkpoint is written at least so often; None is at evaluations alone.
        keep_every: epochs between two checkpoints that are kept for good, as step-N.pt; None keeps none.
        log_every: steps between two rows of metrics.jsonl.
        profile_steps: records a trace of this many steps, into the run's folder as trace.json; 0 for none.
        resident: whether images that are held in memory lie on the GPU, all of them, and are augmented there; auto is
            where they take no more than a quarter of what is free. On a CPU they are where they are used.
        cache: folder in which the images of files are kept decoded, for this training and all others that ask for it;
            None decodes them again in every epoch.
        runs: folder of all runs.
        retrain: trains a finished run anew, or one of other images or code; the old folder is kept under another name.
        changed_data: takes a run as it is, or continues it, although images or code of one's own have changed.

    Raises:
        ConfigError: a value is out of range, or the device does not exist.
    """

    device: str
    workers: int | Literal["auto"]
    threads: int | None
    compile: bool | Literal["graphs"]
    capture: bool | Literal["auto"]
    parallel: Literal["auto", "none", "ddp", "fsdp"]
    activation_checkpointing: bool
    save_minutes: float | None
    keep_every: float | None
    log_every: int
    profile_steps: int
    resident: bool | Literal["auto"]
    cache: str | None
    runs: str
    retrain: bool
    changed_data: bool

    def keeps(self, done: int, steps_per_epoch: float) -> bool:
        """Whether the checkpoint after update `done` is kept for good."""
        if self.keep_every is None:
            return False
        gap = max(1.0, self.keep_every * steps_per_epoch)
        turn = round(done / gap)
        return turn > 0 and round(gap * turn) == done

    def __post_init__(self) -> None:
        processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        for name, value, least in (
            ("workers", self.workers, 0),
            ("threads", self.threads, 1),
            ("log_every", self.log_every, 1),
            ("profile_steps", self.profile_steps, 0),
        ):
            if isinstance(value, int) and value < least:
                raise ConfigError(f"system.{name}={value}: must be at least {least}")
        for name, span in (("save_minutes", self.save_minutes), ("keep_every", self.keep_every)):
            if span is not None and not 0 < span < math.inf:
                raise ConfigError(f"system.{name}={span}: must be above 0, or null for never")
        for name, path in (("runs", self.runs), ("cache", self.cache)):
            if path is not None and path.startswith("~"):
                raise ConfigError(f"system.{name}={path}: there is no such user; for a folder of that name, ./{path}")
        for name, value, most in (("workers", self.workers, 1024), ("threads", self.threads, 4096)):
            if isinstance(value, int) and value > most:
                raise ConfigError(f"system.{name}={value}: must be at most {most:,}")
        device = device_named(self.device, "system.device=")
        if self.compile and device.type not in COMPILED_FOR:
            raise ConfigError(
                f"system.compile={self.compile}: torch.compile is not finished for {device.type}: use"
                " system.compile=false"
            )
        if self.compile == "graphs" and device.type != "cuda":
            raise ConfigError("system.compile=graphs: CUDA graphs need a GPU: use system.compile=true")
        if self.capture is True and device.type not in graphs.DEVICES:
            raise ConfigError("system.capture=true: CUDA graphs need a GPU: use system.capture=auto")
        if device.type != "cpu" and device.index is None and processes_here > device_count(device):
            raise ConfigError(
                f"torchrun started {processes_here} processes here, and torch sees {device_count(device)}"
                f" {device.type.upper()} devices: start as many as there are, or use system.device=cpu"
            )
        if self.parallel == "none" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError("system.parallel=none, and torchrun started several processes: use system.parallel=auto")
