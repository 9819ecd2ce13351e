"""The first stop signal is a request, the second one an order; a closed terminal is neither."""

import os
import signal
import threading

import pytest

from tiny_gpt.host import signals
from tiny_gpt.host.signals import HeardStop, Stopped, StopRequest, raise_stops

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no signals between processes")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_request(number):
    with StopRequest() as stop:
        stop.listen()
        assert stop.signal_number is None
        signal.raise_signal(number)
        assert stop.signal_number == number


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_stops_at_once(first):
    with StopRequest() as stop:
        stop.listen()
        signal.raise_signal(first)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_sigterm_soon_after_another_is_the_same_request(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    with StopRequest() as stop:
        stop.listen()
        signal.raise_signal(signal.SIGTERM)
        now[0] += 0.9
        signal.raise_signal(signal.SIGTERM)
        now[0] += 0.2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_sighup_is_only_recorded():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop.hung_up and stop.signal_number is None


def test_handlers_are_installed_by_listen_and_restored():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with StopRequest() as stop:
        assert [signal.getsignal(number) for number in numbers[:2]] == before[:2]
        stop.listen()
        assert all(signal.getsignal(number) != handler for number, handler in zip(numbers, before, strict=True))
    assert [signal.getsignal(number) for number in numbers] == before


def test_another_thread_installs_no_handlers():
    before = signal.getsignal(signal.SIGINT)

    def listen():
        with StopRequest() as stop:
            stop.listen()

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def restored():
    """The handlers of this process are put back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("restored")
def test_before_training_the_first_signal_is_raised_and_others_are_ignored(number):
    raise_stops()
    with pytest.raises(Stopped) as stop:
        signal.raise_signal(number)
    assert stop.value.signal_number == number
    signal.raise_signal(signal.SIGTERM)


@pytest.mark.usefixtures("restored")
def test_a_process_that_is_led_records_signals_until_its_work_is_over():
    stop = HeardStop()
    stop.listen()
    signal.raise_signal(signal.SIGTERM)
    assert stop.number == signal.SIGTERM
    stop.is_over = True
    with pytest.raises(Stopped):
        signal.raise_signal(signal.SIGINT)


def test_a_terminal_may_also_be_closed_while_the_report_is_written():
    before = signal.getsignal(signal.SIGHUP)
    try:
        with StopRequest(to_the_end=True):
            pass
        signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
