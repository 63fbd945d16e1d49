"""The table of metrics: everything that is measured, and what is known of each number.

A new metric is one line of `TABLE` and the code that computes it.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import Any, Literal

from vitlab.config.errors import ConfigError
from vitlab.config.groups import nearest

NONE = "\N{EN DASH}"  # where nothing is known
FAMILY = re.compile(r"(?<=/)[1-9]\d{0,5}(?=-)")  # the 5 of test/5-shot, which stands in the table as test/K-shot


def number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def si(value: float | None, unit: str = "") -> str:
    """Three digits and a prefix: 58234 is '58.2 k'; a dash for None."""
    if value is None or not number(value):
        return NONE
    power = 0
    while abs(value) >= 999.5 and power < 6:
        value, power = value / 1000, power + 1
    digits = f"{value:.3g}" if power == 0 else f"{value:.{2 - min(2, int(math.log10(abs(value))))}f}"
    return f"{digits} {('', 'k', 'M', 'G', 'T', 'P', 'E')[power]}{unit}".rstrip()


def duration(seconds: float | None) -> str:
    """Two units of time: '42 s', '3 min 20 s', '2 h 05 min', '3 d 4 h'; a dash for None."""
    if seconds is None or not number(seconds):
        return NONE
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {left:02d} s"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number that is measured.

    Args:
        name: its key in metrics.jsonl and result.json, such as val/loss.
        words: its name in tables and figures.
        source: a row of training; or result.json: of the validation images, the test images, or the whole run; or a
            benchmark, in sweeps that train nothing.
        higher_is_better: its direction.
        unit: of the number as it is stored; empty for a pure number, and where `words` name it.
        share: whether it lies in 0 ... 1 and is shown in percent.
        cost: whether it says what a run costs, so that an axis of a figure can be made of it.
        form: how it is printed.
        count: of a family, what its number is: 5 of test/5-shot.
    """

    name: str
    words: str
    source: Literal["row", "validation", "test", "result", "bench"]
    higher_is_better: bool = False
    unit: str = ""
    share: bool = False
    cost: bool = False
    form: Callable[[float], str] = "{:.4g}".format
    count: int | None = None

    @property
    def family(self) -> bool:
        """Whether its name in the table stands for many: K-shot."""
        return "K" in self.name

    @property
    def sign(self) -> int:
        """1 where higher is better, else -1."""
        return 1 if self.higher_is_better else -1

    @property
    def goal(self) -> Literal["maximize", "minimize"]:
        """The direction as Optuna and W&B call it."""
        return "maximize" if self.higher_is_better else "minimize"

    @property
    def scale(self) -> int:
        """From the number as it is stored to the number in tables and figures."""
        return 100 if self.share else 1

    @property
    def heading(self) -> str:
        """Its name with its unit."""
        unit = "%" if self.share else self.unit
        return f"{self.words} ({unit})" if unit else self.words

    @property
    def validation(self) -> "Metric":
        """The validation metric that arms are chosen by in its place, as none is chosen by a test score."""
        if self.source == "test":
            name, words = f"val/{self.name.partition('/')[2]}", f"validation {self.words.partition(' ')[2]}"
            return replace(self, name=name, words=words, source="validation")
        return self if self.source == "validation" else SELECTED_BY

    @property
    def per_evaluation(self) -> "Metric":
        """The same where every evaluation of a training has it, for learning curves and searches; else the accuracy."""
        return self.validation if self.validation.count is None else SELECTED_BY

    def format(self, value: float | None) -> str:
        """With its unit, or in percent: 99.31%, 13.7 k, 1 min 13 s; a dash where it is not known."""
        return NONE if value is None or not number(value) else self.form(value)

    def cell(self, value: float, sign: str = "") -> str:
        """Under its heading, without unit; `sign` is '+' for a difference."""
        return f"{100 * value:{sign}.2f}" if self.share else f"{value:{sign}.4g}"


SOURCES: dict[str, Any] = {"train": "row", "val": "validation", "test": "test", "inference": "bench"}
IN_WORDS = {"train": "training", "val": "validation", "macro_f1": "macro F1", "roc_auc": "ROC-AUC"}
ACCURACY: dict[str, Any] = {"higher_is_better": True, "share": True, "form": "{:.2%}".format}
COUNT: dict[str, Any] = {"form": "{:,.0f}".format}


def of_kind(names: str, **known: Any) -> list[Metric]:
    """Metrics with the same properties; their sources and words, where not given, are those of their names."""
    found = []
    for name in names.split():
        split, _, rest = name.rpartition("/")
        words = f"{IN_WORDS.get(split, split)} {IN_WORDS.get(rest, rest.replace('_', ' '))}".strip()
        given: dict[str, Any] = {"source": SOURCES.get(split, "result"), "words": words} | known
        found.append(Metric(name=name, **given))
    return found


TABLE = (
    *of_kind("train/loss val/loss test/loss", form="{:.3f}".format),
    *of_kind("train/accuracy val/accuracy test/accuracy", **ACCURACY),
    *of_kind("val/balanced_accuracy test/balanced_accuracy val/macro_f1 test/macro_f1", **ACCURACY),
    *of_kind("val/roc_auc test/roc_auc", higher_is_better=True, form="{:.4f}".format),
    *of_kind("val/K-shot test/K-shot", **ACCURACY),
    *of_kind("val/K-shot_std test/K-shot_std", share=True, form="{:.2%}".format),
    *of_kind("train/gradient_norm"),
    *of_kind("train/skipped train/rolled_back_to", **COUNT),
    *of_kind("step epoch lr", source="row"),
    *of_kind("parameters", cost=True, form=si),
    *of_kind("flops_per_image", words="FLOPs per image", cost=True, form=si),
    *of_kind("training_flops", words="training compute", unit="FLOPs", cost=True, form=si),
    *of_kind("images", words="training images", cost=True, form=si),
    *of_kind("images_per_second", words="images/s", cost=True, higher_is_better=True, form=si),
    *of_kind("data_wait", words="time spent waiting for images", share=True, form="{:.0%}".format),
    *of_kind("seconds", words="training time", unit="s", cost=True, form=duration),
    *of_kind("peak_memory_bytes", words="peak memory", unit="B", cost=True, form=partial(si, unit="B")),
    *of_kind("largest_batch", source="bench", cost=True, higher_is_better=True, **COUNT),
    *of_kind("inference/images_per_second", words="inference speed", unit="images/s", higher_is_better=True, form=si),
    *of_kind("batch", source="bench", **COUNT),
    *of_kind("steps best_step skipped rollbacks processes packed accumulate test_images", **COUNT),
    *of_kind("epochs"),
)
METRICS = {each.name: each for each in TABLE}
SELECTED_BY = METRICS["val/accuracy"]  # what weights, trials and arms are chosen by, unless something else is asked
TIES_BY = METRICS["val/loss"]  # which of two evaluations is the better one, where that is the same
COSTS = tuple(each.name for each in TABLE if each.cost)


def find(name: str) -> Metric | None:
    """What is known of a metric; None where nothing is."""
    family = FAMILY.search(name)
    found = METRICS.get(FAMILY.sub("K", name))
    if found is None or found.family != bool(family):
        return None
    if family is None:
        return found
    return replace(found, name=name, words=found.words.replace("K", family[0]), count=int(family[0]))


def metric(name: str) -> Metric:
    """What is known of a metric.

    Raises:
        ConfigError: there is none of that name; the message begins with the name.
    """
    if (found := find(name)) is None:
        known = [each.name.replace("/K-", "/5-") for each in TABLE if each.source != "row"]
        raise ConfigError(f"{name}: there is no such metric{nearest(name, known)} (there are {', '.join(known)})")
    return found


def metric_of(search: Mapping[str, Any]) -> Metric:
    """The metric that a recorded search optimized; an earlier vitlab did not record it."""
    return metric(search.get("metric", SELECTED_BY.name))


def rank(scores: Mapping[str, Any], by: str = SELECTED_BY.name) -> tuple[float, ...]:
    """Sort key of an evaluation's scores, which are named without their split: the largest one is the best.

    Args:
        scores: of one evaluation.
        by: name of the validation metric that counts.
    """
    return tuple(each.sign * scores[each.name.removeprefix("val/")] for each in (METRICS[by], TIES_BY))
