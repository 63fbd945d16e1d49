"""The code that loads what was written, for the model card: it runs in the folder, beside an `image.png`."""

from vitlab.evaluation.export.formats import Interface
from vitlab.evaluation.load import Trained

PIXELS = """
image = Image.open("image.png").convert("{mode}")
scale = max({width} / image.width, {height} / image.height) / {crop}
size = max({width}, round(image.width * scale)), max({height}, round(image.height * scale))
image = image.resize(size, Image.Resampling.BICUBIC)
left, top = (image.width - {width}) // 2, (image.height - {height}) // 2
image = image.crop((left, top, left + {width}, top + {height}))
pixels = np.asarray(image).reshape({height}, {width}, {channels}).transpose(2, 0, 1)[None]
"""
NORMALIZED = """mean, std = (np.float32(facts[key])[:, None, None] for key in ("mean", "std"))
images = (pixels / np.float32(255) - mean) / std
"""
ONNX = """import json

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("model.onnx")
facts = {{key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}}
{pixels}{images}
({output},) = session.run(None, {{"images": images}})
print(facts["classes"][{output}[0].argmax()])"""
TORCH = """import json

import numpy as np
import torch
from PIL import Image

more = {{"facts.json": ""}}
model = torch.export.load("model.pt2", extra_files=more).module()
facts = json.loads(more["facts.json"])
{pixels}{images}
{output} = model(torch.from_numpy(images))
print(facts["classes"][{output}[0].argmax()])"""
SAFETENSORS = """import json

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from vitlab.evaluation.load import factory

with safe_open("model.safetensors", "pt") as file:
    written = json.loads(file.metadata()["vitlab"])
    weights = {{name: file.get_tensor(name) for name in file.keys()}}
facts = written["facts"]
shape = {{"image_size": tuple(facts["image_size"]), "channels": facts["channels"], "classes": len(facts["classes"])}}
model = factory(written["model"])(**shape).eval()
model.load_state_dict(weights)
{pixels}{images}
{output} = model(torch.from_numpy(images))
print(facts["classes"][{output}[0].argmax()])"""
HUGGING_FACE = """from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

processor = AutoImageProcessor.from_pretrained(".")
model = AutoModelForImageClassification.from_pretrained(".").eval()
inputs = processor(Image.open("image.png").convert("{mode}"), return_tensors="pt")
{output} = model(**inputs).logits
print(model.config.id2label[{output}[0].argmax().item()])"""
TIMM = """import timm
from PIL import Image

model = timm.create_model("local-dir:.", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
images = transform(Image.open("image.png").convert("{mode}"))[None]
{output} = model(images)
print(model.pretrained_cfg["label_names"][{output}[0].argmax()])"""
CODE = {"onnx": ONNX, "torch": TORCH, "hf": HUGGING_FACE, "timm": TIMM, "safetensors": SAFETENSORS}


def usage(trained: Trained, to: str, interface: Interface) -> str:
    """Python that predicts the class of one image.

    Args:
        trained: the model.
        to: a format.
        interface: of a graph.
    """
    ready, (height, width) = trained.preprocess, trained.preprocess.resize.size
    mode, crop = ready.decoding.mode, ready.resize.crop
    pixels = PIXELS.format(mode=mode, height=height, width=width, channels=len(ready.mean), crop=crop)
    images = "images = np.ascontiguousarray(pixels)\n" if interface.preprocess else NORMALIZED
    return CODE[to].format(mode=mode, pixels=pixels, images=images, output=interface.output)
