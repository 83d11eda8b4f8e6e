"""Data sets, readers of their file formats, and the order of samples in training."""

from parallelcnn.data.dataset import Dataset as Dataset
from parallelcnn.data.digits import load_digits as load_digits
from parallelcnn.data.inputs import read_images as read_images
from parallelcnn.data.loading import load_data as load_data
from parallelcnn.data.mnist import load_mnist as load_mnist
from parallelcnn.data.readers.idx_folder import load_idx_folder as load_idx_folder
