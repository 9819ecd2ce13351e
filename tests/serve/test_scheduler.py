"""Texts written beside one another are those written alone; places become free at once; limits hold."""

import threading
import time

import numpy as np
import pytest

from tests.serve.support import BLOCK_SIZE, random_engine, written_alone
from tiny_gpt.config import SampleConfig
from tiny_gpt.config.architectures import ARCHITECTURES
from tiny_gpt.inference.generate import Text
from tiny_gpt.inference.torch_decoder import TorchBatchDecoder
from tiny_gpt.serve.jobs import PromptJob, Sampling, Submission, TextJob
from tiny_gpt.serve.scheduler import Scheduler
from tiny_gpt.web.errors import RefusedError


@pytest.fixture
def schedulers():
    made = []

    def make(decoder, max_batch=8, max_queue=100):
        made.append(Scheduler(decoder, max_batch, max_queue))
        return made[-1]

    yield make
    for scheduler in made:
        scheduler.close()


def submission(engine, prompt, seeds, notify=lambda: None, n_logprobs=None, n_scored=None, **settings):
    """One prompt continued with each of the seeds."""
    config = SampleConfig(**settings)
    ids = engine.tokenizer.encode(prompt).tolist()[-BLOCK_SIZE:]
    sampling = Sampling(config, n_logprobs=n_logprobs)
    texts = [TextJob(Text(seed, config.stop, engine.tokenizer, ids.copy()), sampling, BLOCK_SIZE) for seed in seeds]
    job = PromptJob(ids, texts, config.max_tokens, n_scored, range(len(ids)))
    return Submission([job], notify)


def texts_of(submission):
    return [text.text.text for prompt in submission.prompts for text in prompt.texts]


def wait_for(submissions, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not all(each.is_over for each in submissions):
        assert time.monotonic() < deadline, "the texts are not written"
        time.sleep(0.002)


def requests_of_many_kinds(n):
    rng = np.random.default_rng(0)
    for number in range(n):
        prompt = "".join(map(chr, rng.integers(32, 127, size=rng.integers(1, 2 * BLOCK_SIZE))))
        settings = dict(max_tokens=int(rng.integers(1, 3 * BLOCK_SIZE)), temperature=float(rng.choice([0.0, 0.8, 2.0])))
        if number % 4 == 1:
            settings |= dict(top_k=5, repetition_penalty=1.2)
        if number % 4 == 2:
            settings |= dict(top_p=0.8, stop=("e", "zz"))
        if number % 4 == 3:
            settings |= dict(min_p=0.05)
        yield prompt, [number * 10 + i for i in range(1 + number % 3)], settings


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.slow)])
def test_texts_in_a_full_batch_are_those_written_alone(architecture, precision, schedulers):
    engine = random_engine(architecture)
    scheduler = schedulers(engine.make_batch_decoder(8, precision))
    asked = list(requests_of_many_kinds(14))
    submissions = [submission(engine, prompt, seeds, **settings) for prompt, seeds, settings in asked]
    for number, each in enumerate(submissions):
        scheduler.submit(each)
        if number % 5 == 0:  # they come while others are written
            time.sleep(0.01)
    wait_for(submissions)
    for (prompt, seeds, settings), each in zip(asked, submissions, strict=True):
        expected = [written_alone(engine, prompt, seed, precision=precision, **settings) for seed in seeds]
        assert texts_of(each) == expected, (prompt, settings)
    assert scheduler.n_running == scheduler.n_waiting == 0


def test_without_compiled_kernels_texts_are_the_same_as_alone(schedulers):
    engine = random_engine("qwen3")
    model = engine.make_decoder.args[0]  # of the partial function that makes decoders from it
    scheduler = schedulers(TorchBatchDecoder(model, 3))
    submissions = [submission(engine, "Some text", [seed], max_tokens=40, temperature=0.5) for seed in range(5)]
    for each in submissions:
        scheduler.submit(each)
    wait_for(submissions)
    for seed, each in enumerate(submissions):
        assert texts_of(each) == [
            written_alone(engine, "Some text", seed, max_tokens=40, temperature=0.5, precision="fp32")
        ]


def test_a_cancelled_request_frees_its_place_within_a_token(schedulers):
    engine = random_engine("gpt2")
    scheduler = schedulers(engine.make_batch_decoder(1, "fp32"), max_batch=1)
    changed = threading.Event()
    endless = submission(engine, "a", [0], changed.set, max_tokens=10**9)
    endless.wants_progress = True
    scheduler.submit(endless)
    assert changed.wait(10)
    scheduler.cancel(endless)
    n_tokens = endless.prompts[0].texts[0].text.n_tokens
    following = submission(engine, "b", [0], max_tokens=3)
    scheduler.submit(following)
    wait_for([following], 10)
    assert endless.prompts[0].texts[0].text.n_tokens <= n_tokens + 2


def test_a_queue_that_is_full_says_when_to_come_again(schedulers):
    engine = random_engine("gpt2")
    scheduler = schedulers(engine.make_batch_decoder(1, "fp32"), max_batch=1, max_queue=2)
    running = submission(engine, "a", [0], max_tokens=10**9)
    scheduler.submit(running)
    while scheduler.n_running == 0:
        time.sleep(0.001)
    waiting = [submission(engine, "b", [0], max_tokens=1) for _ in range(2)]
    for each in waiting:
        scheduler.submit(each)
    with pytest.raises(RefusedError) as caught:
        scheduler.submit(submission(engine, "c", [0]))
    assert caught.value.status == 429 and 1 <= int(caught.value.headers["Retry-After"]) <= 60
    scheduler.cancel(running)
    wait_for(waiting, 10)


def test_a_request_with_many_texts_does_not_keep_others_waiting(schedulers):
    engine = random_engine("gpt2")
    scheduler = schedulers(engine.make_batch_decoder(2, "fp32"), max_batch=2)
    large = submission(engine, "a", range(40), max_tokens=50)
    small = submission(engine, "b", [0], max_tokens=2)
    scheduler.submit(large)
    scheduler.submit(small)
    wait_for([small], 30)
    assert not large.is_over
    wait_for([large])


def test_late_requests_end_with_a_timeout(schedulers):
    engine = random_engine("gpt2")
    scheduler = schedulers(engine.make_batch_decoder(1, "fp32"))
    late = submission(engine, "a", [0], max_tokens=10**9)
    late.deadline = time.monotonic() + 0.05
    scheduler.submit(late)
    wait_for([late], 10)
    assert late.error is not None and late.error.status == 504


def test_stopping_finishes_what_runs_and_refuses_the_rest(schedulers):
    engine = random_engine("gpt2")
    scheduler = schedulers(engine.make_batch_decoder(1, "fp32"), max_batch=1)
    running, waiting = submission(engine, "a", [0], max_tokens=300), submission(engine, "b", [0])
    scheduler.submit(running)
    while scheduler.n_running == 0:
        time.sleep(0.001)
    scheduler.submit(waiting)
    scheduler.stop()
    wait_for([running, waiting], 20)
    assert running.error is None and len(texts_of(running)[0]) > 0
    assert waiting.error is not None and waiting.error.status == 503
    with pytest.raises(RefusedError):
        scheduler.submit(submission(engine, "c", [0]))


def test_damaged_weights_end_a_request_and_not_the_server(schedulers):
    engine = random_engine("gpt2")
    decoder = engine.make_batch_decoder(2, "fp32")
    scheduler, run_pass = schedulers(decoder), decoder.run_pass
    decoder.run_pass = lambda: [(number, position, logits * np.nan) for number, position, logits in run_pass()]
    damaged = submission(engine, "a", [0])
    scheduler.submit(damaged)
    wait_for([damaged], 10)
    assert damaged.error is not None and (damaged.error.status, damaged.error.code) == (500, "logits-not-finite")
    decoder.run_pass = lambda: 1 / 0
    broken = submission(engine, "a", [0])
    scheduler.submit(broken)
    wait_for([broken], 10)
    assert broken.error is not None and (broken.error.status, broken.error.code) == (500, "failed")
    decoder.run_pass = run_pass
    sound = submission(engine, "a", [0], max_tokens=3)
    scheduler.submit(sound)
    wait_for([sound], 10)
    assert sound.error is None


def test_logprobs_are_those_of_the_model(schedulers):
    """Of the prompt and of what is written, against a softmax of logits computed anew."""
    engine = random_engine("qwen3")
    scheduler = schedulers(engine.make_batch_decoder(2, "fp32"))
    each = submission(engine, "A prompt", [3], max_tokens=12, n_logprobs=5, n_scored=2, precision="fp32")
    scheduler.submit(each)
    wait_for([each], 10)
    prompt = each.prompts[0]
    tokens = [*prompt.tokens, *prompt.texts[0].tokens]
    ids = [token.id for token in tokens]
    assert ids == prompt.texts[0].text.ids and tokens[0].logprob is None
    for position, token in enumerate(tokens[1:], 1):
        logits_V = engine.make_decoder(1, "fp32").read(ids[:position], 0).astype(np.float64)
        logprobs_V = logits_V - np.log(np.exp(logits_V).sum())
        assert token.logprob == pytest.approx(logprobs_V[token.id], abs=1e-9)
        best = np.argsort(-logprobs_V)[: len(token.likeliest)]
        assert [i for i, _ in token.likeliest] == best.tolist() and len(best) in (2, 5)
