import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import results


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "results.jsonl"
    for index in range(3):
        results.append(path, {"id": index, "accuracy": 0.5})
    return path


@pytest.mark.parametrize("cut", [1, 10])
def test_an_incomplete_last_line_is_replaced(path, cut):
    text = path.read_text()
    path.write_text(text[:-cut])
    assert [line["id"] for line in results.read(path)] == [0, 1]
    results.append(path, {"id": 2, "accuracy": 0.5})
    assert path.read_text() == text


def test_a_damaged_line_is_reported_with_its_number(path):
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], "{", *lines[2:], ""]))
    with pytest.raises(ValueError, match=r"results.jsonl, line 3, is not a result"):
        results.read(path)


def test_duplicates_count_once(path):
    path.write_text(path.read_text() * 2)
    assert [line["id"] for line in results.read(path)] == [0, 1, 2]


def test_concurrent_writers(tmp_path):
    path = tmp_path / "lines.jsonl"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: results.append(path, {"id": index, "text": "x" * 5000}), range(200)))
    assert {line["id"] for line in results.read(path)} == set(range(200))


def test_label_maps_round_trip_through_json():
    labels = np.random.default_rng(0).integers(0, 200, (7, 5))
    rows = json.loads(json.dumps(results.encode_labels(labels)))
    assert np.array_equal(results.decode_labels(rows), labels)


@given(st.lists(st.booleans()))
def test_bits_are_decoded(values):
    assert results.decode_bits(results.encode_bits(np.array(values, bool)), len(values)).tolist() == values


@given(st.lists(st.integers(0, 255)))
def test_counts_are_decoded(values):
    assert results.decode_counts(results.encode_counts(np.array(values, int))).tolist() == values
