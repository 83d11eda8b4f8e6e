"""What can be fuzzed: something that reads, with inputs to start from and a way to change them."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from parallelcnn.errors import InputError

Mutate = Callable[[bytes], bytes]


class Target(NamedTuple):
    """Something that reads.

    Attributes:
        seeds: small valid inputs.
        examine: feeds it one input, in a folder that it may use; raises Violation.
        mutate: another input made from one, given random numbers and what changes bytes blindly.
    """

    seeds: Callable[[], list[bytes]]
    examine: Callable[[bytes, Path], InputError | None]
    mutate: Callable[[bytes, random.Random, Mutate], bytes]
