"""Published sets of colour images, in torchvision's files and folders."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from vitlab.config.errors import DataError, DatasetMissing
from vitlab.data.dataset import Dataset
from vitlab.data.datasets.imagenet import MEAN, STD
from vitlab.data.examples import Examples, Files, Pixels, one_line
from vitlab.system.lazy_imports import modules


def comma_separated(names: str) -> tuple[str, ...]:
    return tuple(names.split(","))


@dataclass(kw_only=True)
class TorchvisionDataset(Dataset):
    """Base class: torchvision finds, checks and reads the files.

    Args:
        root: folder that holds torchvision's folder of the dataset; None looks in `data/`.
        download: download missing files to `root`.
    """

    channels = 3
    flip = True

    name: ClassVar[str]  # the option in conf/dataset
    torchvision_name: ClassVar[str]  # module and class in torchvision.datasets
    folder: str = field(init=False)  # exists in `root` where there is a copy
    split_arguments: ClassVar[dict[str, dict[str, Any]]]  # arguments of torchvision's class for each split
    counts: ClassVar[dict[str, int]] = {}  # images of each split, where torchvision does not check the files

    root: str | None
    download: bool

    def read(self) -> dict[str, Examples]:
        return {split: self.read_split(split, arguments) for split, arguments in self.split_arguments.items()}

    def examples(self, data: Any) -> Examples:
        """The labelled images of a torchvision dataset."""
        raise NotImplementedError(f"{type(self).__name__} has no examples")

    def torchvision_class(self) -> Any:
        module, _, name = self.torchvision_name.partition(".")
        return getattr(modules(f"torchvision.datasets.{module}")[0], name)

    def read_split(self, split: str, arguments: dict[str, Any]) -> Examples:
        """One split.

        Raises:
            DatasetMissing: there is no copy.
            DataError: an incomplete or damaged copy, or a failed download.
        """
        root = Path(self.root or "data")
        folder = root / self.folder
        command = f"vitlab train dataset={self.name} dataset.download=true {quote(f'dataset.root={root}')}"
        remedy = f"remove it and fetch it again: {command}"
        if not (self.download or folder.exists()):
            raise DatasetMissing(self.name, [folder], f"Get it with: {command}")
        try:
            examples = self.examples(self.torchvision_class()(str(root), download=self.download, **arguments))
            if not len(examples) or not 0 <= examples.labels.min() <= examples.labels.max() < len(self.classes):
                raise DataError(f"{len(examples)} {split} images whose labels are not those of the classes")
        except Exception as error:  # the reader of a damaged file raises anything
            reason = one_line(error)
            if reason.startswith("Dataset not found or corrupted"):
                reason = "a file is missing, or is not the published one by its checksum"
            if self.download and not folder.exists():
                raise DataError(f"{self.name} could not be fetched to {root}: {reason}") from error
            raise DataError(f"{folder} is not a complete copy of {self.name} ({reason}): {remedy}") from error
        if (count := self.counts.get(split, len(examples))) != len(examples):
            raise DataError(f"{folder} has {len(examples):,} {split} images, and {self.name} has {count:,}: {remedy}")
        return examples


class Cifar10(TorchvisionDataset):
    """60,000 small photographs of 32x32; the last 10,000 are the test set. Mean and std are of the training pixels.

    Its files are pickles: torchvision reads none whose checksum is not the published one.
    """

    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    size = (32, 32)
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)
    published = (50_000, 10)
    citation = "Krizhevsky 2009, Learning multiple layers of features from tiny images"
    licence = "none stated; the authors ask that their report be cited"

    name = "cifar10"
    torchvision_name = "cifar.CIFAR10"
    folder = "cifar-10-batches-py"
    split_arguments: ClassVar = {"train": {"train": True}, "test": {"train": False}}

    def examples(self, data: Any) -> Pixels:
        return in_memory(data.data.transpose(0, 3, 1, 2), data.targets)


class Cifar100(Cifar10):
    """CIFAR-10's sibling with 100 classes of 600 images; mean and std are of its own training pixels."""

    classes = comma_separated(
        "apple,aquarium fish,baby,bear,beaver,bed,bee,beetle,bicycle,bottle,bowl,boy,bridge,bus,butterfly,camel,can,"
        "castle,caterpillar,cattle,chair,chimpanzee,clock,cloud,cockroach,couch,crab,crocodile,cup,dinosaur,dolphin,"
        "elephant,flatfish,forest,fox,girl,hamster,house,kangaroo,keyboard,lamp,lawn mower,leopard,lion,lizard,lobster,"
        "man,maple tree,motorcycle,mountain,mouse,mushroom,oak tree,orange,orchid,otter,palm tree,pear,pickup truck,"
        "pine tree,plain,plate,poppy,porcupine,possum,rabbit,raccoon,ray,road,rocket,rose,sea,seal,shark,shrew,skunk,"
        "skyscraper,snail,snake,spider,squirrel,streetcar,sunflower,sweet pepper,table,tank,telephone,television,tiger,"
        "tractor,train,trout,tulip,turtle,wardrobe,whale,willow tree,wolf,woman,worm"
    )
    published = (50_000, 100)
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)

    name = "cifar100"
    torchvision_name = "cifar.CIFAR100"
    folder = "cifar-100-python"


class Svhn(TorchvisionDataset):
    """House numbers, cropped to one digit of 32x32: 73,257 to train and 26,032 to test; the extra ones are not read.

    Mean and std are of the training pixels.
    """

    classes = tuple("0123456789")
    size = (32, 32)
    mean = (0.4377, 0.4438, 0.4728)
    std = (0.1980, 0.2010, 0.1970)
    flip = False
    citation = "Netzer et al. 2011, Reading digits in natural images with unsupervised feature learning"
    licence = "for non-commercial use alone"

    name = "svhn"
    torchvision_name = "svhn.SVHN"
    folder = "train_32x32.mat"
    split_arguments: ClassVar = {"train": {"split": "train"}, "test": {"split": "test"}}

    def examples(self, data: Any) -> Pixels:
        return in_memory(data.data, data.labels)


class Stl10(Svhn):
    """5,000 training and 8,000 test photographs of 96x96 from ImageNet. Mean and std are of the training pixels.

    Its 100,000 unlabelled images are not read, and need not be there.
    """

    classes = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
    size = (96, 96)
    mean = (0.4467, 0.4398, 0.4066)
    std = (0.2603, 0.2566, 0.2713)
    flip = True
    citation = "Coates, Lee and Ng 2011, An analysis of single-layer networks in unsupervised feature learning"
    licence = "images of ImageNet, for non-commercial research and education alone"

    name = "stl10"
    torchvision_name = "stl10.STL10"
    folder = "stl10_binary"

    def torchvision_class(self) -> Any:
        base = super().torchvision_class()
        return type("Labelled", (base,), {"train_list": base.train_list[:2]})


def in_memory(pixels: np.ndarray, labels: Sequence[int] | np.ndarray) -> Pixels:
    """Examples from an array (n, c, y, x) of any strides."""
    return Pixels(torch.from_numpy(np.ascontiguousarray(pixels)), np.asarray(labels))


@dataclass(kw_only=True)
class TorchvisionFiles(TorchvisionDataset):
    """Base class of the sets of image files. Mean and std are ImageNet's unless a subclass has its own."""

    size = None
    mean = MEAN
    std = STD

    def examples(self, data: Any) -> Files:
        names, expected = [readable_name(name) for name in self.names(data)], [name.lower() for name in self.classes]
        if names != expected:
            differing = ", ".join(sorted(set(names) ^ set(expected))[:5])
            raise DataError(f"it has {len(names)} classes of {len(expected)}; not in both: {differing}")
        files, labels = zip(*self.samples(data), strict=True)
        paths = [Path(file) for file in files]
        existing = {file for folder in {path.parent for path in paths} for file in folder.iterdir()}
        if missing := [path for path in paths if path not in existing]:
            raise DataError(f"{len(missing)} of {len(paths)} images are missing, such as {missing[0].name}")
        return Files(paths, np.array(labels), "RGB")

    def names(self, data: Any) -> Sequence[str]:
        """The names of the classes in the files."""
        return data.classes

    def samples(self, data: Any) -> Iterable[tuple[str | Path, int]]:
        """The files, and the class of each."""
        return zip(data._image_files, data._labels, strict=True)


def readable_name(name: str) -> str:
    """The name of a class folder in plain words: `baby_back_ribs`, `AnnualCrop`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", name).lower()


class Flowers102(TorchvisionFiles):
    """8,189 photographs of flowers of 102 kinds, with a validation split of its own; 10 images a kind to train."""

    citation = "Nilsback and Zisserman 2008, Automated flower classification over a large number of classes"

    name = "flowers102"
    torchvision_name = "flowers102.Flowers102"
    folder = "flowers-102"
    split_arguments: ClassVar = {"train": {"split": "train"}, "validation": {"split": "val"}, "test": {"split": "test"}}
    counts: ClassVar = {"train": 1020, "validation": 1020, "test": 6149}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.classes = tuple(name.strip("?") for name in self.torchvision_class().classes)

    def names(self, data: Any) -> Sequence[str]:
        return self.classes  # the files have numbers alone


class OxfordPets(TorchvisionFiles):
    """7,349 photographs of cats and dogs of 37 breeds, half of them the test set."""

    classes = comma_separated(
        "Abyssinian,American Bulldog,American Pit Bull Terrier,Basset Hound,Beagle,Bengal,Birman,Bombay,Boxer,"
        "British Shorthair,Chihuahua,Egyptian Mau,English Cocker Spaniel,English Setter,German Shorthaired,"
        "Great Pyrenees,Havanese,Japanese Chin,Keeshond,Leonberger,Maine Coon,Miniature Pinscher,Newfoundland,Persian,"
        "Pomeranian,Pug,Ragdoll,Russian Blue,Saint Bernard,Samoyed,Scottish Terrier,Shiba Inu,Siamese,Sphynx,"
        "Staffordshire Bull Terrier,Wheaten Terrier,Yorkshire Terrier"
    )
    citation = "Parkhi, Vedaldi, Zisserman and Jawahar 2012, Cats and dogs"
    licence = "CC BY-SA 4.0"

    name = "oxford_pets"
    torchvision_name = "oxford_iiit_pet.OxfordIIITPet"
    folder = "oxford-iiit-pet"
    split_arguments: ClassVar = {"train": {"split": "trainval"}, "test": {"split": "test"}}
    counts: ClassVar = {"train": 3680, "test": 3669}

    def samples(self, data: Any) -> Iterable[tuple[str | Path, int]]:
        return zip(data._images, data._labels, strict=True)


class Food101(TorchvisionFiles):
    """101,000 photographs of dishes, at most 512 pixels a side; the training labels are noisy on purpose."""

    classes = comma_separated(
        "apple pie,baby back ribs,baklava,beef carpaccio,beef tartare,beet salad,beignets,bibimbap,bread pudding,"
        "breakfast burrito,bruschetta,caesar salad,cannoli,caprese salad,carrot cake,ceviche,cheese plate,cheesecake,"
        "chicken curry,chicken quesadilla,chicken wings,chocolate cake,chocolate mousse,churros,clam chowder,"
        "club sandwich,crab cakes,creme brulee,croque madame,cup cakes,deviled eggs,donuts,dumplings,edamame,"
        "eggs benedict,escargots,falafel,filet mignon,fish and chips,foie gras,french fries,french onion soup,"
        "french toast,fried calamari,fried rice,frozen yogurt,garlic bread,gnocchi,greek salad,grilled cheese sandwich,"
        "grilled salmon,guacamole,gyoza,hamburger,hot and sour soup,hot dog,huevos rancheros,hummus,ice cream,lasagna,"
        "lobster bisque,lobster roll sandwich,macaroni and cheese,macarons,miso soup,mussels,nachos,omelette,"
        "onion rings,oysters,pad thai,paella,pancakes,panna cotta,peking duck,pho,pizza,pork chop,poutine,prime rib,"
        "pulled pork sandwich,ramen,ravioli,red velvet cake,risotto,samosa,sashimi,scallops,seaweed salad,"
        "shrimp and grits,spaghetti bolognese,spaghetti carbonara,spring rolls,steak,strawberry shortcake,sushi,tacos,"
        "takoyaki,tiramisu,tuna tartare,waffles"
    )
    citation = "Bossard, Guillaumin and Van Gool 2014, Food-101: mining discriminative components with random forests"

    name = "food101"
    torchvision_name = "food101.Food101"
    folder = "food-101"
    split_arguments: ClassVar = {"train": {"split": "train"}, "test": {"split": "test"}}
    counts: ClassVar = {"train": 75_750, "test": 25_250}


@dataclass(kw_only=True)
class EuroSat(TorchvisionFiles):
    """27,000 satellite pictures of land, 64x64 files, without a split.

    Mean and std are the commonly published ones of all its pixels.

    Args:
        test_fraction: fraction of all images kept for the test.
    """

    classes = comma_separated(
        "annual crop,forest,herbaceous vegetation,highway,industrial,pasture,permanent crop,residential,river,sea lake"
    )
    mean = (0.3444, 0.3803, 0.4078)
    std = (0.2037, 0.1366, 0.1148)
    citation = "Helber, Bischke, Dengel and Borth 2019, EuroSAT: a novel dataset for land use classification"
    licence = "MIT"

    name = "eurosat"
    torchvision_name = "eurosat.EuroSAT"
    folder = "eurosat"
    split_arguments: ClassVar = {"train": {}}
    counts: ClassVar = {"train": 27_000}

    test_fraction: float

    def samples(self, data: Any) -> Iterable[tuple[str | Path, int]]:
        return data.samples


@dataclass(kw_only=True)
class Imagenette(TorchvisionFiles):
    """13,394 photographs of ten easy classes of ImageNet; its `val` is the test set.

    Args:
        copy: one of the three published copies: `full` size, or with a shorter side of 320 or 160 pixels.
    """

    citation = "Howard 2019, Imagenette: a smaller subset of 10 easily classified classes from ImageNet"
    licence = "images of ImageNet, for non-commercial research and education alone"

    name = "imagenette"
    torchvision_name = "imagenette.Imagenette"
    split_arguments: ClassVar = {"train": {"split": "train"}, "test": {"split": "val"}}
    counts: ClassVar = {"train": 9469, "test": 3925}

    copy: Literal["full", "320px", "160px"]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.folder = {"full": "imagenette2", "320px": "imagenette2-320", "160px": "imagenette2-160"}[self.copy]
        self.classes = tuple(names[0] for _, names in sorted(self.torchvision_class()._WNID_TO_CLASS.items()))

    def read_split(self, split: str, arguments: dict[str, Any]) -> Examples:
        return super().read_split(split, arguments | {"size": self.copy})

    def names(self, data: Any) -> Sequence[str]:
        return [names[0] for names in data.classes]

    def samples(self, data: Any) -> Iterable[tuple[str | Path, int]]:
        return data._samples
