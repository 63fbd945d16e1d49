"""ImageNet and Tiny ImageNet, in the layouts that people have them in; neither is downloaded by vitlab."""

from dataclasses import dataclass
from pathlib import Path

from vitlab.config.errors import DataError, DatasetMissing
from vitlab.data.datasets.image_folder import ClassFolders, Pairs, class_folders, walk_images
from vitlab.data.examples import Examples
from vitlab.system.lazy_imports import modules

MEAN = (0.485, 0.456, 0.406)  # of ImageNet's training pixels, as torchvision's models use them
STD = (0.229, 0.224, 0.225)


@dataclass(kw_only=True)
class ImageNet(ClassFolders):
    """ILSVRC 2012: 1.28 million photographs in 1000 classes, or a part of them with fewer class folders.

    The 50,000 images of `val/` are the test set, as papers report it; validation is a slice of the training images. A
    class is called by its first word in `LOC_synset_mapping.txt` or `words.txt` beside the folders; without them by
    torchvision's name for it where all 1000 are there, and else by its WordNet id.

    Args:
        root: folder of `train/WNID/*.JPEG` and `val/WNID/*.JPEG`.
    """

    channels = 3
    mean = MEAN
    std = STD
    flip = True
    citation = "Russakovsky et al. 2015, ImageNet Large Scale Visual Recognition Challenge"

    name = "imagenet"
    published = (1_281_167, 1000)
    path_options = ("root", "verify")

    def find(self) -> dict[str, Path]:
        root = Path(self.root or "data/imagenet").expanduser()
        folders = {"train": root / "train", "test": root / "val"}
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

    def names(self) -> tuple[str, ...]:
        known = words(self.folders["train"].parent)
        if not known and len(self.folder_names) == 1000:
            (meta,) = modules("torchvision.models._meta")
            known = dict(zip(self.folder_names, meta._IMAGENET_CATEGORIES, strict=True))
        return told_apart(self.folder_names, known)


@dataclass(kw_only=True)
class TinyImageNet(ClassFolders):
    """120,000 photographs of 64x64 in 200 classes of ImageNet; the 10,000 of `val/` are the test set.

    The images of its own `test/` have no labels and are not read. They are files, decoded when asked for. Mean and
    standard deviation are the commonly published ones of its training pixels.

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

    def find(self) -> dict[str, Path]:
        root = Path(self.root or "data").expanduser()
        places = [root, root / "tiny-imagenet-200"]
        found = [place for place in places if (place / "wnids.txt").is_file()]
        if not found:
            raise DatasetMissing(
                "tiny_imagenet",
                [place / "wnids.txt" for place in places],
                "Get http://cs231n.stanford.edu/tiny-imagenet-200.zip, unpack it, and give its folder:"
                " dataset.root=PATH",
            )
        folder = found[0]
        listed = set((folder / "wnids.txt").read_text().split())
        train = folder / "train"
        missing = sorted(listed - set(class_folders(train))) if train.is_dir() else sorted(listed)
        if missing:
            raise DataError(
                f"{train} is not whole: {len(missing)} of the {len(listed)} classes in wnids.txt have no images there,"
                f" such as {missing[0]}: unpack the archive again"
            )
        return {"train": train}

    def names(self) -> tuple[str, ...]:
        return told_apart(self.folder_names, words(self.folders["train"].parent))

    def read(self) -> dict[str, Examples]:
        folder = self.folders["train"].parent / "val"
        return super().read() | {"test": self.files(self.annotated(folder), folder)}

    def annotated(self, folder: Path) -> Pairs:
        """The images of `val_annotations.txt`, whose lines are a file name, a WordNet id and a box, between tabs.

        Raises:
            DataError: a line that is none, a class that is not trained on, or an image that is not there.
        """
        file = folder / "val_annotations.txt"
        classes = {name: label for label, name in enumerate(self.folder_names)}
        try:
            dist = {Path(path).name for path in walk_images(folder / "images")}
            rows = [line.split("\t") for line in file.read_text().splitlines()]
            pairs = [(folder / "images" / row[0], classes[row[1]]) for row in rows]
        except (OSError, UnicodeDecodeError, IndexError, KeyError) as error:
            raise DataError(f"{file} cannot be read ({error!r}): unpack the archive again") from error
        lost = [path for path, _ in pairs if path.name not in dist]
        if lost or not pairs:
            raise DataError(
                f"{folder / 'images'} is not whole: {len(lost)} of the {len(pairs)} images in val_annotations.txt are"
                f" missing{f', such as {lost[0].name}' if lost else ''}: unpack the archive again"
            )
        return pairs


def words(folder: Path) -> dict[str, str]:
    """The first word for each WordNet id, from Kaggle's `LOC_synset_mapping.txt` or WordNet's `words.txt`, if there."""
    for file in (folder / "LOC_synset_mapping.txt", folder / "words.txt"):
        if file.is_file():
            lines = (line.split(maxsplit=1) for line in file.read_text("utf-8", errors="replace").splitlines())
            return {line[0]: line[1].split(",")[0].strip() for line in lines if len(line) == 2}
    return {}


def told_apart(wnids: tuple[str, ...], known: dict[str, str]) -> tuple[str, ...]:
    """The word for each WordNet id, with the id behind it where two have the same (crane, the bird and the machine)."""
    chosen = [known.get(wnid, wnid) for wnid in wnids]
    return tuple(
        f"{word} ({wnid})" if chosen.count(word) > 1 else word for word, wnid in zip(chosen, wnids, strict=True)
    )
