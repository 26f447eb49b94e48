"""A network that knows more classes than the data, or knows them in another order.

Where every class of the data is among those a transformers network names itself, the network
answers in the data's classes: its logits are picked by a hook, in the teacher, in the student and
in every graph that is traced from them. Names that do not match are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from edgekd.errors import ConfigError


def chosen(config: Mapping[str, Any], labels: Sequence[str]) -> list[int]:
    """Numbers of the data's classes among the network's own; none where it names no others."""
    own = networks_own(config)
    if not labels or not own:
        return []
    known = set(labels) <= set(own) and len(set(own)) == len(own)
    return [own.index(label) for label in labels] if known and own != list(labels) else []


def networks_own(config: Mapping[str, Any]) -> list[str]:
    """Names of the classes in a transformers configuration, by number; none where it has none.

    Raises:
        ConfigError: A class's number is none.
    """
    names = config.get("id2label")
    if not isinstance(names, Mapping):
        return []
    wrong = [key for key in names if not str(key).isdecimal()]
    if wrong:
        raise ConfigError(
            f"config.json: id2label has {wrong[0]!r}: {names[wrong[0]]!r}, expected the numbers "
            f"0 to {len(names) - 1} as its keys: it may be label2id the other way round"
        )
    return [str(names[key]) for key in sorted(names, key=int)]


def answer_in(model: nn.Module, classes: Sequence[int]) -> None:
    """Let a transformers classifier answer in some of its classes alone, in place.

    Args:
        model: Its answer's ``logits`` are [batch, its own classes].
        classes: Numbers of the classes, in the order to answer in; none leaves it as it is.
    """
    done = any(isinstance(hook, _Classes) for hook in model._forward_hooks.values())
    if classes and not done:
        model.register_forward_hook(_Classes(classes))


class _Classes:
    """A hook that picks answers; a class, so that it can be found on a network that has it."""

    def __init__(self, classes: Sequence[int]) -> None:
        self._classes = list(classes)

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        # A configuration with return_dict = false answers a tuple, the logits first.
        key: Any = 0 if isinstance(output, tuple) else "logits"
        logits = output[key]
        index = torch.tensor(self._classes, device=logits.device)
        picked = logits.index_select(-1, index)
        if isinstance(output, tuple):
            return (picked, *output[1:])
        output[key] = picked
        return output
