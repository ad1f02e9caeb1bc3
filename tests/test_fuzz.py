"""Whatever stands in a file that somebody else has made, only documented errors leave its reader."""

import pytest
from fuzzing import INPUTS, make_sources, try_input
from hypothesis import HealthCheck, given, settings

# the same examples at every run; few, because the number of readers is what makes the time
BOUNDED = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
EXAMPLES = 60


@pytest.fixture(scope="module")
def sources(toy_bundle, tmp_path_factory):
    return make_sources(toy_bundle, tmp_path_factory.mktemp("sources"))


@pytest.mark.parametrize("kind", INPUTS, ids=lambda kind: kind.name)
def test_only_documented_errors_leave_a_reader(kind, sources, tmp_path):
    pytest.importorskip("pyarrow")

    @settings(BOUNDED, max_examples=int(EXAMPLES * kind.weight))
    @given(kind.examples)
    def read(example):
        try_input(kind, tmp_path, sources, example)

    read()
