"""Linear probe: how well a linear classifier tells classes apart by the frozen image tower's features.

The features are the mean of the tower's patch tokens, as they are: neither normalised nor brought to one scale, as in
FILIP's and CLIP's probes, which leave that to the regularisation.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from filip_jax.cluster import service
from filip_jax.data.pipeline import batches
from filip_jax.data.sources import Source, fingerprint, make_source
from filip_jax.errors import UserError
from filip_jax.evals import logistic
from filip_jax.evals.rates import TOP, accuracies
from filip_jax.evals.records import classes_of, labelled_views
from filip_jax.inference import Embedder
from filip_jax.mesh import check_batch_size, global_batch
from filip_jax.models import POOLINGS
from filip_jax.progress import Progress
from filip_jax.sections import at_least, call, choose

# CLIP's search (arXiv 2103.00020, appendix A.3): powers of ten a hundred apart, then halfway to the best one's
# neighbours, and so on, down to eighths of a power.
EIGHTHS, COARSE, HALVINGS = range(-48, 49), 16, (8, 4, 2, 1)
AUGMENT = {"min_area": 0.08, "flip": True, "colour_jitter": 0.0, "auto_augment": False}
CLIP_BENCHMARK = ("linear_probe", {"lp_acc1": "top1", "lp_acc5": "top5", "lp_mean_per_class_recall": "per_class"})
HELD_OUT = 10  # one training image in so many chooses the regularisation


def evaluate(
    model: Embedder,
    source: Source,
    output: Path,
    *,
    training: Mapping[str, Any],
    pooling: str = "tokens",
    protocol: Any = "lbfgs",
) -> dict:
    """Top-1 and top-5 of every labelled image of the source, by a classifier that is trained on other images.

    Memory: the features of all training images, once on the host and once shared by the devices of the model's mesh.

    Args:
        training: a source section of labelled images of the same classes, in the same order.
        pooling: "tokens" is the mean of the patches, the paper's; "global" the class token.
        protocol: "lbfgs", the paper's for all sets but ImageNet, or "sgd", its for ImageNet; or a section of the name
            and the options that `by_lbfgs` and `by_sgd` take.

    Returns:
        top1 and top5, each with the bounds _low and _high of its 95 % interval; per_class, the mean over the classes;
        images and training_images; what the protocol says of itself.

    Raises:
        UserError: sources of different classes or without labels, an unknown protocol or an option that cannot be.
    """
    if pooling not in POOLINGS:
        raise UserError(f"linear_probe.pooling={pooling!r} is not one of {', '.join(POOLINGS)}")
    others = make_source(training, "linear_probe.training")
    classes, named = (
        classes_of(each, "linear_probe", place) for each, place in ((source, "source"), (others, "training"))
    )
    if fingerprint(source) == fingerprint(others):
        raise UserError(
            "linear_probe: training is the source itself, whose images would be counted that were learnt from"
        )
    if list(classes) != list(named):
        here, there = _first_difference(classes, named)
        raise UserError(
            f"linear_probe: source and training must have the same class names in the same order; source has {here}, "
            f"training {there}"
        )
    options = dict(protocol) if isinstance(protocol, Mapping) else {"name": protocol}
    train = choose(PROTOCOLS, options.pop("name", ""), "linear_probe.protocol.name")
    classifier, numbers = call(train, options, "linear_probe.protocol", model=model, training=others, pooling=pooling)
    features, labels = collect(model, source, pooling)
    rank = logistic.ranks(classifier, logistic.put_examples(features, labels, model.mesh))
    counts = {"images": len(labels), "training_images": len(others), "classes": len(classes)}
    return accuracies(rank, labels) | counts | numbers


def _first_difference(here: Sequence[str], there: Sequence[str]) -> tuple[str, str]:
    for number, (one, other) in enumerate(zip(here, there)):
        if one != other:
            return f"{one!r} as class {number}", f"{other!r} as class {number}"
    return f"{len(here)} classes", f"{len(there)}"


def baselines(
    source: Source,
    *,
    training: Mapping[str, Any],
    pooling: str = "tokens",
    protocol: Any = "lbfgs",
) -> dict[str, dict]:
    """Chance."""
    return {"chance": {f"top{k}": min(k / len(classes_of(source, "linear_probe")), 1.0) for k in TOP}}


def collect(
    model: Embedder, source: Source, pooling: str
) -> tuple[Float[np.ndarray, "n width"], Int[np.ndarray, " n"]]:
    """The features and labels of all records; two batches of pictures are in memory."""
    progress = Progress("features of images", len(source))
    features, labels = np.empty((0, 0)), list[int | None]()
    with closing(labelled_views(source, "linear_probe", model.image_size, model.batch_size, model.framing)) as records:
        while batch := list(islice(records, model.batch_size)):
            found = model.image_features([record.image for record in batch], pooling)
            if not labels:
                features = np.empty((len(source), found.shape[1]), np.float32)
            features[len(labels) : len(labels) + len(batch)] = found
            labels.extend(record.label for record in batch)
            progress.advance(len(batch))
            del batch  # before the next one is there
    return features, np.array(labels, np.int32)


def by_lbfgs(
    model: Embedder,
    training: Source,
    pooling: str,
    *,
    regularisation: Sequence[Any] | float = (),
    max_iterations: int = 1000,
    tolerance: float = 1e-4,
) -> tuple[logistic.Classifier, dict[str, Any]]:
    """Logistic regression with an L2 penalty on all training images at once, see `logistic.fit`.

    Args:
        regularisation: scikit-learn's C, the inverse of the penalty's strength. The best of several on a tenth of the
            training images is chosen, and the classifier then trained on all of them. By default CLIP's search
            from 1e-6 to 1e6; one value is taken as it is.
        max_iterations, tolerance: where a fit ends; scikit-learn's `max_iter` and `tol`.

    Returns:
        The classifier, and: C, the regularisation that was chosen; iterations of the last fit, and whether it has
        converged (1 or 0).
    """
    at_least(1, "linear_probe.protocol", max_iterations=max_iterations)
    at_least(0, "linear_probe.protocol", tolerance=tolerance)
    regularisation = regularisation if isinstance(regularisation, (list, tuple)) else (regularisation,)
    for c in regularisation:
        if isinstance(c, bool) or not isinstance(c, int | float) or not 0 < c < np.inf:
            raise UserError(f"linear_probe.protocol.regularisation={c!r} is not a number above 0")
    fits = len(regularisation) or len(EIGHTHS[::COARSE]) + 2 * len(HALVINGS)
    features, labels = collect(model, training, pooling)
    mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    features -= mean  # moves no minimum: the bias takes it up, and has no penalty
    examples, classes = logistic.put_examples(features, labels, model.mesh), len(classes_of(training, "linear_probe"))
    progress = Progress("linear probe, iterations at most", (fits + (fits > 1)) * max_iterations)

    def fit(chosen, c):
        found = logistic.fit(
            examples, chosen, classes, c, max_iterations=max_iterations, tolerance=tolerance, advance=progress.advance
        )
        progress.spare(max_iterations - found[1])
        return found

    def right(c):
        return int((logistic.ranks(fit(~held_out, c)[0], examples)[held_out] == 1).sum())

    if fits == 1:
        (c,) = regularisation
    else:
        held_out = validation_split(labels)
        c = best_regularisation(right, regularisation)
    classifier, iterations, converged = fit(np.ones(len(labels), bool), c)
    classifier["bias"] -= mean @ classifier["weight"]
    return classifier, {"C": float(c), "iterations": iterations, "converged": int(converged)}


def validation_split(labels: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Which images choose the regularisation: the same tenth whenever the labels are the same, a tenth of each class.

    Raises:
        UserError: fewer than HELD_OUT images.
    """
    if len(labels) < HELD_OUT:
        raise UserError(
            f"linear_probe: a tenth of the training images chooses the regularisation, but there are {len(labels)}; "
            "give one value: regularisation=(1.0,)"
        )
    shuffled = np.random.Generator(np.random.Philox(key=0)).random(len(labels))
    held_out = np.zeros(len(labels), bool)
    held_out[np.lexsort((shuffled, labels))[HELD_OUT // 2 :: HELD_OUT]] = True
    return held_out


def best_regularisation(right: Callable[[float], int], regularisation: Sequence[float] = ()) -> float:
    """The C of these, or of CLIP's search, for which most is right; of equals the smallest."""
    if regularisation:
        found = {c: right(c) for c in sorted(regularisation)}
        return max(found, key=found.__getitem__)
    found = {n: right(10 ** (n / 8)) for n in EIGHTHS[::COARSE]}
    for step in HALVINGS:
        best = max(sorted(found), key=found.__getitem__)
        found |= {n: right(10 ** (n / 8)) for n in (best - step, best + step) if n in EIGHTHS}
    return 10 ** (max(sorted(found), key=found.__getitem__) / 8)


def by_sgd(
    model: Embedder,
    training: Source,
    pooling: str,
    *,
    epochs: float = 90,
    warmup_epochs: float = 10,
    batch_size: int = 4096,
    base_learning_rate: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    augment: Mapping[str, Any] = AUGMENT,
    seed: int = 0,
    workers: int = 0,
    threads: int = 8,
) -> tuple[logistic.Classifier, dict[str, Any]]:
    """SGD on ever new views of the training images, with FILIP's numbers for ImageNet; see `logistic.Sgd`.

    Batches run across the epochs, and the view of an image in an epoch depends on the seed and the data only.

    Args:
        epochs, warmup_epochs: to the end, and to the highest learning rate.
        batch_size: over all devices; it must split evenly over them.
        base_learning_rate: of 256 images; the highest is this * batch_size / 256, as in MAE's and MoCo's probes.
        augment: what differs from AUGMENT, the arguments of `training_views`: a crop of 8 to 100 % of the picture, and
            half of the views mirrored.
        workers, threads: processes that prepare batches, and threads of each; they change no result.

    Returns:
        The classifier, and: steps.
    """
    place = "linear_probe.protocol"
    at_least(0, place, warmup_epochs=warmup_epochs, base_learning_rate=base_learning_rate, weight_decay=weight_decay)
    at_least(2, place, batch_size=batch_size)
    if not 0 <= momentum < 1:
        raise UserError(f"{place}.momentum={momentum} must be at least 0 and below 1")
    if not warmup_epochs < epochs:
        raise UserError(f"{place}.epochs={epochs} must be above warmup_epochs={warmup_epochs}")
    check_batch_size(batch_size, model.mesh)
    rows = batches(
        training, model.tokenizer, batch_size=batch_size, image_size=model.image_size, text_length=model.text_length,
        augment=AUGMENT | dict(augment), shuffle="global", block_size=1, max_bad_fraction=0.0, seed=seed,
        workers=workers, threads=threads, start=0,
        process_index=jax.process_index(), process_count=jax.process_count(), framing=model.framing,
    )  # fmt: skip
    total, classes = max(round(epochs * len(training) / batch_size), 1), len(classes_of(training, "linear_probe"))
    sgd: Any = None  # made of the first features, which have its width
    progress = Progress("linear probe, steps", total)
    with closing(rows):
        for _ in range(total):
            here, wrong = _labelled(next(rows))
            if said := next(
                filter(None, service.gather(wrong)), ""
            ):  # one process alone would leave the others waiting
                raise UserError(said)
            batch = global_batch(model.mesh, here)
            features = model.features_of_views(batch["image"], pooling)
            sgd = sgd or logistic.Sgd(
                features.shape[1],
                classes,
                model.mesh,
                peak_learning_rate=base_learning_rate * batch_size / 256,
                momentum=momentum,
                weight_decay=weight_decay,
                warmup_steps=min(round(warmup_epochs * len(training) / batch_size), total - 1),
                total_steps=total,
            )
            sgd.step(features, batch["label"])
            progress.advance()
    return sgd.classifier, {"steps": total}


def _labelled(rows: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], str]:
    """The views and labels of a batch, and what is wrong with it: an evaluation replaces no record."""
    wrong = ""
    if rows["bad"]:
        bad = rows["bad"][0]
        wrong = f"linear_probe: training: record {bad.shard} {bad.key}: {bad.reason}"
    elif (rows["label"] < 0).any():
        index = rows["index"][rows["label"] < 0][0]
        wrong = f"linear_probe needs a source of labelled images; record {index} has no label"
    return {"image": rows["image"], "label": rows["label"]}, wrong


PROTOCOLS: dict[str, Callable[..., tuple[logistic.Classifier, dict[str, Any]]]] = {"lbfgs": by_lbfgs, "sgd": by_sgd}
