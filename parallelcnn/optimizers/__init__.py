"""Optimisers. They hold only hyperparameters: the network keeps their state vectors, and checkpoints include these."""

from parallelcnn.optimizers.adam import Adam as Adam
from parallelcnn.optimizers.adam import AdamW as AdamW
from parallelcnn.optimizers.base import KernelOptimizer as KernelOptimizer
from parallelcnn.optimizers.base import Optimizer as Optimizer
from parallelcnn.optimizers.ema import EMA as EMA
from parallelcnn.optimizers.lion import Lion as Lion
from parallelcnn.optimizers.rmsprop import RMSprop as RMSprop
from parallelcnn.optimizers.sgd import SGD as SGD
