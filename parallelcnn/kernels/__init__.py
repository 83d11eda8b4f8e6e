"""Numba kernels, which read and write arrays.

Kernels allocate no memory and choose no algorithm. Their inputs come first, their outputs last. Activations are
(C, H, W, n) with the sample axis last and contiguous, so that a row of an image is W * n contiguous numbers.

Letters are as in the cuDNN paper (Chetlur et al. 2014, arXiv:1410.0759), with lower case for the loop variable:
    N, n    samples                        K, k     output channels
    C, c    input channels                 P, Q     output rows and columns
    H, W    input rows and columns         R, S     filter rows and columns ("taps")
    dy, dx, dweight, dbias                 gradients of the loss with respect to y, x, weight, bias
"""
