"""Give every weight the name it has in the network, whatever the exporter called it.

Rules: the exporter's wrapper stands in front of every name and goes; then an initializer
``<layer>.parametrizations.weight.original`` becomes ``<layer>.weight``, its scale
``<layer>.weight_scale`` and the input's ``<layer>.input_scale``. Every proof that reads a shipped
file finds layers by these names.
"""

from __future__ import annotations

import onnx_ir as ir

WRAPPER = "edgekd_wrapped"  # a name that no network has, so that it is taken off once
_RENAMED = {
    ".parametrizations.weight.original": ".weight",
    ".parametrizations.weight.0.scale": ".weight_scale",
    ".input_quantizer.scale": ".input_scale",
}


class NameWeightsPass(ir.passes.InPlacePass):
    """Renames initializers; must not fire where the new name is already taken (see `requires`)."""

    def requires(self, model: ir.Model) -> None:
        """No two initializers would get one name."""
        names = [_new_name(name) for name in model.graph.initializers]
        if len(set(names)) != len(names):
            raise ir.passes.PreconditionError("two initializers would get the same name")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rename in place."""
        modified = False
        for name, value in list(model.graph.initializers.items()):
            new = _new_name(name)
            if new != name:
                value.name = new
                modified = True
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """No exporter's name is left."""
        left = [name for name in model.graph.initializers if _new_name(name) != name]
        if left:
            raise ir.passes.PostconditionError(f"initializers kept the exporter's names: {left}")


def _new_name(name: str) -> str:
    name = name.removeprefix(f"{WRAPPER}.")
    for old, new in _RENAMED.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name
