"""What is measured, and how often: from the environment, with defaults."""

import os
import sys

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def number(name, default):
    text = os.environ.get(name) or str(default)
    if not text.isdecimal() or int(text) == 0:
        sys.exit(f"bench: {name} is a number above zero, not {text!r}")
    return int(text)


# Of each contender of a row; the slow ones have fewer.
ROUNDS = number("ROUNDS", 10)
SLOW_ROUNDS = min(3, ROUNDS)
SIZE_BYTES = number("SIZE_MIB", 1024) * MIB
HUGE_BYTES = number("HUGE_MIB", 8192) * MIB
WAN_BYTES = number("WAN_MIB", 256) * MIB
SMALL_BYTES = 1 * KIB
SMALL_SAMPLES = number("SMALL", 500)
MANY_BYTES = 4 * KIB
MANY_FILES = number("MANY", 2000)
MANY_CONNECTIONS = 64


def chosen_rows(known):
    """The rows of ROWS, in the order in which they are always run."""
    asked = [name.strip() for name in os.environ.get("ROWS", "").split(",") if name.strip()]
    unknown = [name for name in asked if name not in known]
    if unknown:
        sys.exit(f"bench: no row {', '.join(unknown)}; there are: {', '.join(known)}")
    return [name for name in known if not asked or name in asked]
