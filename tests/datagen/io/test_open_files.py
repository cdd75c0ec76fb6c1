"""The limit of open files is raised as far as it may be, and one that is too low is named."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from datagen.errors import FlowmapsrError
from datagen.io.open_files import ENOUGH, LEAST, check_limit, raise_limit


@pytest.fixture
def low_limit() -> Iterator[int]:
    """This process may open fewer files than a training needs; gives how many it may ask for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (LEAST - 1, hard))
    yield ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_low_limit_is_named_with_the_command_that_raises_it(low_limit: int) -> None:
    with pytest.raises(FlowmapsrError, match=r"only 511 files open here.*ulimit -n 4096"):
        check_limit()


def test_a_low_limit_is_raised_as_far_as_it_may_be(low_limit: int) -> None:
    raise_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == low_limit
    check_limit()
