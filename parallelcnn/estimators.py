"""Estimators for scikit-learn, whose parameters and attributes are named as those of MLPClassifier and MLPRegressor.

    >>> search = GridSearchCV(CNNClassifier("lenet5", random_state=0), {"learning_rate": [0.001, 0.003]}, n_jobs=2)
    >>> search.fit(images, labels).predict(new_images)

This module can be imported without scikit-learn, but its estimators cannot be made without it.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from parallelcnn import optimizers
from parallelcnn.arguments import check_integer, check_methods, described
from parallelcnn.comm import Serial
from parallelcnn.data.dataset import Dataset
from parallelcnn.data.numbers import shape_hint
from parallelcnn.errors import InputError, ShapeError, nearest_name
from parallelcnn.layers import Conv2D, Dense, Flatten, Layer, MaxPool2D
from parallelcnn.layers.base import Array, Shape
from parallelcnn.losses import LOSS_METHODS, AbsoluteError, HuberLoss, Loss, MeanSquaredError, SoftmaxCrossEntropy
from parallelcnn.models import MODELS
from parallelcnn.network import NetworkHandler
from parallelcnn.optimizers import Optimizer
from parallelcnn.schedules import Schedule, check_number
from parallelcnn.trainer import train
from parallelcnn.training.callbacks import LambdaCallback
from parallelcnn.training.config import OPTIMIZERS
from parallelcnn.training.early_stopping import EarlyStopping
from parallelcnn.training.history import History
from parallelcnn.training.reduction import fixed_shards
from parallelcnn.training.threads import choose_threads

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError:

    def _refuse(kind: type, *_: object, **__: object) -> None:
        raise InputError(f"{kind.__name__} needs scikit-learn: pip install 'parallelcnn[sklearn]'")

    BaseEstimator = type("BaseEstimator", (), {"__new__": _refuse})
    ClassifierMixin = RegressorMixin = type("Mixin", (), {})

Model = str | Callable[[int], Sequence[Layer]] | Sequence[Layer]

_EVALUATED = 1000  # training samples that are evaluated after each epoch without early stopping
_CHANNELS = (1, 3, 4)  # of images in files


class _Estimator(BaseEstimator):
    """What both estimators share."""

    _losses: ClassVar[Mapping[str, Loss]]  # by name; the first is the default

    def __init__(
        self,
        model: Model = "auto",
        *,
        epochs: int = 20,
        batch_size: int = 32,
        learning_rate: float | Schedule | None = None,
        optimizer: str | Optimizer = "adam",
        loss: str | Loss | None = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        random_state: Any = None,
        threads: int | None = None,
        precision: str = "float32",
        verbose: int = 0,
        image_shape: Sequence[int] | None = None,
    ) -> None:
        self.model = model
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.loss = loss
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.random_state = random_state
        self.threads = threads
        self.precision = precision
        self.verbose = verbose
        self.image_shape = image_shape

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def _train(self, data: Dataset, loss: Loss, outputs: int, **fitted: Any) -> Self:
        """Train a network with so many outputs, and set the attributes that a fitted estimator has, and those of
        `fitted`. If training fails, these are what they were.
        """
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        optimizer = self._found_optimizer()
        check_integer("batch_size", self.batch_size, 1)
        layers = self._layers(data.input_shape, outputs)
        network = NetworkHandler(layers, data.input_shape, seed, precision=self.precision)
        if network.output_shape != (outputs,):
            raise ShapeError(f"model must end in ({outputs},), got {network.output_shape}")
        curve: list[float] = []
        callbacks: list[Any] = [LambdaCallback(on_epoch_end=lambda epoch, logs: curve.append(logs["loss"]))]
        if self.early_stopping:
            data, evaluated = self._split(data, seed)
            callbacks.append(EarlyStopping(patience=self.n_iter_no_change, restore_best=True))
        else:
            some = np.arange(0, len(data), -(-len(data) // _EVALUATED))
            evaluated = replace(data, images=data.images[some], labels=data.labels[some], sample_weight=None)
        batch_size = min(self.batch_size, len(data))
        try:
            train(
                network,
                data,
                evaluated,
                optimizer,
                self.epochs,
                batch_size,
                seed,
                Serial(),
                loss=loss,
                callbacks=callbacks,
                threads=self._found_threads(network, batch_size),
                verbose=int(self.verbose),
            )
        except KeyboardInterrupt:
            if network.history is not None and network.history.steps:
                self._keep(network, curve, fitted)
            raise
        self._keep(network, curve, fitted)
        return self

    def _keep(self, network: NetworkHandler, curve: list[float], fitted: Mapping[str, Any]) -> None:
        for name, value in fitted.items():
            setattr(self, name, value)
        self.network_ = network
        self.history_: History = network.history
        self.loss_curve_ = curve
        self.loss_ = curve[-1] if curve else self.history_.losses[-1]
        self.n_iter_ = len(curve)

    def _split(self, data: Dataset, seed: int) -> tuple[Dataset, Dataset]:
        check_integer("n_iter_no_change", self.n_iter_no_change, 0)
        fraction = self.validation_fraction
        if isinstance(fraction, bool) or not isinstance(fraction, int | float | np.number) or not 0 < fraction < 1:
            raise InputError(f"validation_fraction must be a number above 0 and below 1, got {described(fraction)}")
        return data.split(fraction, seed)

    def _checked_for_fit(self, X: Any, y: Any, **of_y: Any) -> tuple[Array, Array]:
        """X as (n, *input_shape), uint8 or float32, and y, after scikit-learn's checks."""
        rows, shape = _as_rows(X)
        are_pixels = shape is not None or self.image_shape is not None
        rows, y = validate_data(self, rows, y, order="C", dtype=_dtypes(are_pixels), **of_y)
        return rows.reshape(len(rows), *self._input_shape(shape, rows.shape[1])), y

    def _predict(self, X: Any) -> Array:
        """What the network predicts for X: (n, outputs)."""
        check_is_fitted(self, "network_")
        wanted = self.network_.input_shape
        rows, shape = _as_rows(X)
        rows = validate_data(self, rows, order="C", dtype=_dtypes(len(wanted) == 3), reset=False)
        if shape is not None and shape != wanted and (1, *shape) != wanted:
            got = (len(rows), *shape)
            hint = shape_hint(got, wanted)
            raise ShapeError(f"X must be of shape (N, {str(wanted)[1:]}, as in fit, got {got}{hint}")
        return self.network_.predict(rows.reshape(len(rows), *wanted))

    def _input_shape(self, shape: Shape | None, features: int) -> Shape:
        """The shape of a sample, from that of the images in X, None if X has rows, and from `image_shape`."""
        if shape is not None and len(shape) > 3:
            raise ShapeError(f"X must be of shape (N, features), (N, H, W) or (N, C, H, W), got (N, {str(shape)[1:]}")
        if self.image_shape is not None:
            given = self.image_shape
            sizes = tuple(given) if isinstance(given, tuple | list) else ()
            if len(sizes) not in (2, 3) or not all(isinstance(one, int | np.integer) and one > 0 for one in sizes):
                raise InputError(f"image_shape must be (H, W) or (C, H, W), got {described(given)}")
            if math.prod(sizes) != features or (shape is not None and _with_channels(shape) != _with_channels(sizes)):
                got = f"{features} in each row of X" if shape is None else f"images of shape {shape}"
                raise ShapeError(f"image_shape must be that of X, got {sizes}, {math.prod(sizes)} numbers, and {got}")
            shape = sizes
        if shape is None:
            return (features,)
        if len(shape) == 3 and shape[2] in _CHANNELS and shape[0] not in _CHANNELS:
            raise ShapeError(f"images must be (C, H, W), channels first, got {shape}: write X.transpose(0, 3, 1, 2)")
        return _with_channels(shape)

    def _layers(self, input_shape: Shape, outputs: int) -> Sequence[Layer]:
        """The layers that `model` describes."""
        model = self.model
        if not isinstance(model, str):
            return model(outputs) if callable(model) else model
        if model == "auto":
            return default_layers(input_shape, outputs)
        if model not in MODELS:
            raise InputError(f"no model {model!r}: {nearest_name(model, ['auto', *MODELS])}")
        return MODELS[model](outputs)

    def _found_loss(self) -> Loss:
        names = list(self._losses)
        loss = names[0] if self.loss is None else self.loss
        if not isinstance(loss, str):
            check_methods("loss", loss, LOSS_METHODS, f"{self._losses[names[0]]}")
            return loss
        if loss not in names:
            raise InputError(f"no loss {loss!r}: {nearest_name(loss, names)}")
        return self._losses[loss]

    def _found_optimizer(self) -> Optimizer:
        optimizer, rate = self.optimizer, self.learning_rate
        if isinstance(optimizer, str):
            if optimizer not in OPTIMIZERS:
                raise InputError(f"no optimizer {optimizer!r}: {nearest_name(optimizer, list(OPTIMIZERS))}")
            optimizer = getattr(optimizers, OPTIMIZERS[optimizer])()
        if not isinstance(optimizer, Optimizer):
            names = ", ".join(OPTIMIZERS)
            raise InputError(f"optimizer must be one of {names}, or such as SGD(0.1), got {described(optimizer)}")
        if rate is None:
            return optimizer
        if not is_dataclass(optimizer) or "learning_rate" not in [one.name for one in fields(optimizer)]:
            raise InputError(f"learning_rate must be None for {optimizer!r}, which has its own, got {rate!r}")
        changed: Optimizer = replace(optimizer, learning_rate=rate)
        return changed

    def _found_threads(self, network: NetworkHandler, batch_size: int) -> int | None:
        """The number of threads; None: `train` chooses it. As estimators of scikit-learn it follows OMP_NUM_THREADS."""
        limit = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
        if self.threads is not None or not limit.isdecimal() or int(limit) == 0:
            return self.threads
        work = network.multiply_adds(batch_size, training=True)
        return min(int(limit), choose_threads(Serial(), None, work, fixed_shards(network, batch_size, None)))


class CNNClassifier(ClassifierMixin, _Estimator):
    """A classifier for scikit-learn: a convolutional network for images, a dense one for features.

    Images in uint8 are scaled to [0, 1]. All other numbers are taken as they are: scale them, for example with
    `StandardScaler`. Training runs in this process alone, also under mpirun; on many ranks call `train`.

    Args:
        model: "auto"; a name such as "lenet5", see `parallelcnn guide layers`; a function that takes the number of
            outputs and returns the layers; or a tuple of layers. "auto" is a dense layer of 100 units for features. For
            images it is up to three convolutions with pooling, and a dense layer of 64 units.
        epochs: passes over the training data.
        batch_size: samples in a minibatch, or all samples if there are fewer.
        learning_rate: a number or a schedule. None: that of the optimiser.
        optimizer: "adam", "adamw", "sgd", "rmsprop" or "lion"; or an optimiser such as `SGD(0.1, momentum=0.9)`.
        loss: "log_loss", which is `SoftmaxCrossEntropy` and the default; or a loss object that predicts probabilities,
            such as `SoftmaxCrossEntropy(label_smoothing=0.1)` or, for two classes, `BinaryCrossEntropy()`.
        early_stopping: whether to set samples aside for validation, to stop when their loss no longer improves, and to
            keep the best parameters.
        validation_fraction: part of the samples set aside for early stopping, of each class in proportion.
        n_iter_no_change: number of epochs without an improvement that early stopping accepts.
        random_state: seed of initial weights, sample order, dropout and validation samples: an integer, a
            numpy.random.RandomState, or None for another result each time. The same integer gives the same result, on
            another number of threads up to rounding.
        threads: number of threads. None: as many as there are cores, or fewer for little work, or where OMP_NUM_THREADS
            says so, which joblib sets in its workers.
        precision: "float32", or "bfloat16": `fit` rounds the numbers that it multiplies, which is faster on processors
            with AMX; see `parallelcnn guide precision`.
        verbose: 1 or 2 shows progress, as in `train`.
        image_shape: (H, W) or (C, H, W), if the rows of X are images. None: X is of shape (N, features), (N, H, W) or
            (N, C, H, W).
        class_weight: weights of the classes in the loss, by label, such as {"cat": 2.0}: others have the weight 1.
            "balanced": samples / (classes * samples of the class). They are multiplied by `sample_weight`.

    Attributes:
        classes_: the classes, in the order of the columns of `predict_proba`.
        network_: the trained `NetworkHandler`; `save_model` saves it.
        history_: its `History`. Evaluations are on the validation samples, "val_loss" and so on; without early stopping
            on up to 1,000 of the training samples, "test_loss" and so on.
        loss_curve_: mean training loss of each epoch.
        loss_: the last of them.
        validation_scores_: accuracy on the validation samples after each epoch; None without early stopping.
        n_iter_: number of epochs.
        n_features_in_: numbers in a sample.
        feature_names_in_: names of the columns of X, if they have names.

    Raises:
        InputError: in `fit`, for a parameter outside its range or data that do not fit; it is a ValueError.
        KeyboardInterrupt: in `fit`, after Ctrl-C. The estimator is fitted, with the parameters so far.

    Example:
        >>> classifier = CNNClassifier(epochs=5, random_state=0).fit(images, names)
        >>> classifier.predict(images[:2])
        array(['cat', 'dog'], dtype='<U3')
    """

    _losses: ClassVar[Mapping[str, Loss]] = {"log_loss": SoftmaxCrossEntropy()}

    def __init__(
        self,
        model: Model = "auto",
        *,
        epochs: int = 20,
        batch_size: int = 32,
        learning_rate: float | Schedule | None = None,
        optimizer: str | Optimizer = "adam",
        loss: str | Loss | None = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        random_state: Any = None,
        threads: int | None = None,
        precision: str = "float32",
        verbose: int = 0,
        image_shape: Sequence[int] | None = None,
        class_weight: Mapping[Any, float] | str | None = None,
    ) -> None:
        super().__init__(
            model,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            optimizer=optimizer,
            loss=loss,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            random_state=random_state,
            threads=threads,
            precision=precision,
            verbose=verbose,
            image_shape=image_shape,
        )
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train a new network.

        Args:
            X: (N, features), (N, H, W) or (N, C, H, W).
            y: (N,) labels of any type.
            sample_weight: (N,) factors of the losses of the samples.

        Returns:
            The estimator itself.

        Raises:
            InputError: if a parameter is outside its range, or X and y are not such arrays.
        """
        images, y = self._checked_for_fit(X, y)
        check_classification_targets(y)
        classes_, labels = np.unique(y, return_inverse=True)
        count, loss = len(classes_), self._found_loss()
        prediction = getattr(loss, "prediction", "output")
        if prediction == "output" or (prediction == "sigmoid" and count != 2):
            raise InputError(f"loss must predict probabilities of {count} classes, got {loss!r}")
        # Numbers are no names: a network that was trained on them predicts integers by itself.
        classes = classes_.tolist()
        names = tuple(classes) if all(isinstance(one, str) and one for one in classes) else None
        weight = _checked_weight(self._weight_of_samples(classes, labels, sample_weight), images)
        data = Dataset(images, labels, count, "X", sample_weight=weight, class_names=names)
        self._train(data, loss, 1 if prediction == "sigmoid" else count, classes_=classes_)
        return self

    def _weight_of_samples(self, classes: list[Any], labels: Array, sample_weight: Any) -> Any:
        """The weights of samples, multiplied by those of their classes."""
        given = self.class_weight
        if given is None:
            return sample_weight
        if isinstance(given, Mapping):
            unknown = [name for name in given if name not in classes]
            # As in scikit-learn: a part of the data, as in cross-validation, may lack classes that have a weight.
            if unknown and any(name not in given for name in classes):
                raise InputError(f"class_weight must name classes in y, got {described(unknown[0])}")
            for name, weight in given.items():
                check_number("CNNClassifier", f"class_weight of {name!r}", weight)
            weights = np.array([given.get(name, 1) for name in classes], np.float64)
        elif isinstance(given, str) and given == "balanced":
            weights = len(labels) / (len(classes) * np.bincount(labels))
        else:
            raise InputError(f'class_weight must be None, "balanced" or a dict of weights, got {described(given)}')
        of_class = weights[labels]
        return of_class if sample_weight is None else of_class * _check_sample_weight(sample_weight, labels)

    @property
    def validation_scores_(self) -> list[float] | None:
        check_is_fitted(self, "network_")
        evaluations = [result for _, _, result in self.history_.evaluations if result.role == "val"]
        return [result["accuracy"] for result in evaluations] or None

    def predict_proba(self, X: Any) -> Array:
        """The probabilities of the classes, (N, classes), in the order of `classes_`. X: as in `fit`.

        Raises:
            NotFittedError: before `fit`.
            ValueError: if the samples have another shape than in `fit`.
        """
        probabilities = self._predict(X)
        if self.network_.prediction == "sigmoid":
            return np.hstack([1 - probabilities, probabilities])
        return probabilities

    def predict_log_proba(self, X: Any) -> Array:
        """The logarithms of the probabilities, (N, classes); see `predict_proba`."""
        with np.errstate(divide="ignore"):  # the probability may be 0
            return np.log(self.predict_proba(X))

    def predict(self, X: Any) -> Array:
        """The most probable class of each sample, (N,); see `predict_proba`."""
        most_probable = self.predict_proba(X).argmax(axis=1)
        predicted: Array = self.classes_[most_probable]
        return predicted


class CNNRegressor(RegressorMixin, _Estimator):
    """A regressor for scikit-learn: a convolutional network for images, a dense one for features.

    It has the parameters and attributes of `CNNClassifier`, except `class_weight`, `classes_` and `validation_scores_`,
    and other losses. `y` is taken as it is: if its numbers are large or small, scale them, for example with
    `TransformedTargetRegressor`.

    Args:
        loss: "squared_error", the default; "absolute_error"; "huber", which is `HuberLoss()`; or a loss object.

    Example:
        >>> regressor = CNNRegressor(epochs=5, random_state=0).fit(images, ages)
        >>> regressor.predict(images[:2])
        array([31.4, 27.1])
    """

    _losses: ClassVar[Mapping[str, Loss]] = {
        "squared_error": MeanSquaredError(),
        "absolute_error": AbsoluteError(),
        "huber": HuberLoss(),
    }

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train a new network.

        Args:
            X: (N, features), (N, H, W) or (N, C, H, W).
            y: (N,) or (N, outputs) numbers.
            sample_weight: (N,) factors of the losses of the samples.

        Returns:
            The estimator itself.

        Raises:
            InputError: if a parameter is outside its range, or X and y are not such arrays.
        """
        images, y = self._checked_for_fit(X, y, y_numeric=True, multi_output=True)
        data = Dataset(images, y, None, "X", sample_weight=_checked_weight(sample_weight, images))
        return self._train(data, self._found_loss(), math.prod(y.shape[1:]), _one_output=y.ndim == 1)

    def predict(self, X: Any) -> Array:
        """The predicted numbers: of the shape of `y`, float64 as those of other regressors. X: as in `fit`.

        Raises:
            NotFittedError: before `fit`.
            ValueError: if the samples have another shape than in `fit`.
        """
        predicted = self._predict(X).astype(np.float64)
        return predicted[:, 0] if self._one_output else predicted


def default_layers(input_shape: Shape, outputs: int) -> tuple[Layer, ...]:
    """The layers of the model "auto"; see `CNNClassifier`. Pooling halves images until they are smaller than 6 x 6."""
    if len(input_shape) == 1:
        return (Dense(100, activation="relu"), Dense(outputs))
    layers: list[Layer] = []
    size, filters = min(input_shape[1:]), 16
    while size >= 6 and filters <= 64:
        layers += [Conv2D(filters, 3, padding="same", activation="relu"), MaxPool2D(2)]
        size, filters = size // 2, 2 * filters
    return (*layers, Flatten(), Dense(64, activation="relu"), Dense(outputs))


def _as_rows(X: Any) -> tuple[Any, Shape | None]:
    """X with two dimensions, as scikit-learn's checks take it, and the shape of its images; None: it holds none."""
    if (X.ndim if hasattr(X, "ndim") else np.asarray(X).ndim) <= 2:
        return X, None
    images = np.asarray(X)
    return images.reshape(len(images), math.prod(images.shape[1:])), images.shape[1:]


def _dtypes(are_pixels: bool) -> Any:
    """The types of X: others are converted to the first of them."""
    return [np.float32, np.uint8] if are_pixels else np.float32


def _with_channels(shape: Shape) -> Shape:
    return (1, *shape) if len(shape) == 2 else shape


def _checked_weight(sample_weight: Any, images: Array) -> Array | None:
    if sample_weight is None:
        return None
    weight: Array = _check_sample_weight(sample_weight, images, dtype=np.float64)
    if not weight.any():
        raise InputError("sample_weight must hold a number above 0, but every weight is zero")
    return weight
