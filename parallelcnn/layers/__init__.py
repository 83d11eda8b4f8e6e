"""Layers. A layer holds only hyperparameters, and records its forward and backward passes."""

from parallelcnn.layers.activation import Activation as Activation
from parallelcnn.layers.base import Buffer as Buffer
from parallelcnn.layers.base import Layer as Layer
from parallelcnn.layers.base import Parameter as Parameter
from parallelcnn.layers.composite import Sequential as Sequential
from parallelcnn.layers.concat import Concat as Concat
from parallelcnn.layers.conv2d import Conv2D as Conv2D
from parallelcnn.layers.dense import Dense as Dense
from parallelcnn.layers.flatten import Flatten as Flatten
from parallelcnn.layers.frozen import Frozen as Frozen
from parallelcnn.layers.maxpool2d import MaxPool2D as MaxPool2D
from parallelcnn.layers.recompute import Recompute as Recompute
from parallelcnn.layers.residual import Residual as Residual
