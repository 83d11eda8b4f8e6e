"""Layers of augmentation once more, sample by sample in plain numpy, with random numbers from Python's integers."""

import math

import numpy as np

import parallelcnn as pc
from parallelcnn.kernels.random import sample_keys

BITS = 2**64


def mixed(key, number):
    """The finaliser of SplitMix64, as in `kernels._mix`."""
    bits = (key + (number + 1) * 0x9E3779B97F4A7C15) % BITS
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 % BITS
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB % BITS
    return bits ^ (bits >> 31)


def unit(key, place):
    return (mixed(key, place) >> 40) / 2**24


def around(middle, largest, key):
    return middle + largest * (2 * unit(key, 0) - 1)


def below(key, place, limit):
    return (mixed(key, place) >> 32) * limit >> 32


def keys_of(n, key=3, first=0):
    keys = np.empty(n, np.uint64)
    sample_keys(np.uint64(key), np.arange(first, first + n), keys)
    return keys


def changed(layer, image, key):
    """The image, (C, H, W), as the layer changes it in training; key: of the sample and the layer."""
    if isinstance(layer, pc.Normalize):
        shape = (-1, *[1] * (image.ndim - 1))
        mean, std = (np.broadcast_to(one, len(image)).reshape(shape) for one in (layer.mean, layer.std))
        return (image - mean) / std
    _, H, W = image.shape
    if isinstance(layer, pc.RandomFlip):
        bits = mixed(key, 0)
        rows = layer.mode != "horizontal" and bits >> 63
        columns = layer.mode != "vertical" and bits >> 62 & 1
        return image[:, :: -1 if rows else 1, :: -1 if columns else 1]
    if isinstance(layer, pc.RandomCrop):
        rows, columns = np.broadcast_to(layer.padding, 2).tolist()
        top, left = below(key, 0, 2 * rows + 1), below(key, 1, 2 * columns + 1)
        padded = np.pad(image, ((0, 0), (rows, rows), (columns, columns)))
        return padded[:, top : top + H, left : left + W]
    if isinstance(layer, pc.RandomRotation):
        angle = around(0, math.radians(layer.degrees), key)
        return interpolated(image, [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    if isinstance(layer, pc.RandomZoom):
        return interpolated(image, np.eye(2) / around(1, layer.factor, key))
    if isinstance(layer, pc.RandomBrightness):
        return image + around(0, layer.factor, key)
    if isinstance(layer, pc.RandomContrast):
        mean = image.mean((1, 2), keepdims=True)
        return mean + around(1, layer.factor, key) * (image - mean)
    assert isinstance(layer, pc.Cutout)
    rows, columns = np.broadcast_to(layer.size, 2).tolist()
    top, left = below(key, 0, H) - rows // 2, below(key, 1, W) - columns // 2
    cut = image.copy()
    cut[:, max(top, 0) : max(top + rows, 0), max(left, 0) : max(left + columns, 0)] = 0
    return cut


def interpolated(image, matrix):
    """Each pixel from the four around its place in an image that has zeros around it."""
    C, H, W = image.shape
    margin = H + W
    padded = np.pad(image, ((0, 0), (margin, margin), (margin, margin)))
    found = np.empty((C, H, W))
    centre = np.array([(H - 1) / 2, (W - 1) / 2])
    for p in range(H):
        for q in range(W):
            row, column = np.clip(matrix @ ([p, q] - centre) + centre, 1 - margin, margin - 2) + margin
            r, s = math.floor(row), math.floor(column)
            a, b = row - r, column - s
            above = (1 - b) * padded[:, r, s] + b * padded[:, r, s + 1]
            found[:, p, q] = (1 - a) * above + a * ((1 - b) * padded[:, r + 1, s] + b * padded[:, r + 1, s + 1])
    return found


def prepared(layers, images, keys, active=None):
    """Images, samples first, behind the active ones of these layers at the front of a network; None: all are active."""
    found = []
    for image, key in zip(images, keys.tolist(), strict=True):
        for number, layer in enumerate(layers):
            if active is not None and layer not in active:
                continue
            image = changed(layer, image, mixed(key, number))
        found.append(image)
    return np.reshape(found, images.shape)
