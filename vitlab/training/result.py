"""The end of a training: result.json, the exported weights, curves, few-shot accuracies."""

import logging
from typing import Any

from vitlab.config.identity import cell_identity
from vitlab.evaluation import classification, probe
from vitlab.model import count
from vitlab.storage import checkpoint, predictions
from vitlab.storage.run import Run
from vitlab.system.hardware import describe, peak_memory
from vitlab.system.parallelize import eagerly
from vitlab.tracking import curves
from vitlab.tracking.options import ValidationMedia
from vitlab.tracking.tracker import Tracker
from vitlab.training.batches import eval_batches
from vitlab.training.recipe import TrainingSetup
from vitlab.training.state import TrainState

log = logging.getLogger("vitlab")


def finish(
    state: TrainState, run: Run, config: dict[str, Any], tracker: Tracker, test: dict[str, float]
) -> dict[str, Any]:
    """Writes what came out of a training, whose model has the best weights, and gives the contents of result.json."""
    setup, dist = state.setup, state.setup.dist
    correct = state.evaluate.correct()  # of the test images
    result = summarise(state, config, test) | few_shot(setup)
    media = None
    if dist.broadcast(tracker.wants_media) and setup.vit.objective.classifies:
        batches = eval_batches(setup, "validation")
        probabilities, labels = classification.predictions(setup.model, batches, dist, setup.precision)
        report = classification.ClassificationReport.of(probabilities, labels, setup.dataset.classes)
        media = ValidationMedia(report, setup.splits["validation"])
    tracker.finish(result, media)
    if dist.is_rank0:
        facts = {"facts": setup.model_facts(), "wrote": state.wrote, "model": config["model"]}
        try:
            if correct is not None:
                predictions.write(run, correct)
            checkpoint.export(run.export, state.weights, facts)
            curves.draw(run.rows(), run.curves, run.folder.name)
        except OSError as error:  # a full disk; best.pt and metrics.jsonl are there
            log.warning("%s: the weights are in best.pt, the curve in metrics.jsonl", error)
        run.write_result(result)
    dist.barrier()
    return result


def summarise(state: TrainState, config: dict[str, Any], test: dict[str, float]) -> dict[str, Any]:
    """What result.json says of a finished training."""
    setup, best = state.setup, state.best
    assert best is not None
    return {
        "status": "finished",
        **{f"val/{name}": value for name, value in best.items() if name != "step"},
        **{f"test/{name}": value for name, value in test.items()},
        "best_step": best["step"],
        "best_by": setup.fit.best,
        "steps": state.step,
        "epochs": state.step / setup.steps_per_epoch,
        "seconds": state.seconds,
        "images_per_second": state.meter.images_per_second(),
        "data_wait": state.meter.data_wait(),
        "parameters": count.parameters(setup.vit),
        "flops_per_image": setup.flops,
        "training_flops": state.flops,
        "peak_memory_bytes": peak_memory(setup.dist.device),
        "precision": setup.precision,
        "processes": setup.dist.size,
        "packed": max(1, state.packed),
        "accumulate": state.accumulation_steps,
        "skipped": state.skipped,
        "rollbacks": state.rollbacks,
        "device": describe(setup.dist.device),
        "test_images": len(setup.splits["test"]),
        "classifies": setup.vit.objective.classifies,
        "seed": setup.seed,
        "cell": cell_identity(config),
    }


def few_shot(setup: TrainingSetup) -> dict[str, float]:
    """Few-shot accuracies of the model's features on validation and test images; empty unless fit.shots asks."""
    found: dict[str, float] = {}
    if not setup.fit.shots:
        return found

    def features(split: str) -> probe.Features:
        with eagerly(bool(setup.system.compile)):
            return probe.features(setup.model, eval_batches(setup, split), setup.dist, setup.precision)

    shape = (probe.DRAWS, len(setup.dataset.classes), max(setup.fit.shots), -1)
    support = features("support").values.reshape(shape)
    for short, split in (("val", "validation"), ("test", "test")):
        for shots, accuracies in probe.few_shot(support, features(split), setup.fit.shots).items():
            found[f"{short}/{shots}-shot"] = sum(accuracies) / len(accuracies)
            found[f"{short}/{shots}-shot_std"] = probe.standard_deviation(accuracies) or 0.0
    return found
