"""The published weights of ELIR, one flat dictionary of tensors, to and from the networks here.

Published networks are collapsed: expanded ones here start from them exactly. Those of a Lightning
checkpoint are expanded, and are collapsed where ours are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from datagen.errors import FlowmapsrError
from training.elir.coarse_estimator import CoarseEstimator, DenseBlock
from training.elir.collapsible import CollapsibleConv, collapse_weights
from training.elir.network import Networks, Residual, VectorField

FIRST = "fmir.first_proj.weight"


def public_state(nets: Networks) -> dict[str, Tensor]:
    """The networks' weights, collapsed, by their published names; the frozen encoder is not among
    them, as it is TAESD3's own."""
    state: dict[str, Tensor] = {}
    for name, layer in _layers(nets):
        plain = layer.collapsed() if isinstance(layer, CollapsibleConv) else layer
        for part, parameter in plain.named_parameters():
            state[f"{name}.{part}"] = parameter.detach().clone()
    return state


def load_public(nets: Networks, state: Mapping[str, Tensor]) -> None:
    """Fills the networks, all but the frozen encoder; nothing is changed where that fails.

    Raises:
        FlowmapsrError: tensors are missing, not known, or of other shapes.
    """
    known: set[str] = set()
    read = [(layer, _read(name, layer, state, known)) for name, layer in _layers(nets)]
    if unknown := sorted(state.keys() - known):
        raise FlowmapsrError(f"{len(unknown)} tensors have no place in ELIR, first {unknown[0]}")
    for layer, tensors in read:
        if isinstance(layer, CollapsibleConv) and "weight" in tensors:
            layer.start_from(tensors["weight"], tensors["bias"])
        else:
            layer.load_state_dict(tensors)


def public_size(state: Mapping[str, Tensor]) -> tuple[int, int]:
    """Width and middle blocks of the field.

    Raises:
        FlowmapsrError: these are no weights of ELIR.
    """
    if FIRST not in state:
        raise FlowmapsrError(
            f"there is no tensor {FIRST} among the {len(state)}: these are no weights of ELIR as "
            "published, which all lie in one file, under enc., mmse., fmir. and dec."
        )
    middle = {name.split(".")[2] for name in state if name.startswith("fmir.mid_blocks.")}
    return len(state[FIRST]), len(middle)


def _read(
    name: str, layer: nn.Module, state: Mapping[str, Tensor], known: set[str]
) -> dict[str, Tensor]:
    """The tensors of a layer by its own names; of a collapsible one also those of the convolution
    that it is. Adds their published names to `known`."""
    parts = [part for part, _ in layer.named_parameters()]
    if f"{_next(name)}.weight" in state:
        pair = [f"{one}.{part}" for one in (name, _next(name)) for part in ("weight", "bias")]
        tensors = [_taken(one, state, known) for one in pair]
        if isinstance(layer, nn.Conv2d):
            tensors = list(collapse_weights(*tensors))
    else:
        parts = ["weight", "bias"] if isinstance(layer, CollapsibleConv) else parts
        tensors = [_taken(f"{name}.{part}", state, known) for part in parts]
    read = dict(zip(parts, tensors, strict=True))
    _check_shapes(name, layer, read)
    return read


def _taken(name: str, state: Mapping[str, Tensor], known: set[str]) -> Tensor:
    if name not in state:
        raise FlowmapsrError(f"the tensor {name} is missing")
    known.add(name)
    return state[name]


def _next(name: str) -> str:
    """Name of the layer after this one of a sequence, `a.block.0` -> `a.block.1`."""
    stem, _, index = name.rpartition(".")
    return f"{stem}.{int(index) + 1}" if stem.endswith(".block") else ""


def _check_shapes(name: str, layer: nn.Module, read: Mapping[str, Tensor]) -> None:
    own = {part: tuple(parameter.shape) for part, parameter in layer.named_parameters()}
    if isinstance(layer, CollapsibleConv) and "weight" in read:
        cout, cin = layer.narrow.out_channels, layer.wide.in_channels
        own = {"weight": (cout, cin, 3, 3), "bias": (cout,)}
    for part, tensor in read.items():
        if tuple(tensor.shape) != own[part]:
            raise FlowmapsrError(
                f"{part} of {name} has the shape {tuple(tensor.shape)} and the network "
                f"{own[part]}: set the model's sizes to those of the weights"
            )


def _layers(nets: Networks) -> Iterator[tuple[str, nn.Module]]:
    """Every layer with parameters, by its published name; a collapsible convolution is one."""
    for prefix, codec in (("enc", nets.encoder), ("dec", nets.decoder)):
        for name, layer in codec.named_modules():
            if list(layer.parameters(recurse=False)):
                yield f"{prefix}.{name}", layer
    if isinstance(nets.coarse, CoarseEstimator):
        for i, block in enumerate(nets.coarse.blocks):
            for j, dense in enumerate(block.children(), 1):
                assert isinstance(dense, DenseBlock)
                for k, conv in enumerate(dense.convs, 1):
                    yield f"mmse.lrm.{i}.RDB{j}.conv{k}.block.0", conv
    assert isinstance(nets.field, VectorField)
    for name, layer in _field_layers(nets.field):
        yield f"fmir.{name}", layer


def _field_layers(field: VectorField) -> Iterator[tuple[str, nn.Module]]:
    yield "time_mlp.linear1", field.time[0]
    yield "time_mlp.linear2", field.time[2]
    yield "first_proj", field.first
    for i, block in enumerate(field.down):
        yield from _residual_layers(f"down_blocks.{i}.0", block)
    for i, shrink in enumerate(field.shrink):
        yield f"down_blocks.{2 * i + 1}.1.conv", shrink
    for i, block in enumerate(field.middle):
        yield from _residual_layers(f"mid_blocks.{i}", block)
    for i, grow in enumerate(field.grow):
        yield f"up_blocks.{2 * i}.0.convtr", grow
    for i, block in enumerate(field.up):
        yield from _residual_layers(f"up_blocks.{i}.1", block)
    yield "final_block.block.0", field.norm
    yield "final_block.block.2", field.conv
    yield "final_proj", field.last


def _residual_layers(name: str, block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    assert isinstance(block, Residual)
    yield f"{name}.mlp.1", block.time
    yield f"{name}.block1.block.0", block.norm1
    yield f"{name}.block1.block.2", block.conv1
    yield f"{name}.block2.block.0", block.norm2
    yield f"{name}.block2.block.2", block.conv2
    yield f"{name}.conv2d", block.skip
