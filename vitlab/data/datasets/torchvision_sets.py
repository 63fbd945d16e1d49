"""Published sets of colour images, in the files and folders that torchvision keeps them in."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from vitlab.config.errors import DataError, DatasetMissing
from vitlab.data.dataset import Dataset
from vitlab.data.datasets.image_folder import check_test_fraction, with_test
from vitlab.data.datasets.imagenet import MEAN, STD
from vitlab.data.examples import Examples, Files, Pixels
from vitlab.system.lazy_imports import modules


def words(text: str) -> tuple[str, ...]:
    """The words between commas."""
    return tuple(text.split(","))


@dataclass(kw_only=True)
class Published(Dataset):
    """What every kind shares: torchvision finds, checks and reads the files; a kind says what they are.

    Args:
        root: folder that holds torchvision's folder of the set; None looks in `data/`.
        download: fetch the files to `root` where they are missing.
    """

    channels = 3

    name: ClassVar[str]  # the option in conf/dataset
    reader: ClassVar[str]  # module and class in torchvision.datasets
    folder: str = field(init=False)  # what there is in `root` where there is a copy
    parts: ClassVar[dict[str, dict[str, Any]]]  # split -> what torchvision calls it

    root: str | None
    download: bool

    def read(self) -> dict[str, Examples]:
        return {split: self.checked(split, arguments) for split, arguments in self.parts.items()}

    def examples(self, found: Any) -> Examples:
        """The labelled images of a torchvision dataset."""
        raise NotImplementedError(f"{type(self).__name__} has no examples")

    def kind(self) -> Any:
        """torchvision's class."""
        module, _, name = self.reader.partition(".")
        return getattr(modules(f"torchvision.datasets.{module}")[0], name)

    def checked(self, split: str, arguments: dict[str, Any]) -> Examples:
        """One split.

        Raises:
            DatasetMissing: there is no copy.
            DataError: there is a part of one, or a damaged one; or the download failed.
        """
        root = Path(self.root or "data").expanduser()
        place = root / self.folder
        command = f"vitlab train dataset={self.name} dataset.download=true dataset.root={root}"
        if not (self.download or place.exists()):
            raise DatasetMissing(self.name, [place], f"Get it with: {command}")
        try:
            examples = self.examples(self.kind()(str(root), download=self.download, **arguments))
            if not len(examples) or not 0 <= examples.labels.min() <= examples.labels.max() < len(self.classes):
                raise DataError(f"{len(examples)} {split} images whose labels are not those of the classes")
        except Exception as error:  # what a damaged file makes its reader raise is anybody's guess
            said = " ".join(str(error).split()) or type(error).__name__
            if said.startswith("Dataset not found or corrupted"):
                said = "a file is missing, or is not the published one by its checksum"
            remedy = f"remove it and fetch it again: {command}"
            if self.download and not place.exists():
                raise DataError(f"{self.name} could not be fetched to {root}: {said}") from error
            raise DataError(f"{place} is not a whole copy of {self.name} ({said}): {remedy}") from error
        return examples


class Cifar10(Published):
    """60,000 small photographs of 32x32; the last 10,000 are the test set. Mean and std are of the training pixels.

    Its files are pickles: torchvision reads none whose checksum is not the published one.
    """

    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    size = (32, 32)
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)
    flip = True
    published = (50_000, 10)
    citation = "Krizhevsky 2009, Learning multiple layers of features from tiny images"

    name = "cifar10"
    reader = "cifar.CIFAR10"
    folder = "cifar-10-batches-py"
    parts: ClassVar = {"train": {"train": True}, "test": {"train": False}}

    def examples(self, found: Any) -> Pixels:
        return held(found.data.transpose(0, 3, 1, 2), found.targets)


class Cifar100(Cifar10):
    """CIFAR-10's sibling with 100 classes of 600 images; mean and std are of its own training pixels."""

    classes = words(
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
    reader = "cifar.CIFAR100"
    folder = "cifar-100-python"


class Svhn(Published):
    """House numbers, cropped to one digit of 32x32: 73,257 to train and 26,032 to test; the extra ones are not read.

    Mean and std are of the training pixels.
    """

    classes = tuple("0123456789")
    size = (32, 32)
    mean = (0.4377, 0.4438, 0.4728)
    std = (0.1980, 0.2010, 0.1970)
    flip = False
    citation = "Netzer et al. 2011, Reading digits in natural images with unsupervised feature learning"

    name = "svhn"
    reader = "svhn.SVHN"
    folder = "train_32x32.mat"
    parts: ClassVar = {"train": {"split": "train"}, "test": {"split": "test"}}

    def examples(self, found: Any) -> Pixels:
        return held(found.data, found.labels)


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

    name = "stl10"
    reader = "stl10.STL10"
    folder = "stl10_binary"

    def kind(self) -> Any:
        whole = super().kind()
        return type("Labelled", (whole,), {"train_list": whole.train_list[:2]})


def held(pixels: np.ndarray, labels: Sequence[int] | np.ndarray) -> Pixels:
    """Pixels in memory, from an array (n, c, y, x) of any strides."""
    return Pixels(torch.from_numpy(np.ascontiguousarray(pixels)), np.asarray(labels))


@dataclass(kw_only=True)
class Listed(Published):
    """Sets of image files. Mean and std are ImageNet's where a kind states no others of its own."""

    size = None
    mean = MEAN
    std = STD
    flip = True

    counts: ClassVar[dict[str, int]]  # images of each split that a whole copy has

    def checked(self, split: str, arguments: dict[str, Any]) -> Examples:
        examples = super().checked(split, arguments)
        if len(examples) != self.counts[split]:
            raise DataError(
                f"{Path(self.root or 'data') / self.folder} has {len(examples):,} {split} images, and {self.name} has"
                f" {self.counts[split]:,}: remove it and fetch it again: vitlab train dataset={self.name}"
                " dataset.download=true"
            )
        return examples

    def examples(self, found: Any) -> Files:
        here, known = [readable(name) for name in self.names(found)], [name.lower() for name in self.classes]
        if here != known:
            odd = ", ".join(sorted(set(here) ^ set(known))[:5])
            raise DataError(f"it has {len(here)} classes of {len(known)}; not in both: {odd}")
        pairs = [(Path(path), label) for path, label in self.pairs(found)]
        files = {file for folder in {path.parent for path, _ in pairs} for file in folder.iterdir()}
        lost = [path for path, _ in pairs if path not in files]
        if lost:
            raise DataError(f"{len(lost)} of {len(pairs)} images are missing, such as {lost[0].name}")
        return Files([path for path, _ in pairs], np.array([label for _, label in pairs]), "RGB")

    def names(self, found: Any) -> Sequence[str]:
        """The classes that there are in the files, where these say so."""
        return self.classes

    def pairs(self, found: Any) -> Sequence[tuple[str | Path, int]]:
        """The files, and the class of each."""
        return list(zip(found._image_files, found._labels, strict=True))


def readable(name: str) -> str:
    """The class of a folder in plain words: `baby_back_ribs`, `AnnualCrop`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", name).lower()


class Flowers102(Listed):
    """8,189 photographs of flowers of 102 kinds, with a validation split of its own; 10 images a kind to train."""

    classes = words(
        "pink primrose,hard-leaved pocket orchid,canterbury bells,sweet pea,english marigold,tiger lily,moon orchid,"
        "bird of paradise,monkshood,globe thistle,snapdragon,colt's foot,king protea,spear thistle,yellow iris,"
        "globe-flower,purple coneflower,peruvian lily,balloon flower,giant white arum lily,fire lily,pincushion flower,"
        "fritillary,red ginger,grape hyacinth,corn poppy,prince of wales feathers,stemless gentian,artichoke,"
        "sweet william,carnation,garden phlox,love in the mist,mexican aster,alpine sea holly,ruby-lipped cattleya,"
        "cape flower,great masterwort,siam tulip,lenten rose,barbeton daisy,daffodil,sword lily,poinsettia,"
        "bolero deep blue,wallflower,marigold,buttercup,oxeye daisy,common dandelion,petunia,wild pansy,primula,"
        "sunflower,pelargonium,bishop of llandaff,gaura,geranium,orange dahlia,pink-yellow dahlia,cautleya spicata,"
        "japanese anemone,black-eyed susan,silverbush,californian poppy,osteospermum,spring crocus,bearded iris,"
        "windflower,tree poppy,gazania,azalea,water lily,rose,thorn apple,morning glory,passion flower,lotus,toad lily,"
        "anthurium,frangipani,clematis,hibiscus,columbine,desert-rose,tree mallow,magnolia,cyclamen,watercress,"
        "canna lily,hippeastrum,bee balm,ball moss,foxglove,bougainvillea,camellia,mallow,mexican petunia,bromelia,"
        "blanket flower,trumpet creeper,blackberry lily"
    )
    citation = "Nilsback and Zisserman 2008, Automated flower classification over a large number of classes"

    name = "flowers102"
    reader = "flowers102.Flowers102"
    folder = "flowers-102"
    parts: ClassVar = {"train": {"split": "train"}, "validation": {"split": "val"}, "test": {"split": "test"}}
    counts: ClassVar = {"train": 1020, "validation": 1020, "test": 6149}


class OxfordPets(Listed):
    """7,349 photographs of cats and dogs of 37 breeds, half of them the test set."""

    classes = words(
        "Abyssinian,American Bulldog,American Pit Bull Terrier,Basset Hound,Beagle,Bengal,Birman,Bombay,Boxer,"
        "British Shorthair,Chihuahua,Egyptian Mau,English Cocker Spaniel,English Setter,German Shorthaired,"
        "Great Pyrenees,Havanese,Japanese Chin,Keeshond,Leonberger,Maine Coon,Miniature Pinscher,Newfoundland,Persian,"
        "Pomeranian,Pug,Ragdoll,Russian Blue,Saint Bernard,Samoyed,Scottish Terrier,Shiba Inu,Siamese,Sphynx,"
        "Staffordshire Bull Terrier,Wheaten Terrier,Yorkshire Terrier"
    )
    citation = "Parkhi, Vedaldi, Zisserman and Jawahar 2012, Cats and dogs"

    name = "oxford_pets"
    reader = "oxford_iiit_pet.OxfordIIITPet"
    folder = "oxford-iiit-pet"
    parts: ClassVar = {"train": {"split": "trainval"}, "test": {"split": "test"}}
    counts: ClassVar = {"train": 3680, "test": 3669}

    def names(self, found: Any) -> Sequence[str]:
        return found.classes

    def pairs(self, found: Any) -> Sequence[tuple[str | Path, int]]:
        return list(zip(found._images, found._labels, strict=True))


class Food101(Listed):
    """101,000 photographs of dishes, at most 512 pixels a side; the training labels are noisy on purpose."""

    classes = words(
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
    reader = "food101.Food101"
    folder = "food-101"
    parts: ClassVar = {"train": {"split": "train"}, "test": {"split": "test"}}
    counts: ClassVar = {"train": 75_750, "test": 25_250}

    def names(self, found: Any) -> Sequence[str]:
        return found.classes


@dataclass(kw_only=True)
class EuroSat(Listed):
    """27,000 satellite pictures of land, 64x64 files, with no split of its own: the test images are a slice as well.

    Mean and std are the commonly published ones of all its pixels.

    Args:
        test_fraction: share of all images kept for the test.
    """

    classes = (
        "annual crop",
        "forest",
        "herbaceous vegetation",
        "highway",
        "industrial",
        "pasture",
        "permanent crop",
        "residential",
        "river",
        "sea lake",
    )
    mean = (0.3444, 0.3803, 0.4078)
    std = (0.2037, 0.1366, 0.1148)
    citation = "Helber, Bischke, Dengel and Borth 2019, EuroSAT: a novel dataset for land use classification"

    name = "eurosat"
    reader = "eurosat.EuroSAT"
    folder = "eurosat"
    parts: ClassVar = {"train": {}}
    counts: ClassVar = {"train": 27_000}

    test_fraction: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_test_fraction(self.test_fraction)

    def names(self, found: Any) -> Sequence[str]:
        return found.classes

    def pairs(self, found: Any) -> Sequence[tuple[str | Path, int]]:
        return found.samples

    def read(self) -> dict[str, Examples]:
        return with_test(super().read(), self.test_fraction, self.split_seed)


@dataclass(kw_only=True)
class Imagenette(Listed):
    """13,394 photographs of ten easy classes of ImageNet; its `val` is the test set.

    Args:
        copy: which of the three published copies: `full` size, or with a shorter side of 320 or 160 pixels.
    """

    classes = (
        "tench",
        "English springer",
        "cassette player",
        "chain saw",
        "church",
        "French horn",
        "garbage truck",
        "gas pump",
        "golf ball",
        "parachute",
    )
    citation = "Howard 2019, Imagenette: a smaller subset of 10 easily classified classes from ImageNet"

    name = "imagenette"
    reader = "imagenette.Imagenette"
    parts: ClassVar = {"train": {"split": "train"}, "test": {"split": "val"}}
    counts: ClassVar = {"train": 9469, "test": 3925}

    copy: Literal["full", "320px", "160px"]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.folder = "imagenette2" + {"full": "", "320px": "-320", "160px": "-160"}[self.copy]

    def kind(self) -> Any:
        return partial(super().kind(), size=self.copy)

    def names(self, found: Any) -> Sequence[str]:
        return [names[0] for names in found.classes]

    def pairs(self, found: Any) -> Sequence[tuple[str | Path, int]]:
        return found._samples
