"""What the fork server of `processes` imports; nothing here starts a thread."""

# ruff: noqa: F401 (imported for those who are forked)

import hydra._internal.hydra
import matplotlib.figure
import sklearn.datasets
import torch._dynamo
import torch.distributed.fsdp

import vitlab.cli.train
import vitlab.tracking.tracker
import vitlab.training.loop
import vitlab.training.setup
from vitlab.system.lazy_imports import modules

modules("timm.scheduler", "timm.data.mixup", "timm.data.random_erasing")
