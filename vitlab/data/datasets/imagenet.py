"""ImageNet and Tiny ImageNet, in their usual layouts; vitlab downloads neither."""

from dataclasses import dataclass
from pathlib import Path

from vitlab.config.errors import DataError, DatasetMissing
from vitlab.data.datasets.image_files import Samples
from vitlab.data.datasets.image_folder import ClassFolders
from vitlab.data.datasets.listing import class_folders, data_folder, list_images
from vitlab.data.examples import Examples
from vitlab.storage.files import read_text
from vitlab.system.lazy_imports import modules

MEAN = (0.485, 0.456, 0.406)  # of ImageNet's training pixels, as torchvision's models use them
STD = (0.229, 0.224, 0.225)


@dataclass(kw_only=True)
class ImageNet(ClassFolders):
    """ILSVRC 2012: 1.28 million photographs in 1000 classes, or a part of them with fewer class folders.

    The 50,000 images of `val/` are the test set, as papers report it; validation is a slice of the training images. A
    class is named by its first word in `LOC_synset_mapping.txt` or `words.txt` beside the folders; without these files
    by torchvision's name where all 1000 classes are there, else by its WordNet id.

    Args:
        root: folder of `train/WNID/*.JPEG` and `val/WNID/*.JPEG`.
    """

    channels = 3
    mean = MEAN
    std = STD
    flip = True
    citation = "Russakovsky et al. 2015, ImageNet Large Scale Visual Recognition Challenge"
    licence = "for non-commercial research and education alone"

    name = "imagenet"
    published = (1_281_167, 1000)
    path_options = ("root", "verify")

    def split_folders(self) -> dict[str, Path]:
        root = data_folder(self.root or "data/imagenet")
        folders = {"train": root / "train", "test": root / "val"}
        if self.for_evaluation and not folders["train"].is_dir():
            del folders["train"]
        if not all(folder.is_dir() for folder in folders.values()):
            raise DatasetMissing(
                "imagenet",
                list(folders.values()),
                "Get ILSVRC2012 from https://www.image-net.org (free, with an account), lay it out as"
                " train/WNID/*.JPEG and val/WNID/*.JPEG, and give the folder of both: dataset.root=PATH",
            )
        if not class_folders(folders["test"]):
            raise DataError(
                f"{folders['test']} has no class folders with images: sort the validation images into folders named"
                " by WordNet id, as valprep.sh of PyTorch's ImageNet example does"
            )
        return folders

    def levels(self) -> set[Path]:
        return {self.folders["test"].parent}

    def class_names(self) -> tuple[str, ...]:
        words = synset_words(self.folders["test"].parent)
        if not words and len(self.folder_names) == 1000:
            (meta,) = modules("torchvision.models._meta")
            words = dict(zip(self.folder_names, meta._IMAGENET_CATEGORIES, strict=True))
        return unique_names(self.folder_names, words)


@dataclass(kw_only=True)
class TinyImageNet(ClassFolders):
    """120,000 photographs of 64x64 in 200 classes of ImageNet; the 10,000 of `val/` are the test set.

    The images of its own `test/` have no labels and are not read. Mean and standard deviation are the commonly
    published ones of its training pixels.

    Args:
        root: the folder `tiny-imagenet-200` or the one that holds it; None looks in `data/`.
    """

    channels = 3
    mean = (0.4802, 0.4481, 0.3975)
    std = (0.2770, 0.2691, 0.2821)
    flip = True
    citation = "Le and Yang 2015, Tiny ImageNet Visual Recognition Challenge (Stanford CS231n)"

    name = "tiny_imagenet"
    published = (100_000, 200)
    path_options = ("root", "verify")

    def split_folders(self) -> dict[str, Path]:
        root = data_folder(self.root or "data")
        lists = [root / "wnids.txt", root / "tiny-imagenet-200" / "wnids.txt"]
        wnids = next((file for file in lists if file.is_file()), None)
        if wnids is None:
            raise DatasetMissing(
                "tiny_imagenet",
                lists,
                "Get http://cs231n.stanford.edu/tiny-imagenet-200.zip, unpack it, and give its folder:"
                " dataset.root=PATH",
            )
        listed = set(read_text(wnids, 1_000_000).split())
        train = wnids.parent / "train"
        missing = sorted(listed - set(class_folders(train))) if train.is_dir() else sorted(listed)
        if missing:
            raise DataError(
                f"{train} is incomplete: {len(missing)} of the {len(listed)} classes in wnids.txt have no images there,"
                f" such as {missing[0]}: unpack the archive again"
            )
        return {"train": train}

    def class_names(self) -> tuple[str, ...]:
        return unique_names(self.folder_names, synset_words(self.folders["train"].parent))

    def read(self) -> dict[str, Examples]:
        folder = self.folders["train"].parent / "val"
        return super().read() | {"test": self.files(self.annotated(folder), folder)}

    def annotated(self, folder: Path) -> Samples:
        """The images and classes in `val_annotations.txt`: lines of a file name, a WordNet id and a box, between tabs.

        Raises:
            DataError: a malformed line, a class that is not trained on, or a missing image.
        """
        file = folder / "val_annotations.txt"
        classes = {name: label for label, name in enumerate(self.folder_names)}
        try:
            existing = {path.name for path in list_images(folder / "images", self.passed)}
            rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()]
            samples = [(folder / "images" / row[0], classes[row[1]]) for row in rows]
        except (OSError, UnicodeDecodeError, IndexError, KeyError) as error:
            raise DataError(f"{file} cannot be read ({error!r}): unpack the archive again") from error
        missing = [path for path, _ in samples if path.name not in existing]
        if missing or not samples:
            raise DataError(
                f"{folder / 'images'} is incomplete: {len(missing)} of the {len(samples)} images in val_annotations.txt"
                f" are missing{f', such as {missing[0].name}' if missing else ''}: unpack the archive again"
            )
        for name in existing - {path.name for path, _ in samples}:
            self.passed.add("unlabelled", name)
        return samples


def synset_words(folder: Path) -> dict[str, str]:
    """The first word of each WordNet id, from Kaggle's `LOC_synset_mapping.txt` or WordNet's `words.txt`, if any."""
    for file in (folder / "LOC_synset_mapping.txt", folder / "words.txt"):
        if file.is_file():
            lines = (line.split(maxsplit=1) for line in file.read_text("utf-8", errors="replace").splitlines())
            return {line[0]: line[1].split(",")[0].strip() for line in lines if len(line) == 2}
    return {}


def unique_names(wnids: tuple[str, ...], words: dict[str, str]) -> tuple[str, ...]:
    """The word of each WordNet id, followed by the id where two share a word (crane, the bird and the machine)."""
    names = [words.get(wnid, wnid) for wnid in wnids]
    return tuple(f"{name} ({wnid})" if names.count(name) > 1 else name for name, wnid in zip(names, wnids, strict=True))
