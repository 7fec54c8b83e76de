"""Landlock: with Linux 5.13 and later a process can give up writing outside a folder for good.

From 6.7 on also TCP, and from 6.12 on signals to, and abstract sockets of, processes outside.
"""

import ctypes
import os
from typing import Any

# The same on every architecture that Linux has had since they were added.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_GET_VERSION = 1
_BENEATH_PATH = 1

_WRITE_FILE = 1 << 1
_WRITES = _WRITE_FILE | sum(1 << bit for bit in range(4, 13))  # remove and make anything
_MOVE, _TRUNCATE, _DEVICE_CONTROL = 1 << 13, 1 << 14, 1 << 15
_TCP_BIND_AND_CONNECT = 0b11
_SIGNALS_AND_ABSTRACT_SOCKETS = 0b11


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("files", ctypes.c_uint64),
        ("network", ctypes.c_uint64),
        ("scopes", ctypes.c_uint64),
    )


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def restrict_to(folder: str) -> bool:
    """Let this process and its children write in `folder` and nowhere else, from now on.

    Needs `no_new_privs`. False where the kernel does not have Landlock, or will not give it.
    """
    syscall: Any = ctypes.CDLL(None, use_errno=True).syscall
    version: int = syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _GET_VERSION)
    if version < 1:
        return False
    files = _WRITES
    for since, right in ((2, _MOVE), (3, _TRUNCATE), (5, _DEVICE_CONTROL)):
        files |= right if version >= since else 0
    ruleset = _Ruleset(
        files,
        _TCP_BIND_AND_CONNECT if version >= 4 else 0,
        _SIGNALS_AND_ABSTRACT_SOCKETS if version >= 6 else 0,
    )
    size = 8 if version < 4 else 16 if version < 6 else 24
    rules: int = syscall(_CREATE_RULESET, ctypes.byref(ruleset), ctypes.c_size_t(size), 0)
    if rules < 0:
        return False
    try:
        allowed = [(folder, files), (os.devnull, files & (_WRITE_FILE | _TRUNCATE))]
        for path, rights in allowed:
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                rule = _Beneath(rights, opened)
                syscall(_ADD_RULE, rules, _BENEATH_PATH, ctypes.byref(rule), 0)
            finally:
                os.close(opened)
        return syscall(_RESTRICT_SELF, rules, 0) == 0
    finally:
        os.close(rules)
