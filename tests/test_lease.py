"""Life is judged by counters and the observer's own clock; nobody is dead without proof."""

from hypothesis import given
from hypothesis import strategies as st

from spoolq.lease import ABSENT, GAP, Instance, Life, Watch, judge, may_start, observe, proves_death, successors

BEAT, DEAD = 20.0, 1200.0


def seen(counters, *, step=BEAT, start=100.0):
    """A watch after one look per step; and the time of the last."""
    watch, now = None, start
    for counter in counters:
        watch = observe(watch, now=now, counter=counter, interval_s=BEAT)
        now += step
    return watch, now - step


def life(watch, now, **more):
    return judge(watch, now=now, interval_s=BEAT, dead_after_s=DEAD, **more)


def test_a_node_may_start_while_its_last_beat_is_young():
    assert may_start(1000.0, 200.0, 900.0)
    assert not may_start(1100.0, 200.0, 900.0)


def test_a_node_that_never_beat_or_whose_clock_is_another_may_not_start():
    assert not may_start(10.0, None, 900.0)
    assert not may_start(10.0, 0.0, 900.0)
    assert not may_start(10.0, 20.0, 900.0)


@given(st.floats(1, 1e9), st.floats(0, 1e9), st.floats(1, 1e6))
def test_once_lost_a_lease_does_not_come_back_by_waiting(began, later, fence):
    if not may_start(began + later, began, fence):
        assert not may_start(began + later + 1, began, fence)


def test_a_counter_that_moves_is_life():
    assert life(*seen([1, 2, 3])) is Life.ALIVE


def test_a_first_look_teaches_nothing():
    assert life(*seen([7])) is Life.UNKNOWN
    assert life(None, 5.0) is Life.UNKNOWN


def test_a_counter_that_stands_still_long_enough_is_silence_and_not_death():
    assert life(*seen([7] * 60)) is Life.UNKNOWN
    assert life(*seen([7] * 61)) is Life.SILENT
    assert life(*seen([ABSENT] * 61)) is Life.SILENT


def test_a_beat_after_long_silence_begins_the_count_anew():
    watch, now = seen([7] * 61 + [8])
    assert watch.still_s == 0.0
    assert life(watch, now) is Life.ALIVE


def test_a_late_beat_is_unknown_before_it_is_silence():
    assert life(*seen([6, 7, 7, 7, 7])) is Life.ALIVE
    assert life(*seen([6, 7, 7, 7, 7, 7])) is Life.UNKNOWN


def test_an_outage_of_the_observer_starts_the_count_again():
    watch, now = seen([7] * 60)
    gone = observe(watch, now=now + 2 * DEAD, counter=7, interval_s=BEAT)
    assert gone.still_s == 0.0
    assert life(gone, now + 2 * DEAD) is Life.UNKNOWN


def test_an_own_outage_makes_what_is_known_old():
    watch, now = seen([7] * 61)
    assert life(watch, now + GAP * BEAT + 1) is Life.UNKNOWN


def test_one_failed_read_between_two_good_ones_is_forgiven():
    watch, now = seen([7] * 30)
    assert watch is observe(watch, now=now + BEAT, counter=None, interval_s=BEAT)
    assert watch.still_s + 2 * BEAT == observe(watch, now=now + 2 * BEAT, counter=7, interval_s=BEAT).still_s


@given(
    st.lists(st.tuples(st.floats(0.0, 500.0), st.one_of(st.none(), st.integers(0, 3))), max_size=60),
    st.floats(0.0, 500.0),
)
def test_never_dead_and_silence_was_really_watched(looks, later):
    watch, now, reads = None, 0.0, []
    for wait, counter in looks:
        now += wait
        watch = observe(watch, now=now, counter=counter, interval_s=BEAT)
        if counter is not None:
            reads.append((now, counter))
    verdict = judge(watch, now=now + later, interval_s=BEAT, dead_after_s=100.0)
    assert verdict is not Life.DEAD
    if verdict is Life.SILENT:
        tail = [(t, c) for t, c in reads if t >= reads[-1][0] - 100.0]
        assert {c for _, c in tail} == {reads[-1][1]}
        assert all(b[0] - a[0] <= GAP * BEAT for a, b in zip(tail, tail[1:], strict=False))


def test_proof_is_the_same_machine_in_another_life_while_the_old_counter_stands_still():
    old, new = Instance(machine="m", boot="a"), Instance(machine="m", boot="b")
    still, _ = seen([7, 7, 7, 7])
    assert proves_death(old, new, still, interval_s=BEAT)
    assert not proves_death(old, new, seen([7, 7, 7, 8])[0], interval_s=BEAT)
    assert not proves_death(old, new, None, interval_s=BEAT)
    assert not proves_death(old, old, still, interval_s=BEAT)
    assert not proves_death(old, Instance(machine="other", boot="b"), still, interval_s=BEAT)
    for unknown in (Instance(machine="", boot="a"), Instance(machine="m", boot="")):
        assert not proves_death(unknown, new, still, interval_s=BEAT)
        assert not proves_death(new, unknown, still, interval_s=BEAT)
    assert not proves_death(Instance(machine="", boot="a"), Instance(machine="", boot="b"), still, interval_s=BEAT)


def test_proof_or_an_operators_word_is_certain():
    assert life(Watch(counter=1, read_s=0.0), 1e9, proof=True) is Life.DEAD


def test_each_node_watches_its_successors_on_the_ring():
    ring = ["a", "b", "c", "d", "e"]
    assert successors("c", ring) == ["d", "e", "a"]
    assert successors("e", ring) == ["a", "b", "c"]
    assert successors("a", ["a"]) == []


@given(st.sets(st.text("abc", min_size=1, max_size=3), min_size=2))
def test_every_node_is_watched_by_as_many_as_it_watches(names):
    watched = [other for name in names for other in successors(name, names)]
    assert {watched.count(name) for name in names} == {min(3, len(names) - 1)}
    assert all(name not in successors(name, names) for name in names)
