"""Timing is interleaved, and each timed call follows an untimed one."""

from functools import partial

from mmcare.benchmark import timing


def test_rounds_are_interleaved():
    called = []

    def clock(name):
        called.append(name)
        return float(len(called))

    rounds = []
    times = timing.interleaved([partial(clock, name) for name in "abc"], 4, 2, lambda: rounds.append(len(called)))
    assert rounds == [9, 12, 15, 18]
    orders = [tuple(called[start : start + 3]) for start in range(0, 18, 3)]
    assert all(sorted(order) == list("abc") for order in orders)
    assert len(set(orders)) > 1
    assert sorted(sum(times, [])) == list(range(7, 19))  # without those of the first two rounds
    assert all(called[int(at) - 1] == name for name, own in zip("abc", times, strict=True) for at in own)


def test_what_is_timed_comes_after_an_untimed_call(monkeypatch):
    called, now = [], [0.0]

    def call():
        called.append(call)
        now[0] += len(called)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    assert timing.timed_again(call, "cpu") == 2.0
    assert len(called) == 2
