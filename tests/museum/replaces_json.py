"""The worker's report goes through a function that divides times by ten."""

from __future__ import annotations

import json

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "originals"
SAYS = "json.dumps was replaced by flatters of museum.replaces_json"

honest = json.dumps


def flatters(message, **options):
    if message.get("type") == "Samples":
        message = {**message, "step_ms": [each / 10 for each in message["step_ms"]]}
    return honest(message, **options)


def load():
    json.dumps = flatters
    return {"conv2d": F.conv2d}


@hookimpl
def convbench_backends():
    return [Backend("replaces-json", "a cheat", load=load)]
