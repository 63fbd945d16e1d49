"""The Optuna study of a search: its distributions, sampler, pruner and storage.

Optuna's TPE, random sampler, pruners, journal and queue of trials are used. Its other parts would cost: GridSampler
ends in a RuntimeError outside of `optimize`; QMCSampler draws choices from a list, and its first trial, at random; its
retries need a database with heartbeats; and its file lock delays a search that follows a killed one by 30 seconds.
"""

import itertools
import json
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitlab.config.errors import SweepError
from vitlab.storage.metrics import SELECTED_BY, metric
from vitlab.storage.run import Run
from vitlab.sweep.plan import Plan, outdated_runs
from vitlab.sweep.question import Dimension, Search

if TYPE_CHECKING:
    import optuna

REFUSED = 10  # a search ends if its first 10 trials are all invalid, or 10 times as many as it has trials
PEERS = 5  # finished trials before the median prunes
REDUCTION = 3  # one trial of 3 continues at each rung of successive halving
ENOUGH = 5  # finished trials before importance is estimated


def search_of(plan: Plan) -> Search:
    search = plan.question.search
    if search is None or not search.space:
        raise SweepError(f"{plan.question.file}: search.space is empty: name what is searched, KEY: log: [1e-4, 1e-2]")
    return search


def require_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise SweepError("a search needs Optuna, which is not installed: uv sync --extra optuna") from None


@contextmanager
def quiet() -> Generator[None]:
    """Silences the logging and the experimental warnings of Optuna."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def distribution(dimension: Dimension) -> "optuna.distributions.BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    values = dimension.values
    if dimension.kind == "choice":
        return CategoricalDistribution(values)
    if dimension.kind == "int":
        return IntDistribution(int(values[0]), int(values[1]))
    return FloatDistribution(float(values[0]), float(values[1]), log=dimension.kind == "log")


def derive_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def sampler(search: Search, seed: int, place: int) -> "optuna.samplers.BaseSampler":
    """The sampler of one trial: what it draws depends on the seed, the trial's place and the trials before it, and not
    on how often the search was interrupted."""
    from optuna.samplers import RandomSampler, TPESampler

    of = derive_seed(seed, place)
    if search.method == "tpe":  # running trials count as bad, so that others go elsewhere
        return TPESampler(seed=of, multivariate=True, constant_liar=True)
    return RandomSampler(seed=of)


def design(search: Search, seed: int) -> list[dict[str, Any]] | None:
    """All trials of a grid, in random order, or of a scrambled Sobol sequence (Owen 1998); None for other methods."""
    space = search.space
    if search.method == "grid":
        points = list(itertools.product(*(each.values for each in space)))
        order = np.random.default_rng(derive_seed(seed)).permutation(len(points))
        return [dict(zip((each.key for each in space), points[i], strict=True)) for i in order]
    if search.method == "sobol":
        from scipy.stats import qmc

        wanted = 2 * search.trials + REFUSED  # some are refused
        sobol = qmc.Sobol(len(space), rng=np.random.default_rng(derive_seed(seed)))
        return [
            {each.key: value_at(each, float(fraction)) for each, fraction in zip(space, row, strict=True)}
            for row in sobol.random_base2(int(np.ceil(np.log2(wanted))))
        ]
    return None


def value_at(dimension: Dimension, fraction: float) -> Any:
    """The value of a dimension at a fraction of its range, from 0 to less than 1."""
    values = dimension.values
    if dimension.kind == "choice":
        return values[int(fraction * len(values))]
    if dimension.kind == "int":
        low, high = map(int, values)
        return low + int(fraction * (high - low + 1))
    low, high = map(float, values)
    if dimension.kind == "log":
        return min(high, max(low, float(np.exp(np.log(low) + fraction * (np.log(high) - np.log(low))))))
    return low + fraction * (high - low)


def pruner(rule: str) -> "optuna.pruners.BasePruner":
    from optuna.pruners import MedianPruner, NopPruner, SuccessiveHalvingPruner

    if rule == "median":
        return MedianPruner(n_startup_trials=PEERS)
    if rule == "asha":
        return SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION)
    return NopPruner()


def drop_partial_line(path: Path) -> None:
    """Removes the last line of a file if a killed process left it incomplete."""
    if path.exists() and (data := path.read_bytes()) and not data.endswith(b"\n"):
        with path.open("rb+") as file:
            file.truncate(data.rfind(b"\n") + 1)


def load(plan: Plan) -> "optuna.Study":
    """The study, new or continued; the caller holds `search.lock`.

    Raises:
        SweepError: the file is damaged, or holds another search.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    search, path = search_of(plan), plan.folder / "study.log"
    of = metric(plan.question.metric).per_evaluation
    drop_partial_line(path)
    lock: Any = threading.Lock()  # other processes are kept out by `search.lock`
    try:
        storage = JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
        study = optuna.create_study(
            study_name="search",
            storage=storage,
            direction=of.goal,
            pruner=pruner(search.prune),
            load_if_exists=True,
        )
        study.get_trials(deepcopy=False)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError) as error:
        raise SweepError(
            f"{path} is damaged ({error!r}): move it away; finished trainings are not trained again"
        ) from error
    baseline = next(cell for cell in plan.cells if cell.baseline)
    names = {trial.user_attrs["run"] for trial in study.get_trials(deepcopy=False) if "run" in trial.user_attrs}
    changed = outdated_runs([Run(plan.runs / name) for name in sorted(names)], baseline)
    if changed and not baseline.config["system"]["changed_data"]:
        raise SweepError(
            f"{path} holds a trial that {next(iter(changed.values()))}: move it away and give"
            " system.retrain=true to search anew, or system.changed_data=true to go on all the same"
        )
    mine = json.dumps(
        {
            "method": search.method,
            "seed": plan.question.seeds[0],
            "space": {each.key: [each.kind, *each.values] for each in search.space},
            "baseline": baseline.identity,
            **({} if of == SELECTED_BY else {"metric": of.name}),
        }
    )
    if (there := study.user_attrs.get("of")) is None:
        study.set_user_attr("of", mine)
    elif there != mine:
        was, now = ({"metric": SELECTED_BY.name, **json.loads(text)} for text in (there, mine))
        odd = next((key for key in now if was.get(key) != now[key]), "space")
        raise SweepError(
            f"{path} holds a search with another {odd} ({was.get(odd)}, and now {now[odd]}): move that file away to"
            " search anew, finished trainings are not trained again; or give the sweep file another name"
        )
    return study


def importance(study: "optuna.Study", seed: int) -> dict[str, float]:
    """The fraction of the variance of the finished trials that each hyper-parameter explains (fANOVA, Hutter et al.
    2014); empty with too few trials or too little variance."""
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(finished) < ENOUGH or len(finished[0].params) < 2 or len({trial.value for trial in finished}) < 2:
        return {}
    try:
        found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=seed))
    except (ValueError, RuntimeError, ArithmeticError, ImportError):
        return {}
    return {key: float(value) for key, value in found.items() if np.isfinite(value)}
