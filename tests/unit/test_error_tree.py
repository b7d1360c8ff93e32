from __future__ import annotations

import copy
import inspect
import pickle

import pytest

import ray_route
from ray_route import errors
from ray_route.errors import (
    CallCancelledError,
    ClosedError,
    ConfigError,
    DamagedKeyError,
    FencedError,
    InvalidInputError,
    LostWritesError,
    NestedCallError,
    NoAvailablePodError,
    PartialBatchError,
    PodRestartingError,
    PodStartError,
    PodUnavailableError,
    RayGoneError,
    RayUnavailableError,
    RouteError,
    RouterUnavailableError,
    RouteTimeoutError,
    StateNotMovedError,
    StoreUnavailableError,
    UnknownMethodError,
    UnpicklableError,
    UnsafeStoreError,
    UpgradeError,
)
from ray_route.model import LinkedPods

IDS = {"namespace": "game", "service": "chat", "uid": "user:42", "pod": 0}
ADDRESS = "10.0.0.7:6379"
EXAMPLES: dict[type[RouteError], RouteError] = {
    RouteError: RouteError(**IDS),
    InvalidInputError: InvalidInputError(argument="pod", value=-1, reason="must be", **IDS),
    UnknownMethodError: UnknownMethodError(argument="method", value="x", reason="is none", **IDS),
    ConfigError: ConfigError(option="ttl_s", reason="must be positive", **IDS),
    UnsafeStoreError: UnsafeStoreError(address=ADDRESS, reason="it evicts", fix="set it", **IDS),
    DamagedKeyError: DamagedKeyError(key="rr:{game:3}:e", reason="'x'", **IDS),
    NoAvailablePodError: NoAvailablePodError(known={2: "gone", 0: "DENY_NEW"}, **IDS),
    PodRestartingError: PodRestartingError(reason="it restarts", may_have_run=False, **IDS),
    StateNotMovedError: StateNotMovedError(
        reason="it holds a lock", may_have_run=False, target=3, is_final=True, **IDS
    ),
    PodStartError: PodStartError(reason="KeyError: 'x'", may_have_run=False, **IDS),
    UpgradeError: UpgradeError(reason="it won't start", undone=False, left=[3, 4], **IDS),
    CallCancelledError: CallCancelledError(method="say", may_have_run=False, **IDS),
    UnpicklableError: UnpicklableError(method="say", what="result", reason="a lock", **IDS),
    PodUnavailableError: PodUnavailableError(reason="it is gone", may_have_run=True, **IDS),
    FencedError: FencedError(reason="released", may_have_run=False, epoch=2**53 - 1, **IDS),
    StoreUnavailableError: StoreUnavailableError(address=ADDRESS, reason="refused", **IDS),
    LostWritesError: LostWritesError(address=ADDRESS, shards=[3], reason="restarted", **IDS),
    PartialBatchError: PartialBatchError(
        address=ADDRESS,
        reason="refused",
        shards={3: "refused"},
        partial=LinkedPods({0: ["a"]}, ["b"], frozenset({0})),
        **IDS,
    ),
    RouterUnavailableError: RouterUnavailableError(reason="it restarts", **IDS),
    RayUnavailableError: RayUnavailableError(address=ADDRESS, reason="nothing listens", **IDS),
    ClosedError: ClosedError(what="a client", **IDS),
    RayGoneError: RayGoneError(what="a client", **IDS),
    NestedCallError: NestedCallError(
        method="pay", error=FencedError(reason="released", may_have_run=False, uid="bob"), **IDS
    ),
    RouteTimeoutError: RouteTimeoutError(waiting_for="the router", timeout_s=1.5, **IDS),
}
each_error = pytest.mark.parametrize("error", EXAMPLES.values(), ids=lambda e: type(e).__name__)


def all_classes(root: type) -> set[type]:
    return {root}.union(*(all_classes(child) for child in root.__subclasses__()))


def test_every_error_class_has_an_example_here():
    ours = {cls for cls in all_classes(RouteError) if vars(errors).get(cls.__name__) is cls}
    assert ours == EXAMPLES.keys()


@each_error
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_errors_survive_pickling_whole(error: RouteError, protocol: int):
    copied = pickle.loads(pickle.dumps(error, protocol))
    assert type(copied) is type(error)
    assert str(copied) == str(error)
    assert facts(copied) == facts(error)


@each_error
def test_errors_survive_a_second_border(error: RouteError):
    copied = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(error))))
    assert (str(copied), facts(copied)) == (str(error), facts(error))


@each_error
def test_errors_can_be_copied(error: RouteError):
    assert str(copy.copy(error)) == str(error)


def facts(error: RouteError) -> dict[str, object]:
    """All that a handler can read, in a form that can be compared."""
    seen = {name: value for name, value in vars(error).items() if name != "_facts"}
    if isinstance(error, NestedCallError):
        seen["error"] = (type(error.error), facts(error.error))
    if isinstance(seen.get("partial"), LinkedPods):
        partial = seen.pop("partial")
        seen |= {"pods": dict(partial), "missing": partial.missing, "un": partial.unroutable}
    return seen


@each_error
def test_ids_are_in_the_message_and_are_attributes(error: RouteError):
    for name, value in IDS.items():
        assert getattr(error, name) == value
        assert f"{name}={value!r}" in str(error)


@each_error
def test_every_error_has_every_id_even_where_it_does_not_apply(error: RouteError):
    bare = type(error)(**{k: v for k, v in error._facts.items() if k not in IDS})
    assert (bare.namespace, bare.service, bare.uid, bare.pod) == (None, None, None, None)
    assert "None" not in str(bare)


def test_errors_are_grouped_under_one_root():
    assert issubclass(InvalidInputError, ValueError)
    assert issubclass(RouteTimeoutError, TimeoutError)
    assert issubclass(PartialBatchError, StoreUnavailableError)
    assert all(issubclass(cls, RouteError) for cls in EXAMPLES)


def test_no_other_error_is_caught_as_a_value_error_or_an_os_error():
    catchable = {cls for cls in EXAMPLES if issubclass(cls, (ValueError, OSError))}
    assert catchable == {InvalidInputError, UnknownMethodError, RouteTimeoutError}


def test_an_error_says_what_to_do_next():
    ran, not_run = (
        PodUnavailableError(reason="gone", may_have_run=ran, **IDS) for ran in (True, False)
    )
    assert "idempotent=True" in str(ran)
    assert "did not run" in str(not_run)
    assert "may have run" in str(FencedError(reason="released", may_have_run=True))
    assert "did not run" in str(FencedError(reason="released", may_have_run=False))
    assert "connect again" in str(EXAMPLES[ClosedError])
    assert "join a Ray again" in str(EXAMPLES[RayGoneError])
    assert "set it" in str(EXAMPLES[UnsafeStoreError])
    assert "the router" in str(EXAMPLES[RouteTimeoutError])


def test_a_timeout_says_whether_a_call_was_sent() -> None:
    sent, unsent = (
        RouteTimeoutError(waiting_for="a pod", timeout_s=1, may_have_run=ran)
        for ran in (True, False)
    )
    assert "may run still" in str(sent)
    assert "did not run" in str(unsent)
    assert "run" not in str(RouteTimeoutError(waiting_for="a link", timeout_s=1))


def test_what_a_nested_call_met_is_no_verdict_on_the_outer_one() -> None:
    outer = EXAMPLES[NestedCallError]
    assert isinstance(outer, NestedCallError)
    assert outer.may_have_run
    assert not isinstance(outer, FencedError)
    assert (outer.uid, outer.error.uid) == (IDS["uid"], "bob")
    assert "pay raised FencedError" in str(outer)
    assert "the call has run" in str(outer)


def test_no_available_pod_lists_every_known_pod_in_order():
    assert "0: DENY_NEW, 2: gone" in str(EXAMPLES[NoAvailablePodError])
    assert "no pods" in str(NoAvailablePodError(known={}))


@pytest.mark.parametrize("uid", ["x" * 10_000, "\n" * 10_000])
def test_a_huge_value_makes_no_huge_message(uid: str):
    error = InvalidInputError(argument="uid", value=uid, reason="is too long", uid=uid)
    assert len(str(error)) < 500
    assert "\n" not in str(error)


def test_the_tree_in_the_docs_names_every_class():
    for cls in EXAMPLES:
        assert cls.__name__ in (errors.__doc__ or "")


def test_every_error_is_exported():
    assert {cls.__name__ for cls in EXAMPLES} <= set(ray_route.__all__)


def test_exports_are_complete_sorted_and_there():
    found = {name: getattr(ray_route, name) for name in dir(ray_route) if name[0] != "_"}
    public = {name for name, value in found.items() if not inspect.ismodule(value)}
    public -= {"Any", "TYPE_CHECKING", "import_module"}  # by which the others are loaded
    assert set(ray_route.__all__) == public | {"__version__"}
    assert all(hasattr(ray_route, name) for name in ray_route.__all__)
