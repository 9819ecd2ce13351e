"""The API as plain HTTP: shapes of answers, streams, limits, and what is refused."""

import json
import socket
import time

import pytest
import requests

from tests.serve.support import BLOCK_SIZE, serve
from tests.web.support import access


@pytest.fixture(scope="module")
def server():
    with serve("gpt2", "qwen3", max_request_tokens=20_000) as found:
        yield found


def complete(server, **values):
    response = requests.post(server.api + "/completions", json=values)
    assert response.status_code == 200, response.text
    return response.json()


def events(server, path="/completions", **values):
    """The JSON objects of a stream, without its end mark."""
    response = requests.post(server.api + path, json=values | {"stream": True}, stream=True)
    assert response.status_code == 200 and response.headers["Content-Type"].startswith("text/event-stream")
    lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == b"data: [DONE]"
    return [json.loads(line.removeprefix(b"data: ")) for line in lines[:-1]]


def test_the_defaults_are_those_of_generate(server):
    (choice,) = complete(server, prompt="Once", seed=7)["choices"]
    assert choice["text"] == server.alone("Once", 7) and choice["finish_reason"] == "length"
    assert complete(server, prompt="", seed=7)["choices"][0]["text"] == server.alone("", 7)


@pytest.mark.parametrize("model", ["gpt2", "qwen3"])
@pytest.mark.parametrize(
    "settings",
    [
        dict(temperature=0, max_tokens=50),
        dict(temperature=1.5, top_k=20, top_p=0.9, max_tokens=70),
        dict(min_p=0.02, repetition_penalty=1.3, max_tokens=10),
        dict(stop=["e", "\n"], max_tokens=100),
    ],
)
def test_settings_have_the_meaning_that_they_have_for_generate(server, model, settings):
    alone = server.alone("A text", 3, model, **(settings | {"stop": tuple(settings.get("stop", ()))}))
    whole = complete(server, prompt="A text", seed=3, model=model, **settings)
    assert whole["choices"][0]["text"] == alone and whole["model"] == model
    streamed = events(server, prompt="A text", seed=3, model=model, **settings)
    assert "".join(event["choices"][0]["text"] for event in streamed) == alone
    assert streamed[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]


def test_several_prompts_and_several_texts_of_each(server):
    answer = complete(server, prompt=["ab", "xyz"], n=3, seed=5, max_tokens=20)
    choices = answer["choices"]
    assert [choice["index"] for choice in choices] == list(range(6))
    for index, choice in enumerate(choices):
        assert choice["seed"] == 5 + index
        assert choice["text"] == server.alone(["ab", "xyz"][index // 3], 5 + index, max_tokens=20)
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 120, "total_tokens": 125}
    streamed = dict.fromkeys(range(6), "")
    for event in events(server, prompt=["ab", "xyz"], n=3, seed=5, max_tokens=20):
        streamed[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert list(streamed.values()) == [choice["text"] for choice in choices]


@pytest.mark.parametrize("prompt", [[104, 105], [[104, 105]], ["hi"], "hi"])
def test_prompts_are_texts_or_token_ids(server, prompt):
    assert complete(server, prompt=prompt, seed=1, max_tokens=9)["choices"][0]["text"] == server.alone(
        "hi", 1, max_tokens=9
    )


def test_a_prompt_longer_than_the_model_sees_is_continued_from_its_end(server):
    prompt = "0123456789" * BLOCK_SIZE
    answer = complete(server, prompt=prompt, seed=1, max_tokens=40, echo=True)
    assert answer["choices"][0]["text"] == prompt + server.alone(prompt, 1, max_tokens=40)
    assert answer["usage"]["prompt_tokens"] == len(prompt)


def test_logprobs_of_a_stream_are_those_of_the_whole(server):
    """Also where a token is no whole character, and where a stop text is held back."""
    settings = dict(prompt="né", seed=2, max_tokens=60, temperature=1.8, logprobs=3, echo=True, stop=["\x00\x01\x02"])
    whole = complete(server, **settings)["choices"][0]
    found = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    text = ""
    for event in events(server, **settings):
        text += event["choices"][0]["text"]
        for name, values in found.items():
            values += event["choices"][0]["logprobs"][name]
    assert (text, found) == (whole["text"], whole["logprobs"])
    assert found["tokens"][:3] == ["n", "bytes:\\xc3", "bytes:\\xa9"] and found["text_offset"][:3] == [0, 1, 1]
    assert len(found["tokens"]) == 63 and found["token_logprobs"][0] is found["top_logprobs"][0] is None
    for token, logprob, top in zip(*(found[name][1:] for name in list(found)[:3]), strict=True):
        assert top[token] == logprob <= max(top.values()) <= 0 and 3 <= len(top) <= 4


def test_a_text_cut_by_a_stop_text_has_no_logprobs_beyond_it(server):
    plain = server.alone("abc", 4, max_tokens=60)
    stop = plain[20:22]
    cut = plain[: plain.index(stop)]
    settings = dict(prompt="abc", seed=4, max_tokens=60, logprobs=0, stop=stop)
    choice = complete(server, **settings)["choices"][0]
    assert choice["text"] == cut and choice["finish_reason"] == "stop"
    assert all(offset < len(cut) for offset in choice["logprobs"]["text_offset"])
    pieces = [event["choices"][0]["logprobs"]["text_offset"] for event in events(server, **settings)]
    assert [offset for piece in pieces for offset in piece] == choice["logprobs"]["text_offset"]


def test_echo_without_new_tokens_scores_a_text(server):
    choice = complete(server, prompt="score this", echo=True, logprobs=1, max_tokens=0)["choices"][0]
    assert choice["text"] == "score this" and choice["finish_reason"] == "length"
    assert len(choice["logprobs"]["token_logprobs"]) == 10
    one_more = complete(server, prompt="score this", echo=True, logprobs=1, max_tokens=1, temperature=0)["choices"][0]
    assert one_more["logprobs"]["token_logprobs"][:10] == choice["logprobs"]["token_logprobs"]


def test_best_of_returns_the_likeliest_texts(server):
    settings = dict(prompt="a", seed=0, max_tokens=8, temperature=1.5, logprobs=0)
    every = complete(server, n=6, **settings)["choices"]
    best = complete(server, n=2, best_of=6, **settings)["choices"]
    ranked = sorted(every, key=lambda choice: -sum(choice["logprobs"]["token_logprobs"]))
    assert [choice["text"] for choice in best] == [choice["text"] for choice in ranked[:2]]
    assert [choice["index"] for choice in best] == [0, 1]


def test_bias_and_penalties_change_what_is_written(server):
    settings = dict(prompt="a", max_tokens=30, temperature=0)
    banned = complete(server, logit_bias={"120": -100, "121": 100}, **settings)["choices"][0]["text"]
    assert banned == "y" * 30
    plain = complete(server, **settings)["choices"][0]["text"]
    varied = complete(server, presence_penalty=2, frequency_penalty=2, **settings)["choices"][0]["text"]
    assert len(set(varied)) > len(set(plain))


def test_a_chat_is_one_text_that_the_turns_write(server):
    messages = [{"role": "user", "content": "Once"}, {"role": "assistant", "content": " upon"}]
    messages += [{"role": "user", "content": [{"type": "text", "text": "Then"}]}]
    settings = dict(messages=messages, seed=6, max_completion_tokens=30, logprobs=True, top_logprobs=2)
    answer = requests.post(server.api + "/chat/completions", json=settings).json()
    choice = answer["choices"][0]
    alone = server.alone("Once upon\nThen", 6, max_tokens=30)
    assert choice["message"] == {"role": "assistant", "content": alone, "refusal": None}
    assert answer["object"] == "chat.completion" and len(choice["logprobs"]["content"]) == 30
    streamed = events(server, "/chat/completions", stream_options={"include_usage": True}, **settings)
    assert streamed[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert streamed[-1]["choices"] == [] and streamed[-1]["usage"] == answer["usage"]
    deltas = [event["choices"][0] for event in streamed[:-1]]
    assert "".join(choice["delta"].get("content", "") for choice in deltas) == alone
    scored = [token for delta in deltas if delta["logprobs"] for token in delta["logprobs"]["content"]]
    assert scored == choice["logprobs"]["content"] and deltas[-1]["finish_reason"] == "length"
    assert all(bytes(token["bytes"]) and len(token["top_logprobs"]) == 2 for token in scored)


def test_a_dialogue_names_its_speakers():
    with serve("gpt2", chat_format="dialogue") as server:
        messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi "}]
        answer = requests.post(server.api + "/chat/completions", json=dict(messages=messages, seed=1)).json()
        prompt = "System: Be kind.\n\nUser: Hi\n\nAssistant:"
        assert answer["choices"][0]["message"]["content"] == server.alone(prompt, 1, stop=("\nUser:",))


def test_models_health_and_metrics(server):
    models = requests.get(server.api + "/models").json()
    assert [model["id"] for model in models["data"]] == ["gpt2", "qwen3"]
    assert requests.get(server.api + "/models/qwen3").json()["max_model_len"] == BLOCK_SIZE
    assert requests.get(server.url + "/health").json() == {"status": "ok"}
    complete(server, prompt="a", max_tokens=5)
    text = requests.get(server.url + "/metrics").text
    assert "# TYPE tiny_gpt_tokens_written_total counter" in text
    assert 'tiny_gpt_texts_running{model="gpt2"} 0.0' in text and 'tiny_gpt_requests_total{status="200"}' in text


def test_a_client_that_leaves_frees_its_place():
    with serve("gpt2", max_batch=1, max_request_tokens=10**9) as server:
        host, port = server.url.removeprefix("http://").split(":")
        scheduler = server.models["gpt2"].scheduler
        for stream in (True, False):
            body = json.dumps({"prompt": "a", "max_tokens": 10**8, "stream": stream}).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(head.encode() + body)
                while scheduler.n_running == 0:
                    time.sleep(0.001)
            assert complete(server, prompt="b", max_tokens=2)["choices"]
        assert scheduler.n_running == scheduler.n_waiting == 0


def test_a_slow_reader_does_not_hold_up_others(server):
    body = json.dumps({"prompt": "a", "max_tokens": 15_000, "stream": True, "logprobs": 5}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + body)  # and never reads
        time.sleep(0.5)
        start = time.monotonic()
        assert complete(server, prompt="b", max_tokens=20)["choices"][0]["finish_reason"] == "length"
        assert time.monotonic() - start < 5


def test_too_many_requests_get_429_and_a_time_to_come_again():
    with serve("gpt2", max_batch=1, max_queue=1, max_request_tokens=10**9) as server:
        scheduler = server.models["gpt2"].scheduler
        endless = [
            requests.post(
                server.api + "/completions", json=dict(prompt="a", max_tokens=10**8, stream=True), stream=True
            )
            for _ in range(2)
        ]
        while scheduler.n_running + scheduler.n_waiting < 2:
            time.sleep(0.001)
        refused = requests.post(server.api + "/completions", json={"prompt": "b"})
        assert refused.status_code == 429 and 1 <= int(refused.headers["Retry-After"]) <= 60
        assert refused.json()["error"]["type"] == "rate_limit_error"
        for response in endless:
            response.close()


def test_a_timeout_ends_a_stream_with_an_error():
    with serve("gpt2", request_timeout=0.3, max_request_tokens=10**9) as server:
        settings = dict(prompt="a", max_tokens=10**8)
        assert requests.post(server.api + "/completions", json=settings).status_code == 504
        response = requests.post(server.api + "/completions", json=settings | {"stream": True}, stream=True)
        last = [line for line in response.iter_lines() if line][-1]
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "timeout"


def test_a_key_protects_every_address_but_health():
    with serve("gpt2", access=access(api_key="sesame-open-12")) as server:
        for path in ("/v1/models", "/metrics"):
            assert requests.get(server.url + path).status_code == 401
        assert requests.post(server.api + "/completions", json={"prompt": "a"}).status_code == 401
        assert requests.get(server.url + "/health").status_code == 200
