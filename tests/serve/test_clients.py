"""Real clients: the openai package, llm, lm-eval, curl. What each sends is listed in docs/serve.md."""

import asyncio
import json
import math
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.serve.support import BLOCK_SIZE, serve

openai = pytest.importorskip("openai")
KEY = "any-key-at-all"


@pytest.fixture(scope="module")
def server():
    with serve("gpt2", "qwen3") as found:
        yield found


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=server.api, api_key=KEY, max_retries=0) as found:
        yield found


def test_openai_completes(server, client):
    answer = client.completions.create(model="gpt2", prompt="Once", max_tokens=20, seed=3, n=2, logprobs=2, echo=True)
    for index, choice in enumerate(answer.choices):
        assert choice.text == "Once" + server.alone("Once", 3 + index, max_tokens=20)
        assert len(choice.logprobs.tokens) == 24 and choice.logprobs.token_logprobs[0] is None
    assert answer.usage.completion_tokens == 40
    assert [model.id for model in client.models.list()] == ["gpt2", "qwen3"]
    assert client.models.retrieve("qwen3").object == "model"


def test_openai_streams_with_logprobs_and_usage(server, client):
    settings = dict(model="gpt2", prompt="Once", max_tokens=30, seed=1, logprobs=1, stream=True)
    text, n_tokens, usage = "", 0, None
    for chunk in client.completions.create(**settings, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            text, n_tokens = text + choice.text, n_tokens + len(choice.logprobs.tokens)
        usage = chunk.usage or usage
    assert text == server.alone("Once", 1, max_tokens=30)
    assert n_tokens == usage.completion_tokens == 30


def test_openai_chats(server, client):
    settings = dict(model="qwen3", messages=[{"role": "user", "content": "Hello"}], max_completion_tokens=20, seed=2)
    alone = server.alone("Hello", 2, "qwen3", max_tokens=20)
    answer = client.chat.completions.create(**settings, logprobs=True, top_logprobs=3)
    assert answer.choices[0].message.content == alone
    assert [len(token.top_logprobs) for token in answer.choices[0].logprobs.content] == [3] * 20
    pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**settings, stream=True)]
    assert "".join(pieces) == alone


def test_openai_takes_settings_of_other_servers(server, client):
    extra = dict(top_k=3, min_p=0.1, repetition_penalty=1.2)
    answer = client.completions.create(model="gpt2", prompt="Once", max_tokens=20, seed=3, extra_body=extra)
    assert answer.choices[0].text == server.alone("Once", 3, max_tokens=20, **extra)


def test_openai_works_asynchronously(server):
    async def ask_all():
        async with openai.AsyncOpenAI(base_url=server.api, api_key=KEY) as client:
            settings = dict(model="gpt2", prompt="Once", max_tokens=20)
            asked = [client.completions.create(**settings, seed=seed) for seed in range(12)]
            streamed = await client.completions.create(**settings, seed=99, stream=True)
            text = "".join([chunk.choices[0].text async for chunk in streamed])
            return [answer.choices[0].text for answer in await asyncio.gather(*asked)], text

    # In its own thread: browser tests leave an event loop running in this one.
    with ThreadPoolExecutor(1) as pool:
        texts, streamed = pool.submit(asyncio.run, ask_all()).result()
    assert texts == [server.alone("Once", seed, max_tokens=20) for seed in range(12)]
    assert streamed == server.alone("Once", 99, max_tokens=20)


def test_openai_raises_its_own_errors(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="gpt2", prompt="a", extra_body={"temprature": 1})
    assert (caught.value.param, caught.value.code) == ("temprature", "unknown-parameter")
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="gpt-5", prompt="a")
    assert caught.value.code == "model_not_found" and "gpt2, qwen3" in str(caught.value)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="gpt2", messages=[], tools=[{"type": "function"}])


def run(command, **variables):
    environment = os.environ | variables
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_completes_and_streams(server):
    body = json.dumps(dict(prompt="Once", max_tokens=20, seed=3))
    answer = json.loads(run(["curl", "-s", f"{server.api}/completions", "-d", body]))
    assert answer["choices"][0]["text"] == server.alone("Once", 3, max_tokens=20)
    body = json.dumps(dict(prompt="Once", max_tokens=20, seed=3, stream=True))
    lines = run(["curl", "-sN", f"{server.api}/completions", "-d", body]).split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    texts = [json.loads(line.removeprefix("data: "))["choices"][0]["text"] for line in lines[:-2]]
    assert "".join(texts) == answer["choices"][0]["text"]


def test_llm_prompts(server, tmp_path):
    pytest.importorskip("llm")
    model = f'- model_id: mine\n  model_name: gpt2\n  api_base: "{server.api}"'
    (tmp_path / "extra-openai-models.yaml").write_text(model)
    command = [sys.executable, "-m", "llm", "-m", "mine", "-o", "seed", "5", "-o", "max_tokens", "20", "Once"]
    text = run(command, LLM_USER_PATH=str(tmp_path)).removesuffix("\n")
    assert text == server.alone("Once", 5, max_tokens=20)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("lm_eval") is None, reason="lm_eval is not installed")
def test_lm_eval_scores_a_task(server, tmp_path):
    """Its scores are sums of the logprobs that the model itself gives."""
    pairs = [("ab", "cd"), ("Some", " words"), ("x", "yz")]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(dict(q=q, a=a)) for q, a in pairs))
    task = ["task: pairs", "dataset_path: json", "output_type: loglikelihood", "test_split: train"]
    task += ["dataset_kwargs:", f"  data_files: {tmp_path}/pairs.jsonl", 'doc_to_text: "{{q}}"']
    task += ['doc_to_target: "{{a}}"', 'target_delimiter: ""', "metric_list:", "  - metric: perplexity"]
    (tmp_path / "pairs.yaml").write_text("\n".join(task))
    arguments = f"base_url={server.api}/completions,model=gpt2,max_length={BLOCK_SIZE}"
    command = ["lm_eval", "--model", "local-completions", "--model_args", arguments, "--include_path", str(tmp_path)]
    command += ["--tasks", "pairs", "--output_path", str(tmp_path / "out")]
    run(command, HF_HOME=str(tmp_path / "hf"), HF_HUB_OFFLINE="1", PYTHONPATH="")
    (path,) = (tmp_path / "out").rglob("results*.json")
    found = json.loads(path.read_text())["results"]["pairs"]["perplexity,none"]
    engine, sums = server.models["gpt2"].engine, []
    for question, answer in pairs:
        ids = engine.tokenizer.encode(question + answer).tolist()
        sums.append(0.0)
        for position in range(len(question), len(ids)):
            logits_V = engine.make_decoder(1, "auto").read(ids[:position], 0).astype(float)
            sums[-1] += logits_V[ids[position]] - math.log(sum(map(math.exp, logits_V)))
    assert found == pytest.approx(math.exp(-sum(sums) / len(sums)), rel=1e-6)
