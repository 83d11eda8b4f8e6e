"""Losses: the sum over a shard of the minibatch, and the gradient of the mean over the whole minibatch.

Each takes `weights`: (n,) float64, by which the losses of the samples are multiplied; None: all 1, compiled to code
without a multiplication.
"""

import math

from ._jit import kernel


@kernel
def softmax_cross_entropy(logits, labels, batch_size, dlogits, weights):
    """Returns the sum over samples of -log softmax(logits)[label]; dlogits = (softmax - onehot) / batch_size.

    logits, dlogits: (classes, n), labels: (n,). The largest logit of each sample is subtracted first, so that
    exp cannot overflow.
    """
    classes, N = logits.shape
    total = 0.0
    for i in range(N):
        largest = logits[0, i]
        for k in range(1, classes):
            largest = max(largest, logits[k, i])
        denominator = 0.0
        for k in range(classes):
            e = math.exp(logits[k, i] - largest)
            dlogits[k, i] = e
            denominator += e
        weight = 1.0 if weights is None else weights[i]
        scale = weight / (denominator * batch_size)
        for k in range(classes):
            dlogits[k, i] *= scale
        dlogits[labels[i], i] -= weight / batch_size
        total += weight * (math.log(denominator) + largest - logits[labels[i], i])
    return total


@kernel
def softmax_cross_entropy_weighted(logits, labels, batch_size, smoothing, class_weight, dlogits, weights):
    """As `softmax_cross_entropy`, with label smoothing and class weights. Returns the sum over samples of

        (1 - s) * w[label] * -log p[label]  +  s / classes * sum_k w[k] * -log p[k]

    where s is the smoothing and w the class weight. logits, dlogits: (classes, n), labels: (n,), class_weight:
    (classes,) float64, in which all sums are computed.
    """
    classes, N = logits.shape
    share = smoothing / classes
    weight_of_others = 0.0
    for k in range(classes):
        weight_of_others += share * class_weight[k]
    total = 0.0
    for i in range(N):
        largest = logits[0, i]
        for k in range(1, classes):
            largest = max(largest, logits[k, i])
        denominator = 0.0
        for k in range(classes):
            e = math.exp(logits[k, i] - largest)
            dlogits[k, i] = e
            denominator += e
        weight = 1.0 if weights is None else weights[i]
        own = (1 - smoothing) * class_weight[labels[i]]
        scale = weight * (own + weight_of_others) / (denominator * batch_size)
        log_sum = math.log(denominator) + largest
        for k in range(classes):
            target = share * class_weight[k]
            if k == labels[i]:
                target += own
            target *= weight
            dlogits[k, i] = dlogits[k, i] * scale - target / batch_size
            total += target * (log_sum - logits[k, i])
    return total


@kernel
def softmax(logits, probabilities):
    """probabilities[i, k] = softmax(logits[:, i])[k]; logits: (classes, n), probabilities: (n, classes)."""
    classes, N = logits.shape
    for i in range(N):
        largest = logits[0, i]
        for k in range(1, classes):
            largest = max(largest, logits[k, i])
        denominator = 0.0
        for k in range(classes):
            e = math.exp(logits[k, i] - largest)
            probabilities[i, k] = e
            denominator += e
        for k in range(classes):
            probabilities[i, k] /= denominator


@kernel
def count_correct(logits, labels):
    """Count the samples whose label has the largest logit, the first of equals. A NaN is never correct."""
    classes, N = logits.shape
    correct = 0
    for i in range(N):
        best = 0
        for k in range(1, classes):
            if logits[k, i] > logits[best, i]:
                best = k
        if best == labels[i] and logits[best, i] == logits[best, i]:
            correct += 1
    return correct


@kernel
def mean_squared_error(outputs, targets, batch_size, doutputs, weights):
    """Returns the sum over samples of mean over outputs (y - t)^2; doutputs = 2 (y - t) / (outputs * batch_size).

    outputs, doutputs: (outputs, n), targets: (n, outputs).
    """
    K, N = outputs.shape
    total = 0.0
    for k in range(K):
        for i in range(N):
            error = outputs[k, i] - targets[i, k]
            weight = 1.0 if weights is None else weights[i]
            total += weight * (error * error)
            doutputs[k, i] = weight * (2 * error / (K * batch_size))
    return total / K


@kernel
def mean_squared_error_onehot(outputs, labels, batch_size, doutputs, weights):
    """As `mean_squared_error`, with target 1 for the label's output and 0 for the others; labels: (n,)."""
    K, N = outputs.shape
    total = 0.0
    for k in range(K):
        for i in range(N):
            error = outputs[k, i] - (labels[i] == k)
            weight = 1.0 if weights is None else weights[i]
            total += weight * (error * error)
            doutputs[k, i] = weight * (2 * error / (K * batch_size))
    return total / K


@kernel
def binary_cross_entropy(logits, targets, batch_size, dlogits, weights):
    """Returns the sum over samples of mean over outputs (-t log p - (1 - t) log(1 - p)), where p = sigmoid(logit);
    dlogits = (p - t) / (outputs * batch_size).

    logits, dlogits: (outputs, n), targets: (n, outputs). Computed from exp(-|logit|), which cannot overflow.
    """
    K, N = logits.shape
    total = 0.0
    for k in range(K):
        for i in range(N):
            x, t = logits[k, i], float(targets[i, k])
            e = math.exp(-abs(x))
            weight = 1.0 if weights is None else weights[i]
            total += weight * (max(x, 0.0) - x * t + math.log1p(e))
            p = 1 / (1 + e) if x >= 0 else e / (1 + e)
            dlogits[k, i] = weight * ((p - t) / (K * batch_size))
    return total / K


@kernel
def sigmoid(logits, probabilities):
    """probabilities[i, k] = sigmoid(logits[k, i]); logits: (outputs, n), probabilities: (n, outputs)."""
    K, N = logits.shape
    for k in range(K):
        for i in range(N):
            e = math.exp(-abs(logits[k, i]))
            probabilities[i, k] = 1 / (1 + e) if logits[k, i] >= 0 else e / (1 + e)


@kernel
def absolute_error(outputs, targets, batch_size, doutputs, weights):
    """Returns the sum over samples of mean over outputs |y - t|; doutputs = sign(y - t) / (outputs * batch_size).

    outputs, doutputs: (outputs, n), targets: (n, outputs).
    """
    K, N = outputs.shape
    total = 0.0
    for k in range(K):
        for i in range(N):
            error = outputs[k, i] - targets[i, k]
            weight = 1.0 if weights is None else weights[i]
            total += weight * abs(error)
            sign = 1 if error > 0 else -1 if error < 0 else 0
            doutputs[k, i] = weight * (sign / (K * batch_size))
    return total / K


@kernel
def huber(outputs, targets, delta, batch_size, doutputs, weights):
    """Returns the sum over samples of mean over outputs of (y - t)^2 / 2, continued linearly where |y - t| > delta.

    outputs, doutputs: (outputs, n), targets: (n, outputs).
    """
    K, N = outputs.shape
    total = 0.0
    for k in range(K):
        for i in range(N):
            error = outputs[k, i] - targets[i, k]
            slope = min(max(error, -delta), delta)
            weight = 1.0 if weights is None else weights[i]
            total += weight * (slope * (error - 0.5 * slope))
            doutputs[k, i] = weight * (slope / (K * batch_size))
    return total / K
