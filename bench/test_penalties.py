import itertools

import pytest

from bench import penalties


@pytest.fixture(scope="module", params=itertools.product(penalties.DISCRIMINATORS, penalties.DTYPES), ids="-".join)
def rows(request):
    return {row["form"]: (row, call) for row, call in penalties.run(*request.param)}


@pytest.mark.parametrize("penalty", penalties.PASSES)
def test_penalty(rows, penalty, record):
    record(*rows[penalty])
