"""Rows seen before, against a plain dictionary."""

import random

import pytest

from workbench.data.duplicates import Seen


@pytest.mark.parametrize("values", [3, 400, 2**64])
def test_it_knows_what_a_dictionary_knows(values):
    draw, seen, plain, number = random.Random(values), Seen(), {}, 0
    for size in [0, 1, 256, 7, 0, 256, 256, 255, 1, 300, 256, 2, 900]:
        places = [f"rows – {number + i}.jsonl:{number + i}" for i in range(size)]
        digests = [draw.randrange(values) for _ in range(size)]
        expected = []
        for place, digest in zip(places, digests, strict=True):
            expected.append(plain.get(digest))
            plain.setdefault(digest, place)
        assert seen.add(places, digests) == expected
        number += size
        asked = [draw.randrange(values) for _ in range(50)] + digests[:50]
        assert seen.get(asked) == [plain.get(digest) for digest in asked]
