"""The thread pool: tasks are done once each, teams meet at barriers, and idle threads leave and come back."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tiny_gpt.bootstrap import ROOT
from tiny_gpt.kernels.compiled import compiled
from tiny_gpt.kernels.threads import (
    TeamKernel,
    TeamThread,
    ThreadPool,
    barrier,
    first_task,
    next_task,
    same_kernel_follows,
    task_rows,
)


@compiled
def count_tasks(tasks, counts):
    task = first_task(tasks)
    while task >= 0:
        counts[task] += 1
        task = next_task(tasks)


@compiled
def add_in_turns(thread, n_rounds, sums):
    """Each round, every thread reads what all have written in the round before."""
    thread = TeamThread(*thread)
    for i in range(n_rounds):
        total = 0
        for other in range(thread.n_threads):
            total += sums[i, other]
        barrier(thread)
        sums[i + 1, thread.number] = total + 1
        barrier(thread)


@compiled
def add_in_turns_jobs(thread, job, kernel_id, n_rounds, sums):
    while True:
        add_in_turns(thread, n_rounds, sums)
        if not same_kernel_follows(TeamThread(*thread).counters, job, kernel_id):
            return job
        job += 1


def expected_sums(n_rounds, n_threads):
    sums = np.zeros((n_rounds + 1, n_threads), np.int64)
    for i in range(n_rounds):
        sums[i + 1] = sums[i].sum() + 1
    return sums


@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.parametrize("n_tasks", [0, 1, 3, 200])
def test_every_task_is_done_once(n_threads, n_tasks):
    pool, counts = ThreadPool(), np.zeros(max(n_tasks, 1), np.int64)
    for _ in range(20):
        pool.run_tasks(count_tasks, n_tasks, n_threads, counts)
    assert (counts[:n_tasks] == 20).all()


def test_rows_of_tasks_cover_all_rows_once():
    rows = [row for task in range(4) for row in range(*map(int, task_rows(task, 3, np.uint64(10))))]
    assert rows == list(range(10))


def test_initializer_runs_in_every_thread():
    names = []
    pool = ThreadPool(lambda: names.append(threading.current_thread().ident))
    done = threading.Barrier(3)
    pool._start_threads(2)
    for _ in range(2):
        pool.submit(done.wait)
    done.wait(timeout=30)
    assert len(set(names)) == 2


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("pause_s", [0.0, 0.02])
def test_team_meets_at_barriers(n_threads, pause_s):
    """Between jobs, with the threads awake, and after they have left."""
    pool, n_rounds = ThreadPool(), 10
    sums = np.zeros((n_rounds + 1, n_threads), np.int64)
    kernel = TeamKernel(add_in_turns, add_in_turns_jobs, 1, (n_rounds, sums))
    for _ in range(5):
        sums[:] = 0
        pool.run_team(kernel, n_threads)
        assert (sums == expected_sums(n_rounds, n_threads)).all()
        time.sleep(pause_s)


def test_two_callers_and_two_kernels_share_a_team():
    pool, n_rounds, failures = ThreadPool(), 5, []

    def work(kernel_id):
        sums = np.zeros((n_rounds + 1, 2), np.int64)
        kernel = TeamKernel(add_in_turns, add_in_turns_jobs, kernel_id, (n_rounds, sums))
        for _ in range(30):
            sums[:] = 0
            pool.run_team(kernel, 2)
            if not (sums == expected_sums(n_rounds, 2)).all():
                failures.append(kernel_id)

    callers = [threading.Thread(target=work, args=(kernel_id,)) for kernel_id in (1, 2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
    assert not failures and not any(caller.is_alive() for caller in callers)


def test_teams_of_several_sizes_alternate():
    pool, n_rounds = ThreadPool(), 3
    for repeat in range(3):
        for n_threads in (3, 1, 2):
            sums = np.zeros((n_rounds + 1, n_threads), np.int64)
            pool.run_team(
                TeamKernel(add_in_turns, add_in_turns_jobs, 10 * repeat + n_threads, (n_rounds, sums)), n_threads
            )
            assert (sums == expected_sums(n_rounds, n_threads)).all()


def test_closing_ends_the_threads_and_a_closed_pool_starts_again():
    pool, counts = ThreadPool(), np.zeros(5, np.int64)
    pool.run_tasks(count_tasks, 5, 3, counts)
    threads = pool._threads
    pool.close()
    assert len(threads) == 2 and not any(thread.is_alive() for thread in threads)
    pool.run_tasks(count_tasks, 5, 3, counts)
    assert (counts == 2).all()


def test_exit_right_after_a_kernel_is_clean():
    program = """if True:
        import numpy as np
        from tests.kernels.test_threads import ThreadPool, count_tasks
        pool = ThreadPool()
        for _ in range(200):
            pool.run_tasks(count_tasks, 8, 8, np.zeros(8, np.int64))
    """
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
