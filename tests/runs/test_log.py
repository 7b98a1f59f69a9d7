"""Reading a run's log."""

import json

import pytest

from fastgan.runs.log import FILE_NAME, read

LINE = {"step": 4, "images": 16, "loss_g": 0.5}
ODD = [
    b"\xff\xfe",
    b"\0" * 100,
    b"[" * 100_000,
    b"null",
    b"[]",
    b"3",
    b'"step"',
    b"{}",
    b'{"step": 4}',
    b'{"step": "4", "images": 16}',
    b'{"step": 4.5, "images": 16}',
    b'{"step": -1, "images": 16}',
    b'{"step": true, "images": 16}',
    b'{"step": 1e999, "images": 16}',
    b'{"step": 4, "images": 9223372036854775808}',
    b'{"step": 4, "images": 16, "loss_g": ' + b"9" * 5000 + b"}",
]
OTHERS = ['"low"', "null", "true", "[1]", "{}", "NaN", "1e999", "1" + "0" * 400]


def test_there_may_be_no_log(tmp_path):
    assert read(tmp_path) == []


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_what_is_no_line_of_a_log_is_skipped(odd, tmp_path):
    line = json.dumps(LINE).encode()
    (tmp_path / FILE_NAME).write_bytes(b"\n".join([line, odd, b"", line, line]))
    assert read(tmp_path) == [LINE, LINE]  # the last one is unfinished


@pytest.mark.parametrize("value", OTHERS)
def test_values_that_are_no_finite_numbers_are_left_out(value, tmp_path):
    line = json.dumps(LINE).encode()
    (tmp_path / FILE_NAME).write_bytes(line[:-1] + f', "loss_d": {value}}}\n'.encode())
    assert read(tmp_path) == [LINE]
