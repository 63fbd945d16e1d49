"""What the fork server of `processes` imports; nothing here starts a thread."""

# ruff: noqa: F401 (imported for those who are forked)

import hydra._internal.hydra
import matplotlib.figure
import sklearn.datasets
import torch.distributed.fsdp

import vitlab.commands.train
import vitlab.recipe
import vitlab.tracking
import vitlab.train
from vitlab.lean import modules

modules("timm.scheduler", "timm.data.mixup", "timm.data.random_erasing")
