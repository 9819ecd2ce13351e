"""Whether the weights of a model that was read are numbers: NaN and infinity make all of its answers NaN."""

import numpy as np
from numpy.typing import NDArray

from tiny_gpt.errors import BadInputError


def require_finite(name: str, weight: NDArray[np.float32], source: str) -> None:
    """Raise BadInputError if the `weight` called `name`, of the model at `source`, holds NaN or infinity."""
    n_bad = weight.size - int(np.count_nonzero(np.isfinite(weight)))
    if n_bad:
        raise BadInputError(
            f"{source}: {n_bad:,} of {weight.size:,} numbers in {name} are NaN or infinite, so this model can neither "
            "write nor be trained further; name another one, such as an earlier run's",
            code="weights-not-finite",
        )
