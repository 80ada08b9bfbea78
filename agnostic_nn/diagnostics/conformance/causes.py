"""Name the cause of a failure, so that checks that fail alike can be counted together.

The reason of a finding names the numbers, shapes and arrays of one trial. Its cause
leaves them out: a function that the library lacks makes many trials fail, all for one
cause.
"""

import re

__all__ = ["cause_of"]

# The first pattern found in a reason decides; \1, \2 are its groups.
CAUSES = (
    (r"has no attribute '(\w+)'", r"\1 is missing"),
    (r"^lacks (.*)", r"\1 is missing"),
    (r"was changed in place", "an argument is changed in place"),
    (r"has no (float64|float32|complex\w*)", r"no \1"),
    (r" is (\w+) \(.*\), expected (?!\1 )(\w+) \(", r"dtype \1 instead of \2"),
    (r" is \w+ \(.*\), expected \w+ \(", "wrong shape"),
    (r"is missing$|should not be there$", "an array is missing or not expected"),
    (r" is .*, expected ", "numbers differ by more than rounding"),
)


def cause_of(reason: str) -> str:
    """Return the cause in a reason; without a known one, the reason without details.

    Details are indices, shapes, numbers and the dtype that was tried.
    """
    reason = reason.removeprefix("float64: ")
    for pattern, cause in CAUSES:
        match = re.search(pattern, reason)
        if match:
            return match.expand(cause)
    without_shapes = re.sub(r"[\[(][\d, ]*[\])]", "(...)", reason)
    return re.sub(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?!\w)", "N", without_shapes)
