"""The exponential moving average of the parameters, which is evaluated in their place."""

import numpy as np
import pytest
import small

import parallelcnn as pc
from parallelcnn.errors import InputError
from parallelcnn.training.config import TrainConfig

OPTIMIZER = pc.EMA(pc.SGD(0.1, momentum=0.5), decay=0.8)


def train(network, optimizer=OPTIMIZER, epochs=2, **options):
    sets = small.dataset(60), small.dataset(97, seed=1)
    options = {"threads": 1, **options}
    return pc.train(network, *sets, optimizer, epochs, 20, comm=pc.Serial(), verbose=0, **options)


class KeepsParameters(pc.Callback):
    def __init__(self, network):
        self.network, self.params = network, [network.params.astype(np.float64)]

    def on_batch_end(self, step, logs):
        self.params.append(self.network.params.astype(np.float64))


def test_the_network_ends_with_the_average_and_the_last_evaluation_is_of_it():
    network, plain = small.network(), small.network()
    kept = KeepsParameters(plain)
    train(plain, OPTIMIZER.optimizer, callbacks=[kept])
    history = train(network)
    average = kept.params[0]
    for step, params in enumerate(kept.params[1:]):
        decay = min(0.8, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * params
    np.testing.assert_allclose(network.params, average, rtol=1e-5, atol=1e-6)
    assert np.abs(network.params - plain.params).max() > 1e-3
    result = pc.evaluate(network, small.dataset(97, seed=1), pc.Serial(), threads=1)
    assert history.evaluations[-1][2].loss == result.loss
    assert history.losses == train(small.network(), OPTIMIZER.optimizer).losses  # evaluating changes no parameter


@pytest.mark.parametrize("steps", [2, 4])
def test_a_training_resumed_has_the_same_bits(steps, tmp_path):
    whole, again, folder = small.network(), small.network(5), pc.CheckpointFolder(tmp_path)
    told = train(whole)
    stop = iter([False] * (steps - 1) + [True])
    assert train(small.network(), checkpoints=folder, stop=lambda: next(stop)).steps == steps
    history = train(again, resume=folder.newest())
    assert again.state_sha256() == whole.state_sha256()
    assert history.evaluations == told.evaluations
    assert set(whole.state) == {"params", "average", "velocity"}


def test_an_average_that_an_earlier_optimiser_left_behind_is_not_evaluated(tmp_path):
    folder = pc.CheckpointFolder(tmp_path)
    train(small.network(), epochs=1, checkpoints=folder)
    network = small.network()
    with pytest.warns(pc.TrainingWarning, match="resumed with"):
        history = train(network, OPTIMIZER.optimizer, resume=folder.newest())
    result = pc.evaluate(network, small.dataset(97, seed=1), pc.Serial(), threads=1)
    assert history.evaluations[-1][2].loss == result.loss
    assert (network.params != network.state["average"]).any()


def test_weights_decay_as_without_an_average_and_biases_do_not():
    networks = [pc.NetworkHandler((pc.Dense(3),), (2,)) for _ in range(2)]
    inner = pc.AdamW(0.1, weight_decay=0.5)
    for network, optimizer in zip(networks, (inner, pc.EMA(inner)), strict=True):
        network.params, network.gradients[:] = np.ones(9), 0
        network.update(optimizer)
    np.testing.assert_array_equal(networks[0].params, networks[1].params)
    np.testing.assert_array_equal(networks[1].params[6:], 1)
    assert (networks[1].params[:6] < 1).all()


def test_wrong_arguments_are_named():
    with pytest.raises(InputError, match=r"EMA: decay must be less than 1, got 1\.0"):
        pc.EMA(pc.SGD(), 1.0)
    with pytest.raises(InputError, match="EMA: decay must be a finite number of at least 0, got 'slow'"):
        pc.EMA(pc.SGD(), "slow")
    with pytest.raises(InputError, match=r"EMA: optimizer must be of type Optimizer, such as SGD\(0.1\), got 0.1"):
        pc.EMA(0.1)


def test_the_decay_is_a_setting_of_a_run():
    assert TrainConfig(optimizer="adam", ema=0.99).build_optimizer() == pc.EMA(pc.Adam(), 0.99)
    with pytest.raises(InputError, match=r"EMA: decay must be less than 1, got 1\.0"):
        TrainConfig(ema=1)
    assert pc.EMA(pc.SGD(pc.Cosine(0.1))).rate(0, 10) == 0.1
