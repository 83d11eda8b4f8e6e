"""The estimators for scikit-learn: its own checks, its meta-estimators, and what they refuse."""

import os
import pickle
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import ROOT

import parallelcnn as pc
from parallelcnn.errors import InputError, ShapeError, TrainingWarning

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.estimator_checks import parametrize_with_checks

from parallelcnn.estimators import default_layers


def not_applicable(estimator):
    """The checks of scikit-learn that may fail, each with the reason."""
    found = {"check_sample_weight_equivalence_on_dense_data": "two equal samples are in different minibatches"}
    if isinstance(estimator, pc.CNNRegressor):  # whose predictions are float64, but computed in float32
        found["check_methods_subset_invariance"] = "other numbers of samples at once are rounded in another way"
    return found


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [pc.CNNClassifier(threads=1), pc.CNNRegressor(threads=1)], expected_failed_checks=not_applicable
)
def test_the_checks_of_scikit_learn_pass(estimator, check):
    with np.errstate(all="warn"):
        check(estimator)


def stripes(n=120, names=("earth", "fire", "water"), seed=0):
    """Images of 9 x 8 with a bright stripe at the place of their label."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 120, (n, 9, 8), dtype=np.uint8)
    labels = np.arange(n) % len(names)
    for image, label in zip(images, labels, strict=True):
        image[3 * label : 3 * label + 2] += 120
    return images, np.array(names)[labels]


def classifier(**settings):
    return pc.CNNClassifier(**{"epochs": 6, "random_state": 0, "threads": 1, **settings})


IMAGES, LABELS = stripes()


def test_images_are_classified_by_names_and_all_attributes_are_there():
    fitted = classifier().fit(IMAGES, LABELS)
    assert fitted.score(*stripes(60, seed=1)) > 0.9
    assert fitted.classes_.tolist() == ["earth", "fire", "water"]
    assert fitted.predict(IMAGES[:2]).tolist() == LABELS[:2].tolist()
    assert fitted.n_features_in_ == 72
    assert len(fitted.loss_curve_) == fitted.n_iter_ == 6
    assert fitted.loss_ == fitted.loss_curve_[-1] < fitted.loss_curve_[0]
    assert fitted.history_["test_accuracy"].shape == (6,)
    assert fitted.validation_scores_ is None
    assert fitted.network_.input_shape == (1, 9, 8)
    assert fitted.network_.predict_classes(IMAGES[:2]).tolist() == LABELS[:2].tolist()
    probabilities = fitted.predict_proba(IMAGES)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(fitted.predict_log_proba(IMAGES), np.log(probabilities))


def test_rows_are_images_of_the_given_shape_and_all_forms_of_images_are_alike():
    wanted = classifier().fit(IMAGES, LABELS).predict_proba(IMAGES)
    rows = IMAGES.reshape(len(IMAGES), -1)
    for image_shape, X in (((9, 8), rows), ([1, 9, 8], rows), (None, IMAGES[:, None]), ((9, 8), IMAGES[:, None])):
        fitted = classifier(image_shape=image_shape).fit(X, LABELS)
        for other in (X, IMAGES, rows):
            np.testing.assert_array_equal(fitted.predict_proba(other), wanted)


def test_only_pixels_are_scaled():
    """0 and 1 in uint8 are features as they are in a table, and nearly black pixels in images."""
    X = np.arange(40, dtype=np.uint8).reshape(20, 2) % 3
    y = X[:, 0] == 2
    as_features = classifier().fit(X, y)
    np.testing.assert_array_equal(as_features.predict_proba(X), as_features.predict_proba(X.astype(float)))
    as_pixels = classifier(image_shape=(1, 2)).fit(X, y)
    with pytest.warns(TrainingWarning, match="from 0 to 0.00784314, but the network was trained on"):
        np.testing.assert_allclose(as_pixels.predict_proba(X), as_pixels.predict_proba(X / 255), rtol=1e-5)


@pytest.mark.parametrize("seed", [0, np.random.RandomState(3)])
def test_a_seed_decides_the_result(seed):
    settings = {"model": "paper", "random_state": seed, "early_stopping": True, "epochs": 2}
    X = np.random.default_rng(0).integers(0, 256, (60, 16, 16), np.uint8)
    one = classifier(**settings).fit(X, LABELS[:60])
    if isinstance(seed, np.random.RandomState):
        another = one  # a generator goes on: the next fit differs
        again = classifier(**settings | {"random_state": np.random.RandomState(3)}).fit(X, LABELS[:60])
        assert classifier(**settings).fit(X, LABELS[:60]).loss_curve_ != one.loss_curve_
    else:
        another = classifier(**settings | {"random_state": 1}).fit(X, LABELS[:60])
        again = classifier(**settings).fit(X, LABELS[:60])
        assert another.loss_curve_ != one.loss_curve_
    assert again.loss_curve_ == one.loss_curve_
    assert again.network_.parameters_sha256() == one.network_.parameters_sha256()


def test_grid_search_on_two_processes_a_pipeline_clones_and_pickles():
    X, y = IMAGES.reshape(len(IMAGES), -1).astype(np.float64), LABELS
    pipeline = make_pipeline(StandardScaler(), classifier(image_shape=(9, 8), epochs=3))
    search = GridSearchCV(pipeline, {"cnnclassifier__learning_rate": [1e-7, 0.01]}, cv=2, n_jobs=2).fit(X, y)
    assert search.best_params_ == {"cnnclassifier__learning_rate": 0.01}
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(search)).predict_proba(X), search.predict_proba(X))
    copy = clone(search.best_estimator_)
    with pytest.raises(NotFittedError):
        copy.predict(X)
    assert copy.get_params()["cnnclassifier__learning_rate"] == 0.01
    assert cross_val_score(copy, X, y, cv=2).mean() > 0.8


LAYERS = (pc.Conv2D(4, 3, activation="relu"), pc.Flatten(), pc.Dense(3))


def outputs_of(classes):
    return (*LAYERS[:-1], pc.Dense(classes))


@pytest.mark.parametrize("model", [LAYERS, list(LAYERS), outputs_of])
def test_a_model_is_a_tuple_of_layers_or_a_function(model):
    fitted = clone(classifier(model=model, epochs=1)).fit(IMAGES, LABELS)
    assert fitted.network_.layers == LAYERS


def test_named_models_and_the_models_by_default_fit_any_image_size():
    for shape in ((1, 1, 1), (1, 5, 9), (3, 6, 6), (1, 28, 28), (3, 224, 200), (7,)):
        network = pc.NetworkHandler(default_layers(shape, 3), shape)
        assert network.output_shape == (3,)
        assert network.params.size < 500_000 or shape[1] == 224
    assert len(classifier(model="paper")._layers((1, 28, 28), 4)) == len(pc.paper())


def test_early_stopping_keeps_the_best_parameters():
    fitted = classifier(early_stopping=True, n_iter_no_change=2, epochs=40, learning_rate=0.02).fit(IMAGES, LABELS)
    losses = fitted.history_["val_loss"]
    assert fitted.n_iter_ == len(losses) == len(fitted.validation_scores_)
    best = int(losses.argmin())
    assert fitted.n_iter_ == 40 or len(losses) == best + 4
    held_out = pc.Dataset(IMAGES, np.unique(LABELS, return_inverse=True)[1], 3).split(
        0.1, int(np.random.RandomState(0).randint(np.iinfo(np.int32).max))
    )[1]
    assert pc.evaluate(fitted.network_, held_out, pc.Serial(), threads=1).loss == pytest.approx(losses[best], rel=1e-6)


def test_two_classes_with_binary_cross_entropy_have_two_columns():
    y = (LABELS == "fire").astype(int) * 7
    fitted = classifier(loss=pc.BinaryCrossEntropy(), learning_rate=0.005).fit(IMAGES, y)
    assert fitted.network_.output_shape == (1,)
    probabilities = fitted.predict_proba(IMAGES)
    assert probabilities.shape == (120, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    assert fitted.score(IMAGES, y) > 0.9
    assert set(fitted.predict(IMAGES)) == {0, 7}


def test_weights_of_samples_and_optimisers_with_and_without_a_learning_rate():
    weight = (LABELS != "water").astype(float)
    fitted = classifier(optimizer="adamw", learning_rate=0.005).fit(IMAGES, LABELS, weight)
    assert "water" not in fitted.predict(IMAGES)
    for settings, rate in (
        ({"optimizer": pc.SGD(0.5, momentum=0.9)}, 0.5),
        ({"optimizer": pc.SGD(0.5, momentum=0.9), "learning_rate": 0.25}, 0.25),
        ({"optimizer": "rmsprop"}, 0.01),
        ({"learning_rate": pc.Cosine(0.1)}, pc.Cosine(0.1)),
    ):
        assert classifier(**settings)._found_optimizer().learning_rate == rate


@pytest.mark.parametrize("loss", [None, pc.SoftmaxCrossEntropy(0.1), pc.BinaryCrossEntropy()])
def test_weights_of_classes_are_weights_of_their_samples(loss):
    few = LABELS != "water"
    images, y = IMAGES[few][10:], LABELS[few][10:]
    weights = {"earth": 3, "fire": np.float32(0.5)}
    of_samples = np.where(y == "earth", 3, 0.5)
    fitted = classifier(loss=loss, class_weight=weights).fit(images, y)
    alike = [
        classifier(loss=loss).fit(images, y, of_samples),
        classifier(loss=loss, class_weight={"earth": 6, "fire": 1, "none": 5}).fit(images, y, np.full(len(y), 0.5)),
    ]
    for other in alike:
        np.testing.assert_array_equal(fitted.predict_proba(images), other.predict_proba(images))


def test_balanced_weights_of_classes_are_those_of_scikit_learn():
    images, y = IMAGES[:50][LABELS[:50] != "water"][5:], LABELS[:50][LABELS[:50] != "water"][5:]
    y[:9] = "fire"
    balanced = clone(classifier(class_weight="balanced")).fit(images, y)
    other = classifier().fit(images, y, compute_sample_weight("balanced", y))
    np.testing.assert_allclose(balanced.predict_proba(images), other.predict_proba(images), rtol=1e-5)
    assert balanced.get_params()["class_weight"] == "balanced"
    assert "class_weight" not in pc.CNNRegressor().get_params()


@pytest.mark.parametrize("loss", [None, "squared_error", "absolute_error", "huber", pc.HuberLoss(0.5)])
def test_a_regressor_learns_one_number_or_several(loss):
    X = np.random.default_rng(0).normal(size=(200, 3))
    y = X @ [1.0, -0.5, 0.0]
    regressor = pc.CNNRegressor(loss=loss, learning_rate=0.01, random_state=0, threads=1)
    assert regressor.fit(X, y).score(X, y) > 0.9
    assert regressor.predict(X).shape == (200,)
    several = clone(regressor).fit(X, np.stack([y, -2 * y], axis=1))
    assert several.predict(X).shape == (200, 2)
    assert several.score(X, np.stack([y, -2 * y], axis=1)) > 0.9


def test_a_regressor_of_images_with_scaled_targets():
    brightness = np.linspace(0.1, 1, len(IMAGES))
    images, y = (IMAGES * brightness[:, None, None]).astype(np.uint8), 1e5 * brightness
    regressor = TransformedTargetRegressor(
        pc.CNNRegressor(epochs=30, random_state=0, threads=1, learning_rate=0.01), transformer=StandardScaler()
    )
    assert regressor.fit(images, y).score(images, y) > 0.9


REFUSED = {
    "model": ({"model": "papre"}, "no model 'papre': did you mean 'paper'?"),
    "model of other outputs": ({"model": outputs_of(4)}, r"model must end in \(3,\), got \(4,\)"),
    "not layers": ({"model": 7}, "a network takes a tuple of layers, got 7"),
    "optimizer": ({"optimizer": "adma"}, "no optimizer 'adma': did you mean 'adam'?"),
    "class of optimizer": ({"optimizer": pc.SGD}, "optimizer must be one of sgd, adam, .*, or such as SGD"),
    "rate of EMA": ({"optimizer": pc.EMA(pc.SGD(0.1)), "learning_rate": 0.1}, "learning_rate must be None for EMA"),
    "learning_rate": ({"learning_rate": -1}, "Adam: learning_rate must be .* got -1"),
    "loss": ({"loss": "logloss"}, "no loss 'logloss': did you mean 'log_loss'?"),
    "loss of numbers": ({"loss": pc.MeanSquaredError()}, "loss must predict probabilities of 3 classes, got Mean"),
    "loss of two classes": ({"loss": pc.BinaryCrossEntropy()}, "loss must predict probabilities of 3 classes, got Bin"),
    "no loss": ({"loss": 7}, "loss must be an object with the methods check, forward_backward, such as Softmax"),
    "epochs": ({"epochs": 0}, "epochs must be an integer of at least 1, got 0"),
    "batch_size": ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
    "threads": ({"threads": 0}, "threads must be an integer of at least 1, got 0"),
    "precision": ({"precision": "half"}, "precision must be one of float32, bfloat16, got 'half'"),
    "verbose": ({"verbose": 7}, "verbose must be 0"),
    "validation_fraction": (
        {"early_stopping": True, "validation_fraction": 1},
        "validation_fraction must be a number above 0 and below 1, got 1",
    ),
    "n_iter_no_change": (
        {"early_stopping": True, "n_iter_no_change": -1},
        "n_iter_no_change must be an integer of at least 0, got -1",
    ),
    "class_weight": ({"class_weight": "equal"}, "class_weight must be None, .* got 'equal'"),
    "class_weight of no class": ({"class_weight": {"firre": 2}}, "class_weight must name classes in y, got 'firre'"),
    "negative class_weight": ({"class_weight": {"fire": -1}}, "class_weight of 'fire' must be .* at least 0, got -1"),
    "class_weight of no numbers": ({"class_weight": {"fire": "2"}}, "class_weight of 'fire' must be .*, got '2'"),
    "image_shape": ({"image_shape": 9}, r"image_shape must be \(H, W\) or \(C, H, W\), got 9"),
    "other image_shape": ({"image_shape": (8, 9)}, r"image_shape must be that of X, got \(8, 9\), 72 numbers, and"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_parameter_outside_its_range_is_refused_by_fit(name):
    settings, message = REFUSED[name]
    unfitted = classifier(**settings)
    with pytest.raises(InputError, match=message) as refused:
        unfitted.fit(IMAGES, LABELS)
    assert isinstance(refused.value, ValueError)
    with pytest.raises(NotFittedError):
        unfitted.predict(IMAGES)


@pytest.mark.filterwarnings("ignore:precision 'bfloat16' is slower")
def test_fit_trains_in_the_precision_that_it_is_given():
    model = (pc.Flatten(), pc.Dense(16, activation="relu"), pc.Dense(3))
    rounded, exact = (
        classifier(model=model, epochs=1, precision=precision).fit(IMAGES, LABELS)
        for precision in ("bfloat16", "float32")
    )
    assert rounded.network_.precision == "bfloat16"
    difference = abs(rounded.network_.params - exact.network_.params).max()
    assert 0 < difference < 0.01


def test_data_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match=r"image_shape must be that of X, got \(9, 9\), 81 numbers, and 72 in each"):
        classifier(image_shape=(9, 9)).fit(IMAGES.reshape(120, 72), LABELS)
    with pytest.raises(ShapeError, match=r"channels first, got \(9, 8, 3\): write X.transpose\(0, 3, 1, 2\)"):
        classifier().fit(np.zeros((6, 9, 8, 3), np.uint8), LABELS[:6])
    with pytest.raises(ShapeError, match=r"X must be of shape .*, got \(N, 1, 9, 8, 1\)"):
        classifier().fit(IMAGES[:, None, ..., None], LABELS)
    with pytest.raises(ValueError, match=r"[Ss]ample.weight.* must .*zero"):
        classifier().fit(IMAGES, LABELS, np.zeros(120))
    fitted = classifier(epochs=1).fit(IMAGES, LABELS)
    with pytest.raises(ShapeError, match=r"X must be of shape \(N, 1, 9, 8\), as in fit, got \(120, 8, 9\)"):
        fitted.predict(IMAGES.transpose(0, 2, 1))
    with pytest.raises(ValueError, match="X has 63 features, but CNNClassifier is expecting 72"):
        fitted.predict(IMAGES[:, :, 1:].reshape(120, -1))


def test_images_of_another_scale_than_in_fit_cause_a_warning():
    fitted = classifier(epochs=1).fit(IMAGES, LABELS)
    np.testing.assert_allclose(fitted.predict_proba(IMAGES), fitted.predict_proba(IMAGES / 255), rtol=1e-5)
    with pytest.warns(TrainingWarning, match="divide them by 255"):
        fitted.predict(IMAGES.astype(float))


def test_threads_follow_the_variable_that_joblib_sets(monkeypatch):
    network = pc.NetworkHandler(pc.vgg_small(), (3, 32, 32))
    monkeypatch.setattr("parallelcnn.training.threads.usable_cores", lambda: frozenset(range(8)))
    monkeypatch.setattr("parallelcnn.training.threads.core_quota", lambda: None)
    for value, wanted in (("3", 3), ("2,1", 2), ("100", 8), ("", None), ("none", None), ("0", None)):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert classifier(threads=None)._found_threads(network, 256) == wanted
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert classifier(threads=5)._found_threads(network, 256) == 5
    assert classifier(threads=None)._found_threads(pc.NetworkHandler((pc.Dense(2),), (3,)), 32) == 1


def test_a_fit_that_fails_leaves_the_classifier_as_it_was():
    X = np.random.default_rng(0).random((40, 6), np.float32)
    classifier = pc.CNNClassifier(epochs=1, random_state=0).fit(X, np.array(["a", "b"])[np.arange(40) % 2])
    before = classifier.predict(X)
    with pytest.raises(InputError):
        classifier.set_params(loss="typo").fit(X, np.array(["x", "y", "z", "w"])[np.arange(40) % 4])
    assert classifier.predict(X).tolist() == before.tolist()


def test_an_interrupted_fit_keeps_what_it_has():
    fitting = classifier(epochs=100_000)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        fitting.fit(IMAGES, LABELS)
    assert fitting.history_.stopped
    assert 0 < fitting.n_iter_ < 100_000
    assert fitting.score(IMAGES, LABELS) > 0.5


def test_without_scikit_learn_one_sentence_names_the_extra():
    script = """
import sys
sys.modules["sklearn"] = None
from parallelcnn import *
import parallelcnn as pc
for kind in (pc.CNNClassifier, pc.CNNRegressor):
    try:
        kind("paper", epochs=3)
    except pc.InputError as error:
        print(error)
"""
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.stdout == "".join(
        f"{name} needs scikit-learn: pip install 'parallelcnn[sklearn]'\n" for name in ("CNNClassifier", "CNNRegressor")
    ), ran.stderr
