"""Layers. A layer holds only hyperparameters, and records its forward and backward passes."""

from parallelcnn.layers.activation import Activation as Activation
from parallelcnn.layers.avgpool2d import AvgPool2D as AvgPool2D
from parallelcnn.layers.base import Buffer as Buffer
from parallelcnn.layers.base import Layer as Layer
from parallelcnn.layers.base import Parameter as Parameter
from parallelcnn.layers.conv2d import Conv2D as Conv2D
from parallelcnn.layers.dense import Dense as Dense
from parallelcnn.layers.dropout import Dropout as Dropout
from parallelcnn.layers.dropout import SpatialDropout as SpatialDropout
from parallelcnn.layers.flatten import Flatten as Flatten
from parallelcnn.layers.globalavgpool2d import GlobalAvgPool2D as GlobalAvgPool2D
from parallelcnn.layers.globalmaxpool2d import GlobalMaxPool2D as GlobalMaxPool2D
from parallelcnn.layers.maxpool2d import MaxPool2D as MaxPool2D
from parallelcnn.layers.reshape import Reshape as Reshape
from parallelcnn.layers.residual import Residual as Residual
from parallelcnn.layers.upsample2d import Upsample2D as Upsample2D
from parallelcnn.layers.zeropad2d import ZeroPad2D as ZeroPad2D
