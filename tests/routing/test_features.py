from __future__ import annotations

from collections import Counter
from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.routing.conversation import read_messages
from coe_server.routing.features import WINDOW_BYTES, Features, SparseVector, Turn, buckets, distinct, normalised
from tests.examples import examples

BITS = 18


def slow_words(data: bytes) -> list[bytes]:
    words, word = [], b""
    for byte in data + b" ":
        if byte >= 128 or chr(byte).isalnum():
            word += bytes([byte])
        elif word:
            words.append(word)
            word = b""
    return words


def everything(bits: int = BITS) -> Features:
    return Features.of(bits, np.arange(1 << bits), np.ones(1 << bits, dtype=np.float32))


@examples(200)
@given(st.text(max_size=60))
def test_there_is_one_bucket_for_each_word_pair_and_run(text: str) -> None:
    data = normalised(text).tobytes()
    words = slow_words(data)
    length = len(data)
    runs = sum(max(0, length - n + 1) for n in (3, 4, 5))
    found = buckets(text, BITS)
    assert len(found) == runs + len(words) + max(0, len(words) - 1)
    is_run = found >= 1 << (BITS - 1)
    assert is_run.sum() == runs
    assert found.max(initial=0) < 1 << BITS


def slow_buckets(data: bytes, bits: int) -> Counter[int]:
    """The bucket of every n-gram, hashed one at a time: what artifacts on disk were trained with."""
    whole, fnv, pair_seed, half = 0xFFFFFFFF, 0x01000193, 0x85EBCA77, 1 << (bits - 1)
    run_seeds = {3: 0xC2B2AE3D, 4: 0x27D4EB2F, 5: 0x165667B1}
    words = [sum(byte * fnv ** (at + 1) for at, byte in enumerate(word)) + len(word) for word in slow_words(data)]
    pairs = [(first * pair_seed + second) & whole for first, second in pairwise(words)]
    hashes = [word * 0x9E3779B1 for word in words] + [(pair ^ pair >> 15) * pair_seed for pair in pairs]
    found = Counter((value & whole) >> (33 - bits) for value in hashes)
    for length, seed in run_seeds.items():
        for at in range(len(data) - length + 1):
            value = reduce(lambda value, byte: value * fnv + byte, data[at : at + length], 0) * seed
            found[(value & whole) >> (33 - bits) | half] += 1
    return found


@examples(200)
@given(st.text(max_size=40) | st.text(alphabet="ab C.\n", max_size=80))
def test_every_ngram_is_in_the_bucket_of_its_hash(text: str) -> None:
    assert Counter(buckets(text, BITS).tolist()) == slow_buckets(normalised(text).tobytes(), BITS)


def test_different_words_rarely_share_a_bucket() -> None:
    words = [f"word{number}" for number in range(2000)]
    places = Counter(int(buckets(word, BITS)[0]) for word in words)
    # 2,000 in 131,072 buckets: about 15 collisions by chance
    assert len(places) > 1960


def test_the_order_of_the_letters_matters() -> None:
    assert set(buckets("listen", BITS).tolist()).isdisjoint({int(buckets("silent", BITS)[0])})


@given(st.text(max_size=50))
def test_case_and_white_space_do_not_matter(text: str) -> None:
    spaced = text.replace(" ", " \n\t ")
    assert np.array_equal(buckets(text, BITS), buckets(f"  {spaced} ", BITS))
    assert np.array_equal(buckets("SELECT It", BITS), buckets("select iT", BITS))


def test_a_long_text_is_its_start_and_its_end() -> None:
    start, end = "a" * WINDOW_BYTES, "z" * WINDOW_BYTES
    assert len(normalised(start + "q" * 100_000 + end)) <= 2 * WINDOW_BYTES + 2
    assert np.array_equal(normalised(start + "q" * 9_000 + end), normalised(start + "x" * 90_000 + end))


@given(st.text(alphabet="日本語éß😀 ", min_size=1, max_size=5000))
def test_any_language_fits_the_window(text: str) -> None:
    assert len(normalised(text)) <= 2 * WINDOW_BYTES + 2


@given(st.lists(st.integers(0, 20), max_size=60))
def test_counting_agrees_with_a_counter(values: list[int]) -> None:
    columns, counts = distinct(np.array(values, dtype=np.int64))
    assert dict(zip(columns.tolist(), counts.tolist(), strict=True)) == Counter(values)
    assert columns.tolist() == sorted(columns.tolist())


@given(st.text(max_size=100))
def test_words_and_runs_each_have_length_one(text: str) -> None:
    features = everything()
    vector = features.vector((Turn(text),))
    is_word = vector.columns < features.word_columns
    for part in (vector.weights[is_word], vector.weights[~is_word]):
        assert len(part) == 0 or float(part @ part) == pytest.approx(1.0, abs=1e-5)


@given(st.text(max_size=100))
def test_a_turn_split_in_two_halves_of_the_weight_is_the_same_vector(text: str) -> None:
    whole = everything().vector((Turn(text),))
    halves = everything().vector((Turn(text, 0.5), Turn(text, 0.5)))
    assert np.array_equal(whole.columns, halves.columns)
    assert whole.weights == pytest.approx(halves.weights)


def test_ngrams_that_training_did_not_keep_are_ignored() -> None:
    kept = np.unique(buckets("known words", BITS)).astype(np.int64)
    features = Features.of(BITS, kept, np.ones(len(kept), dtype=np.float32))
    known = features.vector((Turn("known words"),))
    assert len(known.columns) == len(kept)
    assert len(features.vector((Turn("qqzzq"),)).columns) == 0


def test_the_newest_turn_weighs_most() -> None:
    conversation = read_messages(
        [
            {"role": "system", "content": "You are a poet."},
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": "ignored answer"},
            {"role": "user", "content": [{"type": "text", "text": "second"}, {"type": "text", "text": "part"}]},
            {"role": "tool", "content": "ignored result"},
        ]
    )
    assert conversation.turns == (Turn("first", 0.5), Turn("second\npart", 1.0))


@examples(20)
@given(st.integers(0, 400), st.sampled_from([1, 3, 900]))
def test_a_product_in_blocks_is_the_product(entries: int, width: int) -> None:
    generator = np.random.default_rng(entries)
    columns = np.sort(generator.permutation(500)[:entries])
    vector = SparseVector(columns, generator.random(entries, dtype=np.float32))
    matrix = generator.random((500, width), dtype=np.float32)
    assert vector.times(matrix) == pytest.approx(vector.weights.astype(np.float64) @ matrix[columns], rel=1e-5)


def test_features_read_texts_as_their_training_did() -> None:
    framed, plain = (Turn("Hi! Could you help me, please?\n\nThe Krebs cycle. Thanks!"),), (Turn("The Krebs cycle."),)
    kept, idf = np.arange(1 << BITS), np.ones(1 << BITS, dtype=np.float32)
    newest, before = Features.of(BITS, kept, idf, "unframed-1"), Features.of(BITS, kept, idf)
    assert np.array_equal(newest.vector(framed).columns, newest.vector(plain).columns)
    assert len(before.vector(framed).columns) > len(before.vector(plain).columns)
