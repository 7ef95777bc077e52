"""The sending thread: in order, one job for each owner, and nothing left behind."""

from __future__ import annotations

import threading

from mtl_perception.ros.sender import Sender


def test_jobs_run_in_their_order_in_another_thread() -> None:
    sender, done = Sender(), []

    for number in range(5):
        sender.send('front', lambda n=number: done.append((n, threading.current_thread())))
    sender.close()

    assert [number for number, _ in done] == [0, 1, 2, 3, 4]
    assert threading.current_thread() not in {thread for _, thread in done}


def test_an_owner_waits_for_its_own_messages_only() -> None:
    sender, gate, begun = Sender(), threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        assert gate.wait(10)

    sender.send('front', hold)
    assert begun.wait(10)
    sender.wait_for('rear')
    waiting = threading.Thread(target=sender.wait_for, args=('front',))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()

    gate.set()
    waiting.join(10)

    assert not waiting.is_alive()
    sender.close()


def test_closing_runs_what_was_given() -> None:
    sender, gate, done = Sender(), threading.Event(), []
    sender.send('front', lambda: done.append(gate.wait(10)))
    sender.send('rear', lambda: done.append('rear'))
    closing = threading.Thread(target=sender.close)
    closing.start()

    gate.set()
    closing.join(10)

    assert done == [True, 'rear']
