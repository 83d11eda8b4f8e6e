"""Layers: frozen values over kernels. See `base` for what a layer is."""

from .activation import Activation as Activation
from .base import Layer as Layer
from .conv2d import Conv2D as Conv2D
from .dense import Dense as Dense
from .flatten import Flatten as Flatten
from .maxpool2d import MaxPool2D as MaxPool2D
