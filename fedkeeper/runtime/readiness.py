"""What a worker does when it loads its function, so that its first task finds it warm."""

from __future__ import annotations

import sys
import traceback

from fedkeeper.runtime import training
from fedkeeper.runtime.environment import ahead


def prepare_training() -> None:
    """Build and trace the model that this function was told of when it was deployed; nothing if it was not.

    What goes wrong is written to the log and does not stop the function from loading: the task may be another
    one, and if it is not, its own failure tells more.
    """
    try:
        told = ahead()
        if told is not None:
            training.prepare(
                told.model,
                optimizer=told.optimizer,
                proximal_mu=told.proximal_mu,
                batch_size=told.batch_size,
            )
    except Exception:  # noqa: BLE001 - a user's model may raise anything; see above
        sys.stderr.write("not made ready ahead:\n")
        traceback.print_exc()
