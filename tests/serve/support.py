"""What tests of the server share: tiny random models, served in a thread of the test."""

import contextlib
from dataclasses import dataclass, replace

from tests.inference.support import random_model
from tests.web.support import LOOPBACK, serving
from tiny_gpt.config import SampleConfig, ServeConfig
from tiny_gpt.inference.engine import engine_for
from tiny_gpt.inference.generate import write
from tiny_gpt.model_io.model_file import LoadedModel
from tiny_gpt.model_io.stored_model import Progress
from tiny_gpt.serve.endpoints import api_routes
from tiny_gpt.serve.models import ServedModel, ServedModels
from tiny_gpt.serve.scheduler import Scheduler
from tiny_gpt.tokenizer.base import ByteTokenizer
from tiny_gpt.web.app import web_app

BLOCK_SIZE = 32


@dataclass(frozen=True)
class Server:
    """A running one."""

    url: str
    models: dict[str, ServedModel]

    @property
    def api(self):
        return self.url + "/v1"

    def alone(self, prompt, seed, model="gpt2", **settings):
        """The text that `tiny-gpt generate` writes."""
        return written_alone(self.models[model].engine, prompt, seed, **settings)


def random_engine(architecture):
    loaded = LoadedModel(random_model(architecture, BLOCK_SIZE), ByteTokenizer(), Progress(0, 0, 0.0, 0.0, 0.0), {})
    return engine_for(loaded)


def served_model(architecture="gpt2", config=None, engine=None):
    config, engine = config or ServeConfig(), engine or random_engine(architecture)
    decoder = engine.make_batch_decoder(config.max_batch, config.precision)
    return ServedModel(architecture, engine, Scheduler(decoder, config.max_batch, config.max_queue), created=0)


@contextlib.contextmanager
def serve(*architectures, access=LOOPBACK, **settings):
    """Yields a Server with random models that are called like their architectures."""
    config = ServeConfig(**settings)
    models = [served_model(architecture, config) for architecture in architectures or ["gpt2"]]
    app = web_app(api_routes(ServedModels(models), config), access)

    def stop():
        for model in models:
            model.scheduler.stop()

    with serving(app, on_stop=stop) as url:
        yield Server(url, {model.name: model for model in models})
    for model in models:
        model.scheduler.close()


def written_alone(engine, prompt, seed, **settings):
    config = replace(SampleConfig(**settings), prompt=prompt)
    return list(write(engine, config, [seed]))[-1][0].text
