"""Core operations of ATen that need no entry, each with the reason: a test walks torch's own list."""

SILENT = {
    "its answers are booleans or places, which carry no signal": (
        "bitwise_and", "bitwise_not", "bitwise_or", "bitwise_xor", "logical_xor", "nonzero",
    ),
    "it makes constants": ("arange", "empty", "empty_strided", "full", "scalar_tensor"),
    "it asks for a shape or a place in memory": ("sym_storage_offset",),
    "it makes a number of Python, on which a graph cannot depend: capture refuses it": ("_local_scalar_dense",),
}  # fmt: skip
"""By reason, the names."""
