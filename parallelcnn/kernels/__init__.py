"""Numba only: arrays in, arrays out.

Kernels allocate nothing and decide nothing; inputs come first, written arrays last. Activations are
(C, H, W, n) with the sample axis last and contiguous, so that a row of an image is one long stream of W * n numbers.

Letters, as in the cuDNN paper (Chetlur et al. 2014, arXiv:1410.0759), lower case for the loop variable:
    N, n    samples                        K, k     output channels
    C, c    input channels                 P, Q     output rows and columns
    H, W    input rows and columns         R, S     filter rows and columns ("taps")
    dy, dx, dweight, dbias                 the loss differentiated by y, x, weight, bias
"""
