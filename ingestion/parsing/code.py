"""The functions, classes and the like of a program, by tree-sitter. Runs in the parser's child."""

import importlib
import re
from collections.abc import Iterator
from itertools import islice
from time import monotonic
from typing import Any

from tree_sitter import Language, Node, Parser, Point

from ingestion.types import CodeLanguage, Section

SOURCE_BYTES_MAX = 2 * 1024 * 1024
PARSE_SECONDS_MAX = 3.0
SECTIONS_MAX = 20_000
DEPTH_MAX = 8
NAME_CHARS_MAX = 80

_READ_BYTES = 64 * 1024

# Module and function of each grammar; a grammar is loaded when it is needed.
_GRAMMARS: dict[CodeLanguage, tuple[str, str]] = {
    "python": ("tree_sitter_python", "language"),
    "javascript": ("tree_sitter_javascript", "language"),
    "typescript": ("tree_sitter_typescript", "language_typescript"),
    "tsx": ("tree_sitter_typescript", "language_tsx"),
    "go": ("tree_sitter_go", "language"),
    "rust": ("tree_sitter_rust", "language"),
    "java": ("tree_sitter_java", "language"),
    "c": ("tree_sitter_c", "language"),
    "cpp": ("tree_sitter_cpp", "language"),
    "c_sharp": ("tree_sitter_c_sharp", "language"),
    "ruby": ("tree_sitter_ruby", "language"),
    "php": ("tree_sitter_php", "language_php"),
    "bash": ("tree_sitter_bash", "language"),
}


def _kinds(names: str) -> frozenset[str]:
    return frozenset(names.split())


# What the grammars call a definition that nobody looks into, ...
_FUNCTIONS = _kinds(
    "function_definition function_declaration generator_function_declaration function_item "
    "function_signature_item method_definition method_declaration constructor_declaration "
    "destructor_declaration operator_declaration local_function_statement "
    "abstract_method_signature compact_constructor_declaration method singleton_method "
    "macro_definition struct_item enum_item union_item type_item type_alias_declaration "
    "type_definition type_declaration delegate_declaration"
)
# ... one that has definitions in it, ...
_CONTAINERS = _kinds(
    "class_definition class_declaration abstract_class_declaration class_specifier "
    "struct_specifier struct_declaration union_specifier enum_specifier enum_declaration "
    "interface_declaration record_declaration annotation_type_declaration trait_declaration "
    "trait_item impl_item mod_item namespace_definition namespace_declaration internal_module "
    "module class singleton_class"
)
# ... and what is only wrapped around one of them, or around many.
_WRAPPERS = _kinds(
    "decorated_definition export_statement expression_statement ambient_declaration "
    "template_declaration lexical_declaration variable_declaration variable_declarator"
)
_TRANSPARENT = _kinds(
    "preproc_if preproc_ifdef preproc_else linkage_specification declaration_list "
    "foreign_mod_item enum_body_declarations"
)
_FUNCTION_VALUES = _kinds("arrow_function function_expression generator_function class function")
# What stands above a definition and belongs to it.
_COMMENTS = _kinds("comment line_comment block_comment attribute_item decorator doc_comment")
_BODIES = _kinds(
    "block class_body declaration_list field_declaration_list interface_body enum_body "
    "body_statement statement_block annotation_type_body enum_declaration_list "
    "enum_body_declarations"
)

_WORD = re.compile(r"\w+")


def read_outline(text: str, language: CodeLanguage) -> tuple[Section, ...]:
    """The sections of a program in order; none when it cannot be told apart within the limits."""
    content = text.encode("utf-8")
    if len(content) > SOURCE_BYTES_MAX:
        return ()
    root = _parse(content, language)
    if root is None:
        return ()
    found = list(islice(_sections(root, 1, content), SECTIONS_MAX + 1))
    if len(found) > SECTIONS_MAX or not any(name for _, _, name in found):
        return ()
    sections: list[Section] = []
    chars = position = 0
    for start, level, name in found:
        chars += len(content[position:start].decode("utf-8"))
        position = start
        # What is read first has no place before it to belong to.
        sections.append(Section(chars if sections or name else 0, level, name))
    return tuple(sections)


def _parse(content: bytes, language: CodeLanguage) -> Node | None:
    module, function = _GRAMMARS[language]
    grammar: object = getattr(importlib.import_module(module), function)()
    parser = Parser(Language(grammar))
    deadline = monotonic() + PARSE_SECONDS_MAX

    def read(offset: int, _point: Point) -> bytes:
        return content[offset : offset + _READ_BYTES]

    def is_late(_offset: int, _has_error: bool) -> bool:
        return monotonic() > deadline

    try:
        tree: Any = parser.parse(read, progress_callback=is_late)
    except ValueError:  # it was stopped
        return None
    return tree.root_node if tree is not None else None


Found = tuple[int, int, str]
"""The first byte of a section, its level and its name."""


def _sections(parent: Node, level: int, content: bytes) -> Iterator[Found]:
    """The definitions right under a node, and those in them; what is between has no name.

    Nothing is said of what comes before the first definition of a class: it goes with its head.
    """
    is_named = level == 1
    above: Node | None = None  # the first of the comments that stand right above
    last: Node | None = None
    for node in _members(parent):
        touches = last is not None and node.start_point.row - last.end_point.row <= 1
        last = node
        if node.type in _COMMENTS:
            above = above if above is not None and touches else node
            continue
        definition = _definition(node)
        start = above if above is not None and touches else node
        if definition is not None:
            yield _line_start(start, content), level, _name(definition)
            if definition.type in _CONTAINERS and level < DEPTH_MAX:
                body = _body(definition)
                if body is not None:
                    yield from _sections(body, level + 1, content)
            is_named = True
        elif is_named:
            yield _line_start(start, content), level, ""
            is_named = False
        above = None


def _members(parent: Node) -> Iterator[Node]:
    for node in parent.named_children:
        if node.type in _TRANSPARENT:
            yield from _members(node)
        else:
            yield node


def _definition(node: Node) -> Node | None:
    """The definition that a node is or wraps."""
    if node.type in _FUNCTIONS or (node.type in _CONTAINERS and _body(node) is not None):
        return node
    if node.type in ("field_definition", "public_field_definition", "variable_declarator"):
        value = node.child_by_field_name("value")
        return node if value is not None and value.type in _FUNCTION_VALUES else None
    if node.type in _WRAPPERS:
        for inner in node.named_children:
            if (found := _definition(inner)) is not None:
                return found
    return None


def _body(node: Node) -> Node | None:
    body = node.child_by_field_name("body")
    if body is not None:
        return body
    return next((child for child in node.named_children if child.type in _BODIES), None)


def _name(node: Node) -> str:
    named = node.child_by_field_name("name") or node.child_by_field_name("property")
    if node.type == "impl_item":
        named = node.child_by_field_name("type")
    declared = node
    while named is None and (inner := declared.child_by_field_name("declarator")) is not None:
        declared = inner
    if named is None and declared is not node:
        named = declared
    if named is None and node.type == "type_declaration":
        named = next((one.child_by_field_name("name") for one in node.named_children), None)
    name = _words(named).split("(")[0]
    receiver = node.child_by_field_name("receiver")  # of a method in Go
    if words := _WORD.findall(_words(receiver)):
        name = f"{words[min(1, len(words) - 1)]}.{name}"
    return name[:NAME_CHARS_MAX]


def _words(node: Node | None) -> str:
    text = node.text if node is not None else None
    return " ".join((text or b"").decode("utf-8", "replace").split())


def _line_start(node: Node, content: bytes) -> int:
    """The start of a node's line, if nothing but space is before it there."""
    start = content.rfind(b"\n", 0, node.start_byte) + 1
    return node.start_byte if content[start : node.start_byte].strip() else start
