"""Descriptions in JSON that are fuzzed: values replaced, left out, doubled, moved."""

import contextlib
import json
import random
from typing import Any

from fuzzing.target import Mutate

_ODD: list[Any] = [
    None, True, False, 0, 1, 2, 3, -1, 7, 2**31, 2**63, 2**64, 10**30, 10**4000, 0.5, 1e308, float("nan"),
    float("inf"), "", "\n", "\x1b[31m", "\ud800", "\udcff", "\u0663", "\u00b2", "relu", "tanh", "same", "valid",
    "x" * 5000, "9" * 5000, "float32", "float64", "float16", "O", "a4", "f4,f4", "(1,,2)f4,i4",
    "(9999,9999,9999)f4", "Conv2D", "Dense", "Flatten", "MaxPool2D", "Activation", "Layer", "__class__", "base",
    [], {}, [[]], [1], [1, 2], [3, 3, 3], [10**9] * 3, [2**31 - 1] * 3, [10**4000], {"a": 1},
    {"not stored": "x"}, [[1], [2]], ["a"], {"names": ["a"], "formats": ["f4"]},
]  # fmt: skip


def mutated_json(text: str, rng: random.Random, mutate: Mutate) -> str:
    """JSON with a value replaced, left out, doubled, or moved somewhere else; or with letters changed blindly."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    places = _places(value)
    choice = rng.random()
    if not places or choice < 0.05:
        return mutate(text.encode("utf-8", "surrogatepass")).decode("utf-8", "replace").replace("\0", "")
    if choice < 0.07:
        return rng.choice(["[", '{"a":', "[{"]) * rng.choice([10, 900, 20_000])
    for _ in range(rng.choice([1, 1, 2, 3])):
        parent, key = rng.choice(places)
        choice = rng.random()
        try:
            if choice < 0.6:
                parent[key] = rng.choice(_ODD)
            elif choice < 0.7:
                other, other_key = rng.choice(places)
                parent[key] = json.loads(json.dumps(other[other_key]))
            elif choice < 0.8:
                del parent[key]
            elif choice < 0.9 and isinstance(parent, list):
                parent[key:key] = [parent[key]] * rng.choice([1, 1, 2, 300])
            elif isinstance(parent[key], int):
                parent[key] = parent[key] * rng.choice([-1, 2, 1000]) + rng.choice([-1, 0, 1])
            else:
                parent[key] = [parent[key]]
        except (LookupError, TypeError, ValueError, RecursionError):
            continue  # another change has taken that place away
    with contextlib.suppress(ValueError, RecursionError):
        return json.dumps(value)
    return text


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key or index) of every value inside a value."""
    places: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        container = waiting.pop()
        if not isinstance(container, dict | list):
            continue
        for key, one in container.items() if isinstance(container, dict) else enumerate(container):
            places.append((container, key))
            waiting.append(one)
    return places
