"""The server under load: time to the first token and tokens per second with 1, 8 and 32 clients, next to
`tiny-gpt generate` and, where they are installed, the servers of llama.cpp (`llama-server` on PATH, or that of
llama-cpp-python) and of transformers on the same weights.

Each round measures every contender and number of clients once; ratios are taken within a round. The clients run in this
process and share the machine's cores with the servers, as they do at home.

python -m benchmarks.serving [--rounds 3] [--sizes 10m 124m] [--json FILE]
python -m benchmarks.serving --load 600 --sizes 10m     # 32 clients for 600 s: some leave early, some read slowly
"""

from tiny_gpt.cli.process import limit_thread_spinning

limit_thread_spinning()

import asyncio
import contextlib
import importlib.util
import json
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import requests
import torch
import tyro

from benchmarks.decoding import SIZES, as_loaded
from tiny_gpt.config import SampleConfig
from tiny_gpt.device import describe_device
from tiny_gpt.inference.engine import open_engine
from tiny_gpt.inference.generate import write
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model_io.model_file import save_loaded

N_CLIENTS = (1, 8, 32)
PROMPT_TOKENS = 16
# Tokens that each client asks for.
N_TOKENS = {"default": 128, "10m": 128, "124m": 32}


@dataclass(frozen=True)
class Bench:
    """Measure the server next to generate and other servers."""

    sizes: tuple[str, ...] = ("10m", "124m")
    """Models, as in benchmarks.decoding."""
    rounds: int = 3
    """Measured rounds, after one warm-up round."""
    load: int = 0
    """Seconds of the load test instead: 32 clients, a tenth leaving early, a tenth reading slowly."""
    json: str = "bench-serving.json"
    """File for the figures."""


@dataclass
class Figures:
    """Of one contender with one number of clients, a number for each round."""

    tokens_per_s: list[float] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)


def main(bench: Bench) -> None:
    print(f"{describe_device(torch.device('cpu'))}, torch {torch.__version__}")
    figures: dict[str, Any] = {}
    for size in bench.sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / size / "tiny_gpt_best.pt"
            path.parent.mkdir()
            config, vocab_size = SIZES[size]
            torch.manual_seed(0)
            save_loaded(path, as_loaded(GPT(config, vocab_size)))
            if bench.load:
                figures[size] = load_test(path, bench.load)
                print(json.dumps(figures[size], indent=1))
                continue
            found = measure(path, size, bench.rounds)
            report(size, found)
            figures[size] = {name: vars(values) for name, values in found.items()}
    Path(bench.json).write_text(json.dumps(figures, indent=1), encoding="utf-8")


def measure(path: Path, size: str, rounds: int) -> dict[str, Figures]:
    """All contenders on the model at `path`."""
    n_tokens, found = N_TOKENS[size], {}
    generate = make_generate(path, n_tokens)
    with contextlib.ExitStack() as stack:
        servers = {"tiny_gpt": stack.enter_context(tiny_gpt_server(path))}
        for name, start in OTHER_SERVERS.items():
            if missing := missing_packages(name):
                print(f"({name} is left out: {', '.join(missing)} is not installed)")
                continue
            servers[name] = stack.enter_context(start(path, size))
        for number in range(rounds + 1):
            results = {"generate": generate()}
            for name, url in servers.items():
                for n_clients in N_CLIENTS:
                    results[f"{name}, {n_clients} clients"] = asyncio.run(clients(url, n_clients, n_tokens))
            for name, (speed, first_s) in results.items():
                figures = found.setdefault(name, Figures())
                if number:
                    figures.tokens_per_s.append(speed)
                    figures.first_token_s.append(first_s)
    return found


def make_generate(path: Path, n_tokens: int) -> Callable[[], tuple[float, float]]:
    """What `tiny-gpt generate` does: one text, in this process."""
    engine = open_engine(path, "cpu")
    config = SampleConfig(prompt=prompt_text(0), max_tokens=n_tokens)
    decoder = engine.make_decoder(1, config.precision)

    def generate() -> tuple[float, float]:
        start, first_s = time.perf_counter(), 0.0
        for _ in write(engine, config, [0], decoder):
            first_s = first_s or time.perf_counter() - start
        return n_tokens / (time.perf_counter() - start), first_s

    return generate


def prompt_text(seed: int) -> str:
    """Printable characters, each one token."""
    return "".join(random.Random(seed).choices("abcdefghijklmnopqrstuvwxyz ", k=PROMPT_TOKENS))


# --- servers ---


@contextlib.contextmanager
def running(command: list[str], url: str, seconds: float = 300.0) -> Iterator[str]:
    """A server as a process of its own, from the moment it answers."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + seconds
            while True:
                with contextlib.suppress(requests.RequestException):
                    requests.get(f"{url}/v1/models", timeout=5)
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{' '.join(command)} did not start")
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def tiny_gpt_server(path: Path) -> contextlib.AbstractContextManager[str]:
    port = free_port()
    command = [sys.executable, "-m", "tiny_gpt", "serve", str(path), "--port", str(port)]
    return running(command, f"http://127.0.0.1:{port}")


@contextlib.contextmanager
def llama_server(path: Path, size: str) -> Iterator[str]:
    """llama.cpp's own server with a slot for each client, or llama-cpp-python's; the same weights in fp16."""
    from gguf import GGMLQuantizationType, LlamaFileType

    from tiny_gpt.export.gguf import write_file
    from tiny_gpt.model_io.open_model import open_path

    file, port = path.with_name("model.gguf"), free_port()
    loaded = open_path(path, torch.device("cpu"))
    write_file(file, loaded, GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16)
    n_ctx, n_slots = SIZES[size][0].block_size, max(N_CLIENTS)
    if server := shutil.which("llama-server"):
        command = [server, "--ctx-size", str(n_slots * n_ctx), "--parallel", str(n_slots)]
    else:
        command = [sys.executable, "-m", "llama_cpp.server", "--n_ctx", str(n_ctx)]
    command += ["--model", str(file), "--port", str(port)]
    with running(command, f"http://127.0.0.1:{port}") as url:
        yield url


@contextlib.contextmanager
def transformers_server(path: Path, size: str) -> Iterator[str]:
    """`transformers serve` with the same weights in fp32, its default for such a folder."""
    from tiny_gpt.export.export import export
    from tiny_gpt.model_io.open_model import open_path

    folder, port = path.with_name("hf"), free_port()
    export(open_path(path, torch.device("cpu")), "hf", folder)
    main = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", main, "serve", str(folder), "--device", "cpu", "--port", str(port)]
    with running([*command, "--host", "127.0.0.1"], f"http://127.0.0.1:{port}") as url:
        yield url


OTHER_SERVERS = {"llama.cpp": llama_server, "transformers": transformers_server}
PACKAGES = {"llama.cpp": ("llama_cpp", "fastapi"), "transformers": ("transformers", "fastapi", "accelerate")}


def missing_packages(server: str) -> list[str]:
    if server == "llama.cpp" and shutil.which("llama-server"):
        return []
    return [package for package in PACKAGES[server] if importlib.util.find_spec(package) is None]


# --- clients ---


async def clients(url: str, n_clients: int, n_tokens: int) -> tuple[float, float]:
    """Tokens per second of all clients together, and the median time to the first token."""
    start = time.perf_counter()
    asked = [stream(url, number, n_tokens) for number in range(n_clients)]
    results = await asyncio.gather(*asked)
    seconds = time.perf_counter() - start
    return sum(n for n, *_ in results) / seconds, statistics.median(first_s for _, first_s, _ in results)


async def stream(
    url: str, seed: int, n_tokens: int, pause_s: float = 0.0, leave_after_s: float = float("inf")
) -> tuple[int, float, bool]:
    """One streamed completion: tokens, seconds to the first, and whether it came to its end."""
    host, port = url.removeprefix("http://").split(":")
    start, first_s, n_found, is_complete = time.perf_counter(), 0.0, 0, False
    reader, writer = await asyncio.open_connection(host, int(port))
    body = {"prompt": prompt_text(seed), "max_tokens": n_tokens, "temperature": 0.8, "seed": seed, "stream": True}
    content = json.dumps(body | {"stream_options": {"include_usage": True}}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode() + content)
    try:
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                first_s = first_s or time.perf_counter() - start
                if b'"usage":{' in line:
                    n_found = json.loads(line[6:])["usage"]["completion_tokens"]
            is_complete = is_complete or line.startswith(b"data: [DONE]")
            if time.perf_counter() - start > leave_after_s:
                break
            if pause_s:
                await asyncio.sleep(pause_s)
    finally:
        writer.close()
    return n_found or n_tokens * is_complete, first_s, is_complete


# --- the load test ---


def load_test(path: Path, seconds: int) -> dict[str, Any]:
    """32 clients, one request after the other; a tenth of the requests leaves early, a tenth reads slowly."""
    with tiny_gpt_server(path) as url:
        server = next(
            process
            for process in psutil.Process().children(recursive=True)
            if "serve" in process.cmdline() and str(path) in process.cmdline()
        )
        memory: list[float] = []
        results = asyncio.run(_load(url, seconds, lambda: memory.append(server.memory_info().rss / 2**20)))
        whole = sorted(s for kind, is_complete, s in results if kind == "plain" and is_complete)
        lost = sum(not is_complete for kind, is_complete, _ in results if kind != "leaving")
        running_texts = [
            line for line in requests.get(f"{url}/metrics", timeout=5).text.splitlines() if "running{" in line
        ]
    return {
        "requests": len(results),
        "left early": sum(kind == "leaving" for kind, *_ in results),
        "read slowly": sum(kind == "slow" for kind, *_ in results),
        "lost": lost,
        "seconds per request: median, p99, most": [whole[len(whole) // 2], whole[int(0.99 * len(whole))], whole[-1]],
        "memory in MB: after a tenth of the time, most after that, last": [
            memory[len(memory) // 10],
            max(memory[len(memory) // 10 :]),
            memory[-1],
        ],
        "texts that run afterwards": running_texts,
    }


async def _load(url: str, seconds: int, sample: Callable[[], None]) -> list[tuple[str, bool, float]]:
    results: list[tuple[str, bool, float]] = []
    rng, end = random.Random(0), time.monotonic() + seconds

    async def client() -> None:
        while time.monotonic() < end:
            kind = rng.choices(["plain", "leaving", "slow"], [8, 1, 1])[0]
            leave_after_s = rng.uniform(0.05, 2.0) if kind == "leaving" else float("inf")
            start, n_tokens = time.perf_counter(), rng.randint(1, 200)
            pause_s = 0.05 if kind == "slow" else 0.0
            _, _, is_complete = await stream(url, rng.randrange(1000), n_tokens, pause_s, leave_after_s)
            results.append((kind, is_complete, time.perf_counter() - start))

    async def watch() -> None:
        while time.monotonic() < end:
            sample()
            await asyncio.sleep(1.0)

    await asyncio.gather(watch(), *(client() for _ in range(32)))
    return results


def report(size: str, found: dict[str, Figures]) -> None:
    config, vocab_size = SIZES[size]
    n_parameters = GPT(config, vocab_size).n_parameters
    print(f"\n{size}: {n_parameters / 1e6:.1f} M parameters, {N_TOKENS[size]} tokens per client")
    print(f"{'':<24}{'tokens/s':>10}{'first token':>14}{'vs generate':>13}{'vs 1 client':>13}")
    for name, figures in found.items():
        one = found.get(f"{name.split(',')[0]}, 1 clients", figures)
        ratios = [
            statistics.median(a / b for a, b in zip(figures.tokens_per_s, other.tokens_per_s, strict=True))
            for other in (found["generate"], one)
        ]
        speed, first_s = statistics.median(figures.tokens_per_s), statistics.median(figures.first_token_s)
        print(f"{name:<24}{speed:>10,.0f}{1000 * first_s:>11,.0f} ms{ratios[0]:>12.2f}x{ratios[1]:>12.2f}x")


if __name__ == "__main__":
    main(tyro.cli(Bench, config=(tyro.conf.OmitArgPrefixes,)))
