"""A client that does not train: it moves the weights a little and sends them back."""

from __future__ import annotations

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


def moved(message: Message, node_id: int) -> Message:
    """The reply to a training message."""
    step = np.float32(node_id % 1000 / 1e6)
    arrays = message.content["arrays"].to_numpy_ndarrays()
    content = RecordDict(
        {
            "arrays": ArrayRecord([array + step for array in arrays]),
            "metrics": MetricRecord({"num-examples": 10}),
        }
    )
    return Message(content=content, reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Called by Flower."""
    return moved(message, context.node_id)
