"""Devices: never two holders of a whole one, never more than a whole lent, parts never spread, and what jobs are told."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from spoolq import config, detect
from spoolq.devices import (
    Bench,
    Kind,
    Stock,
    check_devices,
    limited,
    lines,
    numbered,
    pick,
    said,
    show,
    sound,
    stock_said,
)
from spoolq.errors import Misconfigured, UsageError
from spoolq.resources import add, fits
from spoolq.schedule import ANYWHERE, NodeView, admit, explain
from tests.test_schedule import entry

amounts = st.sampled_from([100, 250, 333, 500, 750, 1000, 1500, 2000, 3000])
frees = st.dictionaries(st.sampled_from("01234"), st.sampled_from([0, 0, 250, 500, 667, 1000, 1000]))


@given(amounts, frees)
def test_pick_takes_wholes_and_at_most_one_part(amount, free):
    picked = pick(amount, free)
    whole, part = divmod(amount, 1000)
    empty = [i for i, left in free.items() if left == 1000]
    able = len(empty) > whole or (len(empty) == whole and (not part or any(part <= free[i] < 1000 for i in free)))
    assert (picked is not None) == able
    if picked is not None:
        assert amount == sum(picked.values())
        assert all(share <= free[i] for i, share in picked.items())
        assert [part] * bool(part) == [share for share in picked.values() if share != 1000]
        if part:
            (i,) = [i for i, share in picked.items() if share != 1000]
            others = [j for j in free if j not in picked and free[j] >= part]
            assert all(free[i] <= free[j] for j in others), "whole ones stay whole as long as may be"


class Node(RuleBasedStateMachine):
    """Jobs come and go, daemons are restarted, others use devices: what is held stays apart."""

    def __init__(self):
        super().__init__()
        self.bench = Bench({"gpu": numbered("gpu", 3), "fpga": Kind(("a", "b"))})
        self.jobs: dict[int, tuple[dict, dict]] = {}
        self.last = 0

    def stock(self):
        return self.bench.stock(held for _, held in self.jobs.values())

    @rule(gpu=st.none() | amounts, fpga=st.none() | amounts)
    def start(self, gpu, fpga):
        wants = {name: amount for name, amount in (("gpu", gpu), ("fpga", fpga), ("cpus", 1000)) if amount}
        before = self.stock()
        held = self.stock().lend(wants)
        assert (held is None) == bool(before.why(wants))
        if held is None:
            return
        for name, ids in held.items():
            assert not set(ids) & set(self.bench.busy.get(name, ())), "busy outside"
            assert wants[name] == sum(ids.values())
        assert set(held) == set(wants) - {"cpus"}
        self.last += 1
        self.jobs[self.last] = (wants, held)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def end(self, data):
        del self.jobs[data.draw(st.sampled_from(sorted(self.jobs)))]

    @rule(ids=st.frozensets(st.sampled_from(["0", "1", "2", "7"])))
    def outside(self, ids):
        self.bench.busy = {"gpu": ids}

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def taken_over(self, data):
        """Others take an entry away while its processes still run."""
        job = data.draw(st.sampled_from(sorted(self.jobs)))
        self.bench.strays[(job, 1)] = self.jobs.pop(job)[1]

    @rule()
    def strays_end(self):
        self.bench.strays.clear()

    @rule()
    def restart(self):
        """A new daemon knows what the runner's journal says, in JSON."""
        self.jobs = {job: (wants, sound(held)) for job, (wants, held) in self.jobs.items()}

    @invariant()
    def nothing_is_lent_twice(self):
        total = {}
        holdings = [held for _, held in self.jobs.values()] + list(self.bench.strays.values())
        for held in holdings:
            for name, ids in held.items():
                for number, amount in ids.items():
                    total.setdefault((name, number), []).append(amount)
        for shares in total.values():
            assert sum(shares) <= 1000
            assert len(shares) == 1 or 1000 not in shares

    @invariant()
    def sums_are_kept(self):
        left = self.stock()
        for name, kind in self.bench.kinds.items():
            assert 0 <= left.total(name) <= 1000 * len(kind.ids)


Node.TestCase.settings = settings(deadline=None, max_examples=60)
TestNode = Node.TestCase


@given(st.lists(st.tuples(st.none() | amounts, st.integers(0, 2)), max_size=12), st.data())
def test_what_a_plan_starts_can_be_lent_in_its_order(queue, data):
    """`admit` and the claims that follow agree, whatever is held."""
    kinds = {"gpu": numbered("gpu", 3)}
    held = [{"gpu": {str(i): data.draw(st.sampled_from([0, 250, 500, 1000]))}} for i in range(3)]
    stock = Stock(kinds, held)
    capacity = {"cpus": 4000, "gpu": 3000}
    free = {"cpus": 4000, "gpu": stock.total("gpu")}
    view = NodeView(name="n1", capacity=capacity, free=free, held={}, devices=stock)
    entries = [entry(i + 1, cpus=cpus, **({"gpu": gpu / 1000} if gpu else {})) for i, (gpu, cpus) in enumerate(queue)]
    before = dict(stock.free["gpu"])
    plan = admit(entries, free, view)
    assert before == stock.free["gpu"], "planning takes nothing"
    assert fits(add(*(e.wants for e in plan.start)), capacity)
    for e in plan.start:
        assert stock.lend(e.wants) is not None, (plan.start, before)
    for e, reason in plan.blocked:
        assert reason.word in ("Resources", "Priority", "MeasuredLoad", "BadConstraints", "DeviceBusyOutside"), (
            e,
            reason,
        )


def test_a_whole_device_is_kept_for_the_first_that_waits_for_one():
    stock = Stock({"gpu": numbered("gpu", 2)}, [{"gpu": {"0": 500}}, {"gpu": {"1": 750}}])
    view = NodeView(
        name="n1", capacity={"gpu": 2000}, free={"gpu": 2000 - 1250}, held={7: {"gpu": 500}, 8: {"gpu": 750}},
        devices=stock,
    )  # fmt: skip
    plan = admit([entry(1, gpu=0.6), entry(2, gpu=0.5), entry(3, gpu=0.25)], view.free, view)
    # 0.6 fits in no device: device 0, the emptiest, is left to drain; what fits beside may start
    assert [3] == [e.id for e in plan.start]
    assert (
        "Resources: needs 0.6 gpu of one device, free are 0.5 of gpu 0, 0.25 of gpu 1; "
        "job 8 holds 0.75 gpu, job 7 holds 0.5 gpu"
    ) == str(plan.blocked[0][1])
    assert "Priority: its devices go to jobs that come first" == str(plan.blocked[1][1])


def test_busy_outside_is_said():
    stock = Stock({"gpu": numbered("gpu", 2)}, [], {"gpu": {"1", "9"}})
    view = NodeView(name="n1", capacity={"gpu": 2000}, free={"gpu": 1000}, devices=stock)
    assert None is explain(entry(1, gpu=1), view, ANYWHERE)
    reason = explain(entry(1, gpu=2), view, ANYWHERE)
    assert "DeviceBusyOutside: needs 2 gpu, 1 of 2 free as measured; gpu 1 used outside spoolq" == str(reason)


def test_what_a_job_is_told():
    kinds = {
        "a100": Kind(("0", "3"), ("CUDA_VISIBLE_DEVICES",)),
        "v100": Kind(("1", "2"), ("CUDA_VISIBLE_DEVICES",)),
        "xpu": Kind(("0", "1"), ("ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR=level_zero:"), none="-1"),
        "tape": Kind(("st0",), ("TAPE",), none=None),
    }
    env = ["A=1", "CUDA_VISIBLE_DEVICES=9", "CUDA_DEVICE_ORDER=FASTEST_FIRST", "TAPE=mine", "SPOOLQ_DEVICES_XPU=7"]
    none = lines(env, kinds, {})
    expected = ["A=1", "CUDA_DEVICE_ORDER=FASTEST_FIRST", "TAPE=mine", "SPOOLQ_DEVICES_XPU=7", "CUDA_VISIBLE_DEVICES="]
    assert sorted([*expected, "ZE_AFFINITY_MASK=-1", "ONEAPI_DEVICE_SELECTOR=-1"]) == sorted(none)
    some = lines(
        env, kinds, {"v100": {"2": 1000}, "a100": {"0": 500}, "xpu": {"0": 1000, "1": 1000}, "tape": {"st0": 1000}}
    )
    assert sorted(some) == sorted(
        [
            "A=1", "CUDA_VISIBLE_DEVICES=0,2", "CUDA_DEVICE_ORDER=PCI_BUS_ID", "ZE_AFFINITY_MASK=0,1",
            "ONEAPI_DEVICE_SELECTOR=level_zero:0,1", "TAPE=st0", "SPOOLQ_DEVICES_A100=0", "SPOOLQ_DEVICES_V100=2",
            "SPOOLQ_DEVICES_XPU=0,1", "SPOOLQ_DEVICES_TAPE=st0",
        ]
    )  # fmt: skip


def test_devices_in_a_configuration():
    text = b'[node]\ndevices = { gpu = 2, fpga = { index = [0, "x-1"], env = ["A", "B=p:"], none = false, type = "u250" } }\n'
    kinds = config.parse_settings([("c.toml", text)]).devices
    assert Kind(("0", "1"), ("CUDA_VISIBLE_DEVICES",)) == kinds["gpu"]
    assert Kind(("0", "x-1"), ("A", "B=p:"), None, "u250") == kinds["fpga"]
    for bad in (
        "3", "{ gpu = 0.5 }", "{ gpu = -1 }", "{ cpus = 2 }", "{ GPU = 2 }", "{ gpu = { count = 1, index = [1] } }",
        "{ gpu = { env = 'A' } }", "{ gpu = { index = [] } }", "{ gpu = { index = [1, 1] } }", "{ gpu = { index = ['a b'] } }",
        "{ gpu = { count = 1, env = 'A B' } }", "{ gpu = { count = 1, none = 3 } }", "{ gpu = { count = 1, typ = 'x' } }",
        "{ gpu = { count = 1, type = 'a b' } }", "{ gpu = { count = true } }", "{ gpu = { index = [1.5] } }",
    ):  # fmt: skip
        with pytest.raises(Misconfigured, match=r"c\.toml(:1)?: devices: "):
            config.parse_settings([("c.toml", f"node.devices = {bad}\n".encode())])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda x: st.lists(x) | st.dictionaries(st.sampled_from(["gpu", "count", "index", "env", "none", "type"]), x),
    )
)
def test_any_configuration_is_read_or_refused(value):
    try:
        kinds = check_devices(value)
    except UsageError:
        return
    assert all(isinstance(kind, Kind) for kind in kinds.values())


def test_fewer_are_lent_than_there_are():
    kind = Kind(("0", "2", "5"), ("X",))
    assert ("0", "2") == limited("gpu", kind, 2000).ids
    assert ("0", "1", "2", "3") == limited("gpu", kind, 4000).ids
    assert numbered("gpu", 2) == limited("gpu", None, 2000)
    assert () == limited("gpu", kind, 0).ids
    for amount in (500, 2_000_000):
        with pytest.raises(UsageError):
            limited("gpu", kind, amount)


def test_nvidia_cards_are_found(tmp_path):
    assert {} == detect.devices(str(tmp_path))
    dev = tmp_path / "dev"
    dev.mkdir()
    for name in ("nvidia0", "nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm", "null"):
        (dev / name).touch()
    assert Kind(("0", "2", "10"), ("CUDA_VISIBLE_DEVICES",)) == detect.devices(str(tmp_path))["gpu"]
    for number, model in enumerate(["NVIDIA A100-SXM4-40GB"] * 2):
        card = tmp_path / f"proc/driver/nvidia/gpus/{number}"
        card.mkdir(parents=True)
        (card / "information").write_text(f"Model: \t\t {model}\nIRQ: 5\n")
    assert "nvidia-a100-sxm4-40gb" == detect.devices(str(tmp_path))["gpu"].type
    (tmp_path / "proc/driver/nvidia/gpus/1/information").write_text("Model: Tesla V100\n")
    assert "" == detect.devices(str(tmp_path))["gpu"].type


def test_facts_and_words():
    bench = Bench({"gpu": numbered("gpu", 2)})
    bench.busy = {"gpu": frozenset("1")}
    held = {7: {"gpu": {"0": 500}}, 9: {"gpu": {"0": 250}}, 11: {}}
    facts = bench.facts(held)
    assert {"devices": {"gpu": {"0": {"7": 500, "9": 250}, "1": {}}}} == facts
    assert {7: {"gpu": {"0": 500}}, 9: {"gpu": {"0": 250}}} == said(facts)
    left = stock_said({**facts, "busy": {"gpu": [1]}}, {7})  # 9 has ended since
    assert ({"0": 500, "1": 0}, ["1"]) == (left.free["gpu"], left.busy["gpu"])
    assert None is stock_said({}, {7})
    assert {} == said({"devices": {"gpu": {"0": {"x": 500}}, "fpga": 3}}) == said({"devices": [1]})
    assert {} == Bench({}).facts({1: {}})
    assert "gpu 0,2; fpga 1 (0.5)" == show({"gpu": {"0": 1000, "2": 1000}, "fpga": {"1": 500}})
    assert {"gpu": {"0": 5}} == sound({"gpu": {"0": 5, "1": "x", "2": -1, "3": True}, "x": 3})
