"""schemathesis against the published schema: 2,000 bodies made from it, none of which the server fails on. Run by make test-slow."""

import sys
from collections import Counter
from pathlib import Path

import pytest

from dmoerm.modeling.reward_model import RewardModel

pytest.importorskip("fastapi")
pytest.importorskip("schemathesis", reason="needs schemathesis, which dmoerm[dev] brings")

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.core import NOT_SET
from starlette.testclient import TestClient
from test_serving import POSTS, URL, wait_ready

from dmoerm.serving.app import build_server
from dmoerm.serving.settings import ServerSettings

ARTIFACT = Path(__file__).parent / "fixtures" / "artifact_v2"
CASES = 2_000
EXPECTED = frozenset({200, 413, 415, 422})
"""No route is missing, nothing is too slow, no key is asked for, and the server is never at fault."""


@pytest.mark.slow
@pytest.mark.faults("F32")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::hypothesis.errors.HypothesisWarning")
def test_no_body_that_the_schema_can_make_is_a_500(capsys):
    model = RewardModel.from_pretrained(ARTIFACT / "model", device="cpu", backbone=ARTIFACT / "backbone")
    found: dict[str, Counter[int]] = {}
    with TestClient(build_server(lambda: model, ServerSettings()), base_url=URL) as client:  # raises what the server does not catch
        wait_ready(client)
        schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
        operations = [result.ok() for result in schema.get_all_operations()]
        posts = [operation for operation in operations if operation.method == "post"]
        assert {operation.path for operation in posts} == set(POSTS)
        for operation in operations:
            count = -(-CASES // len(posts)) if operation in posts else 1
            found[operation.label] = run(client, operation, count)
    cases = sum(sum(statuses.values()) for statuses in found.values())
    with capsys.disabled():
        sys.stdout.write(f"\nschemathesis {schemathesis.__version__}: {cases:,} cases\n")
        for label, statuses in found.items():
            sys.stdout.write(f"  {label:<28} {', '.join(f'{status}: {n}' for status, n in sorted(statuses.items()))}\n")
    assert cases >= CASES
    assert all(found[operation.label][200] > 0 for operation in operations), "a route that no case gets through is not tested"


def run(client, operation, count):
    """How many answers had which status."""
    statuses = Counter()

    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )
    @given(operation.as_strategy())
    def ask(case):
        body = {} if case.body is NOT_SET else {"json": case.body}
        reply = client.request(case.method, case.formatted_path, **body)
        statuses[reply.status_code] += 1
        assert reply.status_code in EXPECTED, (case.method, case.path, case.body, reply.text)

    ask()
    return statuses
