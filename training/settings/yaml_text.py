"""YAML or JSON text of a user to plain values: no key twice, nothing that unfolds without end."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

MOST_ALIASED = 100_000
"""Values that aliases may add to those that are written. A recipe has some hundreds in all."""


def parse_yaml(text: str) -> Any:
    """The values in a text.

    Raises:
        yaml.YAMLError: it is no YAML, gives a key twice, holds itself, nests too deeply, or has
            aliases that unfold to too many values; a `MarkedYAMLError` where the line is known.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader # nosec B506
    except RecursionError as error:
        raise yaml.YAMLError("it nests too deeply for settings") from error
    except (ValueError, LookupError, AttributeError) as error:  # such as the date 2026-13-45
        raise yaml.YAMLError(f"a value that cannot be read: {error}") from error


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses aliases without end, and duplicate keys, of which YAML would keep
    the last."""

    def compose_document(self) -> yaml.Node:
        document = super().compose_document()
        assert document is not None
        _check_aliases(document)
        return document

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # `<<: *anchor`: the keys beside it override its own
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise _at(key_node, "a key must be text or a number")
            if key in seen:
                raise _at(key_node, f"duplicate key {key!r}; keep one")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _check_aliases(document: yaml.Node) -> None:
    """An alias is the same node again, so a few lines of them can stand for 10^9 values."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        if sizes.setdefault(id(node), 0):
            return sizes[id(node)]
        inside = node.value if isinstance(node, yaml.CollectionNode) else []
        total = 1
        open_nodes.add(id(node))
        for child in inside:
            for one in child if isinstance(child, tuple) else (child,):
                if id(one) in open_nodes:
                    raise _at(one, "it holds itself; write the values out")
                total += size(one)
        open_nodes.discard(id(node))
        sizes[id(node)] = total
        if total > len(sizes) + MOST_ALIASED:
            raise _at(node, f"its aliases stand for {total:,} values; write out those you need")
        return total

    open_nodes: set[int] = set()
    size(document)


def _at(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
