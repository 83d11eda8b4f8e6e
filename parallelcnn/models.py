"""Networks with a name."""

from collections.abc import Callable

from parallelcnn.layers import Conv2D, Dense, Flatten, Layer, MaxPool2D


def paper(classes: int = 10) -> tuple[Layer, ...]:
    """The network of the paper that this library answers (M. Guryn, "Efficient Automatic Differentiation Library for
    Convolutional Neural Networks in Julia Language"): 35,474 parameters for 28 x 28 grey images and ten classes.
    """
    return (
        Conv2D(6, 3, activation="relu"),
        MaxPool2D(2),
        Conv2D(16, 3, activation="relu"),
        MaxPool2D(2),
        Flatten(),
        Dense(84, activation="relu"),
        Dense(classes),
    )


def lenet5(classes: int = 10) -> tuple[Layer, ...]:
    """LeNet-5 (LeCun et al. 1998, "Gradient-based learning applied to document recognition", fig. 2) as it is trained
    today: relu and max-pooling instead of tanh and averages, and every map sees all maps before it.
    """
    return (
        Conv2D(6, 5, padding="same", activation="relu"),
        MaxPool2D(2),
        Conv2D(16, 5, activation="relu"),
        MaxPool2D(2),
        Flatten(),
        Dense(120, activation="relu"),
        Dense(84, activation="relu"),
        Dense(classes),
    )


MODELS: dict[str, Callable[[int], tuple[Layer, ...]]] = {"paper": paper, "lenet5": lenet5}
