"""Each sample once an epoch, the same minibatches for any number of ranks."""

import numpy as np
import pytest

from parallelcnn.data.sampler import Sampler, shard, shuffle


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 4, 7, 50])
@pytest.mark.parametrize("batch_size", [1, 7, 100, 101])
def test_the_ranks_shares_are_the_minibatch_and_the_minibatches_are_the_epoch(n_ranks, batch_size):
    sampler = Sampler(211, batch_size, seed=5)
    seen = []
    while (done := 211 + sum(map(len, seen))) < sampler.samples_in(2):
        epoch, minibatch = sampler.after(done)
        assert epoch == 2
        shares = [shard(minibatch, rank, n_ranks) for rank in range(n_ranks)]
        np.testing.assert_array_equal(np.concatenate(shares), minibatch)
        sizes = [len(share) for share in shares]
        assert max(sizes) - min(sizes) <= 1
        assert len(minibatch) <= batch_size
        seen.append(minibatch)
    assert all(len(minibatch) == batch_size for minibatch in seen[:-1])
    assert len(seen) == sampler.steps_in(1)
    np.testing.assert_array_equal(np.concatenate(seen), shuffle(211, seed=5, epoch=2))
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(211))


def test_the_order_depends_on_seed_and_epoch_alone():
    np.testing.assert_array_equal(shuffle(99, 1, 1), shuffle(99, 1, 1))
    assert not np.array_equal(shuffle(99, 1, 1), shuffle(99, 1, 2))
    assert not np.array_equal(shuffle(99, 1, 1), shuffle(99, 2, 1))
