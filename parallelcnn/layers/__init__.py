"""Layers. A layer holds only hyperparameters, and records its forward and backward passes."""

from parallelcnn.layers.activation import Activation as Activation
from parallelcnn.layers.avgpool2d import AvgPool2D as AvgPool2D
from parallelcnn.layers.base import Buffer as Buffer
from parallelcnn.layers.base import Layer as Layer
from parallelcnn.layers.base import Parameter as Parameter
from parallelcnn.layers.batch_norm import BatchNorm as BatchNorm
from parallelcnn.layers.composite import Sequential as Sequential
from parallelcnn.layers.concat import Concat as Concat
from parallelcnn.layers.conv2d import Conv2D as Conv2D
from parallelcnn.layers.dense import Dense as Dense
from parallelcnn.layers.depthwise_conv2d import DepthwiseConv2D as DepthwiseConv2D
from parallelcnn.layers.dropout import Dropout as Dropout
from parallelcnn.layers.dropout import SpatialDropout as SpatialDropout
from parallelcnn.layers.flatten import Flatten as Flatten
from parallelcnn.layers.frozen import Frozen as Frozen
from parallelcnn.layers.globalavgpool2d import GlobalAvgPool2D as GlobalAvgPool2D
from parallelcnn.layers.globalmaxpool2d import GlobalMaxPool2D as GlobalMaxPool2D
from parallelcnn.layers.group_norm import GroupNorm as GroupNorm
from parallelcnn.layers.group_norm import LayerNorm as LayerNorm
from parallelcnn.layers.maxpool2d import MaxPool2D as MaxPool2D
from parallelcnn.layers.prelu import PReLU as PReLU
from parallelcnn.layers.recompute import Recompute as Recompute
from parallelcnn.layers.reshape import Reshape as Reshape
from parallelcnn.layers.residual import Residual as Residual
from parallelcnn.layers.upsample2d import Upsample2D as Upsample2D
from parallelcnn.layers.zeropad2d import ZeroPad2D as ZeroPad2D
