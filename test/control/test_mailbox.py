"""The mailbox: the newest wins, every item is taken or counted as dropped, a close wakes the taker."""

from __future__ import annotations

import threading

from flashvla_ros.control.mailbox import Mailbox


def test_the_newest_wins_and_the_others_are_counted() -> None:
    box: Mailbox[int] = Mailbox()
    for item in range(5):
        box.post(item)
    assert box.take() == 4
    assert box.dropped == 4


def test_a_close_wakes_the_taker_and_what_comes_later_is_ignored() -> None:
    box: Mailbox[int] = Mailbox()
    taken: list[int | None] = []
    taker = threading.Thread(target=lambda: taken.append(box.take()))
    taker.start()
    box.close()
    taker.join(60)
    assert taken == [None]
    box.post(1)
    assert box.take() is None
    assert box.dropped == 0


def test_under_threads_nothing_is_lost_twice_or_out_of_order() -> None:
    box: Mailbox[tuple[int, int]] = Mailbox()
    taken: list[tuple[int, int]] = []
    last, arrived = (4, 0), threading.Event()

    def take() -> None:
        while (item := box.take()) is not None:
            taken.append(item)
            if item == last:
                arrived.set()

    def post(poster: int) -> None:
        for number in range(2000):
            box.post((poster, number))

    taker = threading.Thread(target=take)
    posters = [threading.Thread(target=post, args=(poster,)) for poster in range(4)]
    for thread in (taker, *posters):
        thread.start()
    for poster in posters:
        poster.join()
    box.post(last)
    assert arrived.wait(60)
    box.close()
    taker.join(60)
    assert len(taken) + box.dropped == 4 * 2000 + 1
    for poster in range(4):
        numbers = [number for who, number in taken if who == poster]
        assert numbers == sorted(set(numbers))
