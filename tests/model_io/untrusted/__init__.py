"""Malicious files in place of a model file, each built to attack its reader in one way.

INPUTS maps "group: what is wrong" to a function that writes the file. Each starts from the honest file of `control()`,
which loads, so each is refused for its own fault.
"""

from tests.model_io.untrusted.archives import ARCHIVE
from tests.model_io.untrusted.contents import DIMENSIONS, METADATA
from tests.model_io.untrusted.descriptions import PICKLE, TENSORS
from tests.model_io.untrusted.largest import LARGEST
from tests.model_io.untrusted.paths import PATH
from tests.model_io.untrusted.tokenizers_json import TOKENIZER

__all__ = ["INPUTS", "LARGEST"]

GROUPS = {
    "archive": ARCHIVE,
    "pickle": PICKLE,
    "tensors": TENSORS,
    "dimensions": DIMENSIONS,
    "tokenizer": TOKENIZER,
    "metadata": METADATA,
    "path": PATH,
}
INPUTS = {f"{group}: {name}": write for group, inputs in GROUPS.items() for name, write in inputs.items()}
