"""Weights of other libraries: logits equal to theirs, sizes found from shapes, and files that are refused."""

import argparse
import json
import re
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.config.test_check import check, compose
from vitlab.__main__ import main
from vitlab.config.build import assemble
from vitlab.config.errors import VitlabError
from vitlab.evaluation.load import load
from vitlab.storage import checkpoint, foreign
from vitlab.system.distributed import single_process
from vitlab.training.setup import prepare

SIZES = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}


def random_weights(model, std=0.2):
    """Weights that no part of a model ignores: random, with norms near 1."""
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        mean = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
        nn.init.normal_(parameter, mean, std)
    return model.eval()


def timm(**options):
    from timm.models.vision_transformer import VisionTransformer

    return random_weights(VisionTransformer(**{"img_size": 32, "patch_size": 16, **SIZES, **options}))


def distilled(**options):
    from timm.models.deit import VisionTransformerDistilled

    return random_weights(VisionTransformerDistilled(img_size=32, patch_size=8, **SIZES))


def torchvision(**options):
    from torchvision.models import VisionTransformer

    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 3, "hidden_dim": 48, "mlp_dim": 96}
    return random_weights(VisionTransformer(**{**sizes, "num_classes": 5, **options}))


def hugging_face(**options):
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 192}
    return random_weights(
        ViTForImageClassification(ViTConfig(**{"image_size": 32, "patch_size": 8, **sizes, **options}))
    )


def google(model):
    """A timm model's weights by the published names of Google's .npz, in Flax's shapes."""
    state, heads = model.state_dict(), model.blocks[0].attn.num_heads
    width = model.embed_dim
    named = {"embedding/kernel": state["patch_embed.proj.weight"].permute(2, 3, 1, 0)}
    named["embedding/bias"] = state["patch_embed.proj.bias"]
    if model.cls_token is not None:
        named["cls"] = state["cls_token"]
    named["Transformer/posembed_input/pos_embedding"] = state["pos_embed"]

    def dense(there, here):
        named[f"{there}/kernel"], named[f"{there}/bias"] = state[f"{here}.weight"].T, state[f"{here}.bias"]

    def norm(there, here):
        named[f"{there}/scale"], named[f"{there}/bias"] = state[f"{here}.weight"], state[f"{here}.bias"]

    for i in range(len(model.blocks)):
        at, of = f"Transformer/encoderblock_{i}", f"blocks.{i}"
        norm(f"{at}/LayerNorm_0", f"{of}.norm1")
        norm(f"{at}/LayerNorm_2", f"{of}.norm2")
        dense(f"{at}/MlpBlock_3/Dense_0", f"{of}.mlp.fc1")
        dense(f"{at}/MlpBlock_3/Dense_1", f"{of}.mlp.fc2")
        attention = f"{at}/MultiHeadDotProductAttention_1"
        for name, weight, bias in zip(
            ("query", "key", "value"),
            state[f"{of}.attn.qkv.weight"].chunk(3),
            state[f"{of}.attn.qkv.bias"].chunk(3),
            strict=True,
        ):
            named[f"{attention}/{name}/kernel"] = weight.T.reshape(width, heads, -1)
            named[f"{attention}/{name}/bias"] = bias.reshape(heads, -1)
        named[f"{attention}/out/kernel"] = state[f"{of}.attn.proj.weight"].T.reshape(heads, -1, width)
        named[f"{attention}/out/bias"] = state[f"{of}.attn.proj.bias"]
    norm("Transformer/encoder_norm", "norm")
    dense("head", "head")
    for name in [name for name in state if name.startswith("patch_embed.backbone.")]:
        there = name.removeprefix("patch_embed.backbone.")
        value = state[name]
        named[hybrid_name(there)] = value.permute(2, 3, 1, 0) if value.ndim == 4 else value.reshape(1, 1, 1, -1)
    return {name: value.numpy() for name, value in named.items()}


def hybrid_name(name):
    """Google's name of a tensor of timm's ResNet."""
    words = name.split(".")
    leaf = words[-1] if words[-1] == "bias" else "kernel" if "conv" in words[-2] else "scale"
    if words[0] == "stem":
        return f"{'conv' if words[1] == 'conv' else 'gn'}_root/{leaf}"
    unit = f"block{int(words[1]) + 1}/unit{int(words[3]) + 1}"
    if words[4] == "downsample":
        return f"{unit}/{'conv' if words[5] == 'conv' else 'gn'}_proj/{leaf}"
    return f"{unit}/{words[4].replace('norm', 'gn')}/{leaf}"


def hybrid(layers=(1, 1), **options):
    """A hybrid of timm's with the epsilons of Google's code, which timm has not."""
    from timm.layers import GroupNormAct, StdConv2dSame
    from timm.models.vision_transformer_hybrid import HybridEmbed, _resnetv2

    backbone = _resnetv2(layers)
    model = timm(patch_size=1, img_size=32, embed_layer=partial(HybridEmbed, backbone=backbone), **options)
    for module in model.modules():
        if isinstance(module, GroupNormAct):
            module.eps = 1e-6
        if isinstance(module, StdConv2dSame):  # with larger filters, whose scale does not matter, its epsilon does not
            module.weight.data *= 50
    return model


tanh = partial(nn.GELU, approximate="tanh")
CASES = {
    "timm": (timm, {}),
    "timm, a long grid of small patches": (timm, {"img_size": 64, "patch_size": 8}),
    "timm, gray": (timm, {"in_chans": 1}),
    "timm, average without class token": (timm, {"class_token": False, "global_pool": "avg", "fc_norm": False}),
    "timm, attention pool": (timm, {"class_token": False, "global_pool": "map"}),
    "timm, layer scale, no qkv bias, narrow MLP": (timm, {"init_values": 0.1, "qkv_bias": False, "mlp_ratio": 2.0}),
    "timm, registers without positions": (timm, {"reg_tokens": 4, "no_embed_class": True, "patch_size": 8}),
    "timm, registers with positions": (timm, {"reg_tokens": 3, "patch_size": 4}),
    "timm, class token without position": (timm, {"no_embed_class": True, "patch_size": 8}),
    "timm, no final norm": (timm, {"final_norm": False}),
    "torchvision": (torchvision, {}),
    "torchvision, pre-logits": (torchvision, {"representation_size": 48}),
    "Hugging Face": (hugging_face, {}),
    "Names of Hugging Face in memory": (hugging_face, {"layer_norm_eps": 1e-12}),
    "Hugging Face, not square, tanh, epsilon, 7 classes": (
        hugging_face,
        {
            "image_size": (32, 48),
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-3,
            "id2label": {i: f"kind {i}" for i in range(7)},
        },
    ),
    "Google": (timm, {"act_layer": tanh}),
    "Google, average": (timm, {"act_layer": tanh, "class_token": False, "global_pool": "avg", "fc_norm": False}),
    "Google, hybrid": (hybrid, {"act_layer": tanh}),
}


def write(folder, name, model):
    """A model's weights as its library has them; the path that `init` takes."""
    if name.startswith("Google"):
        np.savez(folder / "weights.npz", **google(model))
        return folder / "weights.npz"
    if name.startswith("Hugging Face"):
        model.save_pretrained(folder)
        return folder
    (folder / "weights.json").write_text(json.dumps({"heads": 3}))  # which no shape shows
    torch.save(model.state_dict(), folder / "weights.pth")
    return folder / "weights.pth"


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_library(name, tmp_path):
    make, options = CASES[name]
    model = make(**options)
    ours = load(write(tmp_path, name, model))
    size, channels = ours.preprocess.resize.size, 1 if "gray" in name else 3
    images = torch.randn(4, channels, *size)
    with torch.no_grad():
        expected = model(images)
        expected = getattr(expected, "logits", expected)
        found = ours(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["Google", "Google, average", "Google, hybrid"])
def test_the_npz_of_these_tests_is_the_one_that_timm_reads(name, tmp_path):
    make, options = CASES[name]
    written = make(**options)
    path = write(tmp_path, name, written)
    other = make(**options)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    other.load_pretrained(str(path))
    for key, value in written.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value, msg=key)


def saved(tmp_path, state, name="weights.pth"):
    torch.save(state, tmp_path / name)
    (tmp_path / name).with_suffix(".json").write_text('{"heads": 3}')
    return tmp_path / name


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state},
        lambda state: {"state_dict": {f"module._orig_mod.{name}": value for name, value in state.items()}, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"state": {}}, "args": argparse.Namespace(lr=0.1, name="deit")},
        lambda state: {"state_dict": {"other": torch.ones(1)}, "state_dict_ema": state},
    ],
)
def test_checkpoints_of_a_training_are_read_whatever_is_around_the_weights(wrap, tmp_path):
    model = timm()
    found = foreign.read(saved(tmp_path, wrap(model.state_dict())))
    assert torch.equal(found.weights["head.output.weight"], model.head.weight)
    assert found.left_out == (("state_dict",) if "state_dict_ema" in wrap({}) else ())


@pytest.mark.parametrize(
    ("make", "new", "old"),
    [
        (partial(timm, init_values=0.1), r"ls(\d)\.gamma", r"gamma_\1"),  # DeiT III's
        (torchvision, r"mlp\.0\.", "mlp.linear_1."),  # before torchvision 0.13
        (torchvision, r"mlp\.3\.", "mlp.linear_2."),
    ],
)
def test_names_of_earlier_versions_are_known(make, new, old, tmp_path):
    state = make().state_dict()
    renamed = {re.sub(new, old, name): value for name, value in state.items()}
    assert renamed.keys() != state.keys()
    before, after = (foreign.read(saved(tmp_path, each)).weights for each in (state, renamed))
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_files_of_torch_before_its_zip_format_and_safetensors_and_half_precision_are_read(tmp_path):
    model = timm()
    torch.save(model.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(model.state_dict(), tmp_path / "new.safetensors")
    torch.save({name: value.half() for name, value in model.state_dict().items()}, tmp_path / "half.pth")
    old, new, half = (foreign.read(tmp_path / name).weights for name in ("old.pth", "new.safetensors", "half.pth"))
    for name, value in old.items():
        assert torch.equal(value, new[name])
        assert half[name].dtype == torch.float32
        torch.testing.assert_close(half[name], value, atol=1e-3, rtol=1e-3)


def test_a_distillation_token_is_a_register_and_its_head_is_left_out_and_that_is_said(tmp_path, caplog):
    model, images = distilled(), torch.randn(2, 3, 32, 32)
    ours = load(saved(tmp_path, {"model": model.state_dict()}))
    with torch.no_grad():
        expected = model.head(model.forward_features(images)[:, 0])
        torch.testing.assert_close(ours(images), expected, atol=1e-5, rtol=1e-5)
    assert "of the class token's head alone, without the distillation token's" in caplog.text


def test_sizes_come_from_the_shapes_and_the_rest_from_the_folder_or_a_file_beside_it(tmp_path):
    deit = timm(img_size=224, embed_dim=192, depth=12, num_classes=0)
    found = foreign.read(saved(tmp_path, deit.state_dict()))
    assert found.options() == ["model=tiny", "patch=p16"]
    assert (found.image_size, found.channels, found.classes) == ((224, 224), 3, ())
    (tmp_path / "weights.json").unlink()
    assert foreign.read(tmp_path / "weights.pth").heads == 3  # usual at this width
    folder = write(tmp_path, "Hugging Face", hugging_face(id2label={0: "cat", 1: "dog"}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1] * 3, "image_std": [0.2] * 3}))
    model = load(folder)
    assert model.classes == ("cat", "dog")
    torch.testing.assert_close(model.preprocess.normalize.scale.flatten(), torch.full((3,), 1 / (255 * 0.2)))
    (folder / "vitlab.json").write_text(json.dumps({"classes": ["wolf", "fox"], "crop": 0.5}))
    assert load(folder).classes == ("wolf", "fox")
    assert load(folder).preprocess.resize.crop == 0.5


def test_what_is_only_assumed_is_said(tmp_path, caplog):
    path = saved(tmp_path, timm().state_dict())
    path.with_suffix(".json").write_text(json.dumps({"heads": 3, "mean": [0.5] * 3, "std": [0.5] * 3}))
    load(path)
    assert "numbers for the names of its classes are taken: " in caplog.text
    assert "mean" not in caplog.text
    path.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match=r'how many heads it has: write {"heads": 3} or so into .*weights.json'):
        load(path)


def changed(name, value=None):
    """A file of timm's in which one tensor is another, or is not there."""

    def write(path):
        state = timm().state_dict()
        state |= {name: value} if value is not None else {}
        torch.save({k: v for k, v in state.items() if value is not None or k != name}, path)

    return write


class Evil:
    def __reduce__(self):
        return print, ("code has run",)


BAD = {
    "text": (lambda path: path.write_text("some text"), "weights.pth", "not a checkpoint"),
    "text as npz": (lambda path: path.write_text("some text"), "weights.npz", "cannot be read"),
    "pickled objects in npz": (
        lambda path: np.savez(path, **{"embedding/kernel": np.array([Evil()], dtype=object)}),
        "weights.npz",
        "cannot be read .*allow_pickle=False",
    ),
    "code": (lambda path: torch.save({"model": Evil()}, path), "weights.pth", "holds other objects"),
    "code in the old format": (
        lambda path: torch.save({"model": Evil()}, path, _use_new_zipfile_serialization=False),
        "weights.pth",
        "holds other objects",
    ),
    "truncated": (
        lambda path: (changed("x", torch.ones(9))(path), path.write_bytes(path.read_bytes()[:5000])),
        "weights.pth",
        "not a checkpoint",
    ),
    "truncated npz": (
        lambda path: (np.savez(path, **google(timm())), path.write_bytes(path.read_bytes()[:5000])),
        "weights.npz",
        "cannot be read",
    ),
    "NaN": (changed("norm.weight", torch.full((48,), torch.nan)), "weights.pth", "norm.weight has values that are NaN"),
    "no numbers": (changed("norm.weight", torch.ones(48, dtype=torch.int64)), "weights.pth", "no tensor of numbers"),
    "a text for a tensor": (changed("norm.weight", "one"), "weights.pth", "norm.weight is no tensor"),
    "a huge view": (changed("norm.weight", torch.ones(1).expand(10**13)), "weights.pth", "NaN, infinite or missing"),
    "another shape": (changed("norm.weight", torch.ones(47)), "weights.pth", r"norm.weight is .*\(47,\), not"),
    "a token of another width": (changed("cls_token", torch.ones(1, 1, 47)), "weights.pth", "prefix is"),
    "no patches": (changed("patch_embed.proj.weight", torch.ones(48)), "weights.pth", "shapes of a ViT's|does not fit"),
    "a lacking tensor": (changed("blocks.1.mlp.fc1.bias"), "weights.pth", "lacks 1 tensors"),
    "an odd grid": (changed("pos_embed", torch.ones(1, 8, 48)), "weights.pth", "8 positions are of no square grid"),
    "no positions": (changed("pos_embed"), "weights.pth", "has no table of positions"),
    "no head": (changed("head.weight"), "weights.pth", "has no head, it only represents images"),
    "norm after the pool": (changed("fc_norm.weight", torch.ones(48)), "weights.pth", "after the average over patches"),
    "norm before": (changed("norm_pre.weight", torch.ones(48)), "weights.pth", "as CLIP does"),
    "a part that is unknown": (
        changed("rope.freqs", torch.ones(48)),
        "weights.pth",
        "of a part that vitlab's",
    ),
    "no ViT": (
        lambda path: torch.save(nn.Linear(2, 2).state_dict(), path),
        "weights.pth",
        "holds no weights of",
    ),
    "one of vitlab's": (
        lambda path: checkpoint.save(path, {"model": {}, "facts": {}}),
        "weights.pth",
        "not the configuration of their run: give its folder",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_damaged_hostile_or_another_model_is_refused_in_a_sentence(name, tmp_path, capsys):
    make, file, sentence = BAD[name]
    make(tmp_path / file)
    (tmp_path / "weights.json").write_text('{"heads": 3}')
    with pytest.raises(VitlabError, match=sentence):
        load(tmp_path / file)
    assert "code has run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("note", "sentence"),
    [
        ({"heads": 0}, "heads=0 cannot be"),
        ({"heads": 5}, "heads=5 does not divide width=48"),
        ({"heads": 3, "colour": 1}, "colour is not known: it may say heads"),
        ({"heads": 3, "mean": [0.5]}, "mean=.*a finite number per channel"),
        ({"heads": 3, "classes": ["one"]}, "head.output.weight is"),
        ({"heads": 3, "gelu": "quick"}, "gelu='quick' cannot be"),
    ],
)
def test_a_json_file_that_cannot_be_is_refused(note, sentence, tmp_path):
    path = saved(tmp_path, timm().state_dict())
    path.with_suffix(".json").write_text(json.dumps(note))
    with pytest.raises(VitlabError, match=sentence):
        load(path)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"num_attention_heads": "3"}, "heads='3' cannot be"),
        ({"num_attention_heads": 3, "hidden_act": ["relu"]}, "hidden_act=.*relu.*: vitlab's MLPs have GELU"),
        ({"num_attention_heads": 3, "image_size": [32, -32]}, "image_size=.*cannot be"),
        ({"num_attention_heads": 3, "image_size": 48}, "5 positions are of no such grid"),
        ({"num_attention_heads": 3, "layer_norm_eps": 2}, "epsilon=2 cannot be"),
        ({"num_attention_heads": 3, "pretrained_cfg": {"mean": "none"}}, "mean='none': expected a finite number"),
        ({"num_attention_heads": 3, "pretrained_cfg": {"label_names": [1] * 5}}, "classes=.*cannot be"),
        ({"num_attention_heads": 3, "id2label": {"a": "cat"}}, None),
        ([], "it holds '\\[\\]', no object"),
    ],
)
def test_a_folder_whose_configuration_cannot_be_is_refused(config, sentence, tmp_path):
    save_file(timm().state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    if sentence is None:
        assert load(tmp_path).classes == ("0", "1", "2", "3", "4")
        return
    with pytest.raises(VitlabError, match=sentence):
        load(tmp_path)


def setup(*words):
    base = ["tracking=off", "dataset=synthetic", "dataset.image_size=32", "fit.steps=1", "fit.batch_size=16"]
    return prepare(**assemble(check(compose([*base, *words])[0])), dist=single_process())


FITTING = ["model=micro", "patch=p8", "model.dropout=0"]


def test_a_training_starts_from_them_and_says_what_is_new_and_what_differs(tmp_path):
    path = write(tmp_path, "Google", timm(patch_size=8, img_size=64))
    made = setup(f"init={path}", *FITTING)
    assert made.initial_weights.startswith(
        f"30 tensors are loaded from {path}; resized: positions.0.table 65x48 to 17x48"
    )
    assert "; left out: head.output.bias, head.output.weight; drawn at random: head.output.bias" in made.initial_weights
    assert made.initial_weights.endswith("computed otherwise there, unless you add: model/mlp=gelu_tanh")
    assert "otherwise" not in setup(f"init={path}", *FITTING, "model/mlp=gelu_tanh").initial_weights


def test_options_that_no_shape_shows_are_said(tmp_path):
    folder = write(tmp_path, "Hugging Face", hugging_face())
    said = setup(f"init={folder}", *FITTING, "model.position.at=every_block_shared", "model/pool=gap").initial_weights
    wanted = "model.epsilon=1e-12, model/pool=cls, model.registers=0, model.position.at=stem"
    assert said.endswith(f"unless you add: {wanted}")
    assert "left out: positions.0.table, prefix" in said


def test_a_known_head_is_kept_where_the_classes_are_the_same(tmp_path):
    names = {i: str(i) for i in range(10)}
    model = hugging_face(id2label=names, num_channels=1)
    folder = write(tmp_path, "Hugging Face", model)
    words = ["dataset=digits", "dataset.image_size=32", *FITTING]
    assert torch.equal(setup(*words, f"init={folder}").vit.head.output.weight, model.classifier.weight)
    state = {name.removeprefix("vit."): value for name, value in model.state_dict().items() if "classifier" not in name}
    headless = saved(tmp_path, {**state, "pooler.dense.weight": torch.ones(48, 48)}, "headless.pth")
    said = setup(*words, f"init={headless}").initial_weights
    assert "left out: pooler.dense.weight; drawn at random: head.output.bias, head.output.weight" in said


def test_a_hybrid_that_pads_otherwise_is_told_so(tmp_path):
    path = write(tmp_path, "Google, hybrid", hybrid(act_layer=tanh))
    words = [word for word in foreign.read(path).options() if "padding" not in word]
    said = setup(f"init={path}", *words).initial_weights
    assert said.endswith("computed otherwise there, unless you add: model.stem.padding=far")
    assert "otherwise" not in setup(f"init={path}", *words, "model.stem.padding=far").initial_weights


def test_a_projection_of_another_patch_is_resized_if_asked(tmp_path):
    path = write(tmp_path, "torchvision", torchvision(mlp_dim=192))
    said = setup(f"init={path}", "model=micro", "patch=p16", "init.patch=resize").initial_weights
    assert "resized: stem.projection.weight 48x192 to 48x768, positions.0.table 17x48 to 5x48" in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["model=tiny", "patch=p8"],
            r"they are of a ViT of Google's of width 48, depth 2, heads 3, patch 8, for 32x32",
        ),
        (["model=micro", "patch=p16"], "use model=micro patch=p8 model/mlp=gelu_tanh, or for another patch size"),
        (["model=micro", "patch=p8", "model.depth=3"], r"blocks.2.*: none there.*depth 2"),
        (["model=micro", "patch=p8", "model.heads=4"], "heads 3, .* and the model has 4 heads: use model=micro"),
        (["model=micro", "patch=p8", "dataset.channels=1"], "for 32x32 pixels of 3 channels"),
    ],
)
def test_another_model_is_refused_with_the_options_that_fit(words, sentence, tmp_path):
    path = write(tmp_path, "Google", timm(patch_size=8))
    with pytest.raises(ValueError, match=sentence):
        setup(f"init={path}", *words)


def test_commands_take_them_like_a_run_where_they_can(tmp_path, capsys):
    path = write(tmp_path, "timm", timm())
    assert main(["probe", str(path), "dataset=digits", "--shots", "1", "--seeds", "1"]) == 0
    assert (tmp_path / "weights-vitlab" / "probe-digits.json").is_file()
    assert main(["evaluate", str(path)]) == 2
    said = capsys.readouterr()
    assert "1-shot" in said.out
    assert "does not say which images it was trained on: give a dataset, dataset=NAME" in said.err
