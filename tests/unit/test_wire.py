"""What a client and its router say to each other about many uids."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ray_route.errors import NoAvailablePodError, PodRestartingError, RouteError
from ray_route.model import MAX_POD, Link
from ray_route.protocol.wire import pack_answers, pack_question, unpack_answers, unpack_question

NUMBERS = st.integers(0, 2**53)
LINKS = st.builds(
    Link,
    st.integers(0, MAX_POD),
    NUMBERS,
    NUMBERS,
    st.booleans(),
    st.floats(0, 1e9, allow_nan=False),
)
ERRORS = st.sampled_from(
    [
        NoAvailablePodError(known={0: "gone"}, namespace="game", service="chat"),
        PodRestartingError(reason="it may come back", may_have_run=False, uid="u", pod=0),
    ]
)


@given(st.lists(st.one_of(LINKS, ERRORS, st.none()), max_size=30))
def test_each_uid_gets_its_own_answer_back(answers: list[Link | RouteError | None]):
    got = unpack_answers(pack_answers(answers))
    assert len(got) == len(answers)
    for sent, received in zip(answers, got, strict=True):
        assert type(sent) is type(received)
        if isinstance(sent, Link) and isinstance(received, Link):
            assert (sent, sent.lease_s) == (received, received.lease_s)
        elif isinstance(sent, RouteError):
            assert str(sent) == str(received)
            assert vars(sent) == vars(received)


@given(st.text(), st.dictionaries(st.text(), NUMBERS), st.one_of(st.none(), st.text()))
def test_a_question_arrives_as_it_was_asked(service: str, wanted: dict[str, int], node: str | None):
    got = unpack_question(pack_question(service, wanted, node))
    assert got == (service, wanted, node)
    assert list(got[1]) == list(wanted)
