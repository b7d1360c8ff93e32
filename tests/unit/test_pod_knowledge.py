"""What is known of pods: PodTable, LoadBook, HeartbeatMonitor."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from ray_route.model import Life, Link, PodRecord, RoutingState
from ray_route.router.failure_detector import HeartbeatMonitor
from ray_route.state.load_book import LoadBook
from ray_route.state.pod_table import PodTable

S = "chat"
POD = PodRecord(0, 7, RoutingState.READY, Life.ALIVE, 0.0, "node", "process", "actor", 1_000, 10)
GONE = replace(POD, life=Life.GONE)
RETURNED = replace(POD, incarnation=8, heartbeat_us=2_000, seq=1)


def link_to(incarnation: int, pod: int = 0) -> Link:
    return Link(pod, incarnation, 100, persistent=False, lease_s=10.0)


@pytest.fixture
def table() -> PodTable:
    known = PodTable()
    known.update(S, POD)
    return known


class TestPodTable:
    def test_services_and_pods_are_kept_apart(self, table: PodTable):
        table.update("other", replace(POD, pod=1))
        assert table.services() == [S, "other"]
        assert table.get(S, 0) == POD
        assert table.get(S, 1) is None
        assert table.get("unknown", 0) is None
        assert table.pods("unknown") == {}

    def test_available_pods_are_those_that_take_new_uids_by_index(self, table: PodTable):
        table.update(S, replace(POD, pod=3))
        table.update(S, replace(POD, pod=1, state=RoutingState.DENY_NEW))
        table.update(S, replace(POD, pod=2, life=Life.GONE))
        assert [pod.pod for pod in table.available(S)] == [0, 3]

    @pytest.mark.parametrize(
        "change",
        [
            {"seq": 11},
            {"seq": 11, "heartbeat_us": 1},
            {"state": RoutingState.DENY_NEW},
            {"life": Life.GONE},
            {"incarnation": 8, "seq": 1},
        ],
    )
    def test_newer_knowledge_replaces_older(self, table: PodTable, change):
        table.update(S, replace(POD, **change))
        assert table.get(S, 0) == replace(POD, **change)

    @pytest.mark.parametrize(
        "stale",
        [
            replace(POD, incarnation=6, seq=90),
            replace(POD, seq=9, heartbeat_us=9_000),
            replace(POD, incarnation=6, life=Life.GONE),
        ],
    )
    def test_older_knowledge_is_ignored(self, table: PodTable, stale: PodRecord):
        assert not table.update(S, stale)
        assert table.get(S, 0) == POD

    @pytest.mark.parametrize("ending", [Life.GONE, Life.RESIGNED])
    def test_a_dead_incarnation_never_comes_back_to_life(self, table: PodTable, ending: Life):
        table.update(S, replace(POD, life=ending))
        assert not table.update(S, replace(POD, seq=90))
        assert table.get(S, 0).life is ending

    def test_a_death_is_news_whatever_its_number(self, table: PodTable):
        assert table.update(S, replace(GONE, seq=5))
        assert table.get(S, 0).life is Life.GONE

    def test_a_clock_that_steps_back_hides_no_shutdown(self, table: PodTable):
        shut = replace(POD, state=RoutingState.SHUTDOWN, heartbeat_us=1, seq=11)
        assert table.update(S, shut)
        assert table.available(S) == ()
        assert table.has_ended(S, link_to(7))

    def test_a_pod_that_has_shut_down_serves_again_as_another_life_alone(self, table: PodTable):
        """Redis may have lost the end of it, and the pod renews on."""
        table.update(S, replace(POD, state=RoutingState.SHUTDOWN, seq=11))
        assert not table.update(S, replace(POD, seq=12))
        assert table.get(S, 0).state is RoutingState.SHUTDOWN
        assert table.update(S, GONE)
        assert table.update(S, RETURNED)
        assert table.available(S) == (RETURNED,)

    def test_the_next_incarnation_of_a_dead_pod_is_alive(self, table: PodTable):
        table.update(S, GONE)
        assert table.update(S, RETURNED)
        assert table.available(S) == (RETURNED,)

    def test_only_changes_of_routing_are_reported_as_changes(self, table: PodTable):
        assert not table.update(S, POD)
        assert not table.update(S, replace(POD, load=5.0, heartbeat_us=1_500))
        assert table.get(S, 0).load == 5.0
        assert table.update(S, replace(POD, state=RoutingState.DENY_NEW, heartbeat_us=1_500))
        assert table.update(S, replace(POD, pod=1))

    def test_a_link_is_routable_to_its_own_incarnation_alone(self, table: PodTable):
        assert table.routable(S, link_to(7))
        assert not table.routable(S, link_to(6))
        assert not table.routable(S, link_to(8))
        assert not table.routable(S, link_to(7, pod=1))
        assert not table.routable("other", link_to(7))

    @pytest.mark.parametrize(
        ("state", "routable"),
        [
            (RoutingState.READY, True),
            (RoutingState.DENY_NEW, True),
            (RoutingState.SHUTDOWN, False),
        ],
    )
    def test_a_link_is_routable_while_its_pod_serves(self, table: PodTable, state, routable):
        table.update(S, replace(POD, state=state))
        assert table.routable(S, link_to(7)) == routable
        table.update(S, replace(GONE, state=state))
        assert not table.routable(S, link_to(7))

    def test_a_life_has_ended_when_it_was_declared_so_or_replaced(self, table: PodTable):
        assert not table.has_ended(S, link_to(7))
        assert table.has_ended(S, link_to(6))
        table.update(S, GONE)
        assert table.has_ended(S, link_to(7))
        table.update(S, RETURNED)
        assert table.has_ended(S, link_to(7))
        assert not table.has_ended(S, link_to(8))

    def test_absence_is_never_death(self, table: PodTable):
        assert not table.has_ended(S, link_to(7, pod=1))
        assert not table.has_ended("other", link_to(7))

    def test_a_table_that_lags_behind_proves_nothing(self, table: PodTable):
        table.update(S, GONE)
        assert not table.has_ended(S, link_to(8))

    def test_the_links_of_a_pod_that_has_shut_down_may_go_elsewhere(self, table: PodTable):
        table.update(S, replace(POD, state=RoutingState.DENY_NEW))
        assert not table.has_ended(S, link_to(7))
        table.update(S, replace(POD, state=RoutingState.SHUTDOWN))
        assert table.has_ended(S, link_to(7))


class TestLoadBook:
    def load(self, book: LoadBook, pod: PodRecord = POD) -> float:
        return book.load(S, [pod])[pod.pod]

    def test_a_pod_that_nobody_reported_is_idle(self):
        assert LoadBook().load(S, [POD, replace(POD, pod=1)]) == {0: 0.0, 1: 0.0}

    @pytest.mark.parametrize(("load", "links"), [(4.2, 4), (0.0, 0), (math.inf, 0), (math.nan, 0)])
    def test_the_links_of_a_life_that_an_earlier_router_knew_begin_with_its_load(self, load, links):
        book = LoadBook()
        book.report(S, replace(POD, load=load, heartbeat_us=1_000))
        assert book.links(S, POD) == links
        book.placed(S, POD, [1_001])
        book.report(S, replace(POD, load=9.0, heartbeat_us=1_002))
        assert book.links(S, POD) == links + 1, "it is counted from there"
        book.left(S, POD.pod, POD.incarnation, 1_001)
        assert book.links(S, POD) == links

    def test_what_is_placed_before_a_report_is_heard_counts_once(self):
        book = LoadBook()
        book.placed(S, POD, [1, 2])
        book.report(S, replace(POD, load=2.0, heartbeat_us=1_000))
        assert book.links(S, POD) == 2

    def test_load_is_the_report_and_what_was_placed_since(self):
        book = LoadBook()
        book.report(S, replace(POD, load=4.0))
        book.placed(S, POD, [1_001])
        book.placed(S, POD, [1_002])
        assert self.load(book) == 6.0

    def test_placements_that_a_report_includes_by_redis_time_are_counted_once(self):
        book = LoadBook()
        for epoch in (1_001, 1_002, 1_003):
            book.placed(S, POD, [epoch])
        book.report(S, replace(POD, load=2.0, heartbeat_us=1_002))
        assert self.load(book) == 3.0

    def test_placements_of_shards_that_count_for_themselves_may_come_in_any_order(self):
        book = LoadBook()
        for epoch in (1_009, 1_001, 1_002, 1_003):
            book.placed(S, POD, [epoch])
        book.report(S, replace(POD, load=3.0, heartbeat_us=1_004))
        assert self.load(book) == 4.0

    def test_a_link_on_its_way_to_its_pod_when_that_reports_counts_on(self):
        book = LoadBook()
        at = 10_000_000
        book.report(S, replace(POD, load=5.0, heartbeat_us=at))
        for moment in (at + 100, at + 900_000, at + 990_000):
            book.placed(S, POD, [moment])
        book.report(S, replace(POD, load=6.0, heartbeat_us=at + 1_000_000))
        assert self.load(book) == 8.0, "the two that were placed just before"
        book.report(S, replace(POD, load=8.0, heartbeat_us=at + 2_000_000))
        assert self.load(book) == 8.0

    def test_a_link_that_never_reaches_its_pod_does_not_count_for_long(self):
        book = LoadBook()
        at = 10_000_000
        book.placed(S, POD, [at - 1])
        for second in range(10):
            book.report(S, replace(POD, load=0.0, heartbeat_us=at + second * 1_000_000))
            assert self.load(book) == 1.0
        book.report(S, replace(POD, load=0.0, heartbeat_us=at + 10_000_000))
        assert self.load(book) == 0.0

    def test_a_pod_that_is_slow_to_take_calls_does_not_seem_to_be_empty(self):
        book = LoadBook()
        at = 10_000_000
        book.placed(S, POD, range(at, at + 80))
        for second, arrived in enumerate((0, 0, 3, 3, 79, 80, 80), start=1):
            book.report(S, replace(POD, load=arrived, heartbeat_us=at + second * 1_000_000))
            assert self.load(book) == 80.0
        book.report(S, replace(POD, load=60.0, heartbeat_us=at + 8_000_000))
        assert self.load(book) == 60.0, "all had arrived, and twenty were lost"

    def test_a_link_that_left_before_it_was_reported_is_not_waited_for(self):
        book = LoadBook()
        at = 10_000_000
        book.placed(S, POD, [at + 1, at + 2, at + 3])
        book.report(S, replace(POD, load=1.0, heartbeat_us=at + 1_000_000))
        assert self.load(book) == 3.0
        book.left(S, POD.pod, POD.incarnation, at + 2)
        assert self.load(book) == 2.0
        book.report(S, replace(POD, load=2.0, heartbeat_us=at + 2_000_000))
        assert self.load(book) == 2.0

    def test_what_a_pod_has_lost_is_not_made_up_for_by_what_it_already_reports(self):
        book = LoadBook()
        at = 10_000_000
        book.report(S, replace(POD, load=2.0, heartbeat_us=at))
        book.placed(S, POD, [at + 600_000])
        book.report(S, replace(POD, load=3.0, heartbeat_us=at + 1_000_000))
        assert self.load(book) == 3.0, "the new one was reported: nothing is on its way"

    def test_a_report_that_comes_twice_changes_nothing(self):
        book = LoadBook()
        book.placed(S, POD, [1_500])
        for _ in range(2):
            book.report(S, replace(POD, load=1.0))
        assert self.load(book) == 2.0

    def test_links_that_are_being_written_count_until_they_are_settled(self):
        book = LoadBook()
        book.propose(S, POD, 2)
        assert self.load(book) == 2.0
        book.placed(S, POD, [1_001])
        book.settle(S, POD, 2)
        assert self.load(book) == 1.0

    def test_settling_more_than_was_proposed_makes_no_negative_load(self):
        book = LoadBook()
        book.settle(S, POD, 1)
        assert self.load(book) == 0.0

    def test_a_link_that_was_given_up_counts_no_more_reported_or_not(self):
        book = LoadBook()
        book.placed(S, POD, [900])
        book.report(S, replace(POD, load=4.0))
        book.placed(S, POD, [1_500])
        book.left(S, POD.pod, POD.incarnation, 1_500)
        assert self.load(book) == 4.0
        book.left(S, POD.pod, POD.incarnation, 900)
        assert self.load(book) == 3.0
        assert book.links(S, POD) == 3
        book.left(S, POD.pod, POD.incarnation + 1, 900)
        assert self.load(book) == 3.0, "another life's"

    def test_a_new_incarnation_begins_empty(self):
        book = LoadBook()
        book.report(S, replace(POD, load=4.0))
        book.placed(S, POD, [1_500])
        book.propose(S, POD, 1)
        assert self.load(book, RETURNED) == 0.0
        assert book.links(S, RETURNED) == 0

    def test_a_proposal_to_a_former_incarnation_is_not_settled_on_the_next(self):
        book = LoadBook()
        book.propose(S, POD, 1)
        book.propose(S, RETURNED, 2)
        assert self.load(book, RETURNED) == 2.0

    def test_links_are_counted_for_ever_whatever_is_reported(self):
        book = LoadBook()
        book.placed(S, POD, [1_001])
        book.placed(S, POD, [1_002])
        book.report(S, replace(POD, heartbeat_us=5_000))
        assert book.links(S, POD) == 2

    def test_services_with_the_same_index_are_kept_apart(self):
        book = LoadBook()
        book.placed(S, POD, [1_001])
        assert book.load("other", [POD]) == {0: 0.0}


class TestSilenceWatch:
    """A lease of 10 s, looked at every second; the observer may not sleep for more than 3 s."""

    @pytest.fixture
    def monitor(self) -> HeartbeatMonitor:
        return HeartbeatMonitor(lease_s=10.0, max_gap_s=3.0)

    def observe(self, monitor: HeartbeatMonitor, pod: PodRecord, begin: int, end: int) -> list[int]:
        """Look once a second; return the moments at which the pod was called silent."""
        return [at for at in range(begin, end) if monitor.look(float(at), [(S, pod)])]

    def test_a_pod_is_silent_after_a_whole_lease_under_observation(self, monitor: HeartbeatMonitor):
        assert self.observe(monitor, POD, 0, 12) == [10, 11]

    def test_the_silent_pod_is_named_and_its_neighbour_is_not(self, monitor: HeartbeatMonitor):
        for at in range(11):
            beating = replace(POD, pod=1, seq=1_000 + at)
            silent = monitor.look(float(at), [(S, POD), (S, beating)])
        assert silent == [(S, POD)]

    def test_a_heartbeat_that_moved_begins_the_count_anew(self, monitor: HeartbeatMonitor):
        assert self.observe(monitor, POD, 0, 10) == []
        moved = replace(POD, seq=11, heartbeat_us=1)
        assert self.observe(monitor, moved, 10, 22) == [20, 21]

    def test_an_old_heartbeat_alone_proves_nothing(self, monitor: HeartbeatMonitor):
        assert monitor.look(1e6, [(S, replace(POD, heartbeat_us=0))]) == []

    def test_a_new_incarnation_begins_the_count_anew(self, monitor: HeartbeatMonitor):
        self.observe(monitor, POD, 0, 10)
        assert self.observe(monitor, replace(POD, incarnation=8), 10, 20) == []

    def test_an_outage_of_the_store_begins_the_count_anew(self, monitor: HeartbeatMonitor):
        assert self.observe(monitor, POD, 0, 9) == []
        monitor.interrupt()
        assert self.observe(monitor, POD, 9, 20) == [19]

    def test_an_observer_that_slept_begins_the_count_anew(self, monitor: HeartbeatMonitor):
        assert self.observe(monitor, POD, 0, 9) == []
        assert self.observe(monitor, POD, 30, 42) == [40, 41]

    def test_a_gap_that_is_allowed_counts(self, monitor: HeartbeatMonitor):
        looks = [at for at in (0.0, 3.0, 6.0, 9.0, 12.0) if monitor.look(at, [(S, POD)])]
        assert looks == [12.0]

    def test_a_gap_just_longer_than_allowed_does_not(self, monitor: HeartbeatMonitor):
        looks = [at for at in (0.0, 3.0, 6.1, 9.1, 12.1) if monitor.look(at, [(S, POD)])]
        assert looks == []

    @pytest.mark.parametrize("ending", [Life.GONE, Life.RESIGNED])
    def test_a_pod_that_has_ended_is_not_silent(self, monitor: HeartbeatMonitor, ending: Life):
        assert self.observe(monitor, replace(POD, life=ending), 0, 30) == []

    def test_a_pod_that_was_away_from_the_table_is_not_silent_at_its_return(
        self, monitor: HeartbeatMonitor
    ):
        self.observe(monitor, POD, 0, 2)
        for at in range(2, 20):
            monitor.look(float(at), [])
        assert monitor.look(20.0, [(S, replace(POD, seq=5_000))]) == []

    def test_a_missed_beat_is_seen_before_the_lease_ends(self, monitor: HeartbeatMonitor):
        assert not monitor.missed_beat(S, POD, 0.0, heartbeat_s=1.0)
        monitor.look(0.0, [(S, POD)])
        assert not monitor.missed_beat(S, POD, 1.0, heartbeat_s=1.0)
        assert monitor.missed_beat(S, POD, 1.1, heartbeat_s=1.0)
        assert not monitor.missed_beat(S, replace(POD, seq=2_000), 1.1, heartbeat_s=1.0)
        monitor.interrupt()
        assert not monitor.missed_beat(S, POD, 1.1, heartbeat_s=1.0)
