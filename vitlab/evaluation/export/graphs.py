"""A model as a graph of operations, which needs no vitlab: ONNX, and torch.export's program."""

import io
import json
import warnings
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from vitlab.config.errors import ConfigError
from vitlab.evaluation.export.formats import Interface, Reader
from vitlab.evaluation.load import Trained
from vitlab.model.attention import Attention

ONNX = ("onnx", "onnxscript", "onnxruntime")


class Graph(nn.Module):
    """What is traced: the model, with normalization before it and probabilities after it where asked."""

    def __init__(self, trained: Trained, interface: Interface):
        super().__init__()
        self.model = deepcopy(trained.model)
        for module in self.model.modules():
            if isinstance(module, Attention):
                module.kernel = "fused"  # one operation; `explicit` chooses by the size of the batch
        self.normalize = deepcopy(trained.preprocess.normalize) if interface.preprocess else nn.Identity()
        self.output = nn.Softmax(dim=-1) if interface.probabilities else nn.Identity()
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.output(self.model(self.normalize(images)))


def example(trained: Trained, interface: Interface) -> Tensor:
    """An input of two images: of one, torch would take the size of the batch for a constant."""
    channels, size = len(trained.preprocess.mean), trained.preprocess.resize.size
    return torch.zeros(2, channels, *size, dtype=torch.uint8 if interface.preprocess else torch.float32)


def check_onnx() -> None:
    """Raises ConfigError where a package that ONNX needs is missing."""
    if missing := [name for name in ONNX if find_spec(name) is None]:
        raise ConfigError(f'--to onnx needs {", ".join(missing)}: pip install "vitlab[onnx]"')


@torch.no_grad()
def write_onnx(trained: Trained, folder: Path, interface: Interface) -> tuple[Path, Reader]:
    """Writes `model.onnx`, of any batch, with the preprocessing and the class names as JSON in its metadata.

    Returns:
        The file, and ONNX Runtime's reading of it.
    """
    file = folder / "model.onnx"
    with warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(
            Graph(trained, interface),
            (example(trained, interface),),
            dynamo=True,
            input_names=["images"],
            output_names=[interface.output],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None, "torch gives one with dynamo=True"
    program.model.metadata_props.update({key: json.dumps(value) for key, value in interface.facts(trained).items()})
    program.save(file)
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return file, lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@torch.no_grad()
def write_torch(trained: Trained, folder: Path, interface: Interface) -> tuple[Path, Reader]:
    """Writes `model.pt2`, of any batch, with the preprocessing and the class names in its file `facts.json`.

    Returns:
        The file, and torch's reading of it.
    """
    file, data = folder / "model.pt2", io.BytesIO()
    shapes = ({0: torch.export.Dim("batch")},)
    facts = {"facts.json": json.dumps(interface.facts(trained))}
    with warnings.catch_warnings(action="ignore"):
        program = torch.export.export(
            Graph(trained, interface), (example(trained, interface),), dynamic_shapes=shapes, strict=False
        )
        torch.export.save(program, data, extra_files=facts)
        file.write_bytes(data.getvalue())
        return file, torch.export.load(file).module()
