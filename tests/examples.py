"""The number of examples of a property test: `make test` runs the same ones each time.

`make check-long` runs ten times as many, with a new seed each time.
"""

from hypothesis import HealthCheck, settings

USUAL, LONG = "usual", "long"
USUAL_EXAMPLES = 100

# a busy machine must not fail a test
_ANY_SPEED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "database": None}


def register_profiles():
    """Register both profiles; `--hypothesis-profile long` chooses the long one."""
    settings.register_profile(USUAL, derandomize=True, max_examples=USUAL_EXAMPLES, **_ANY_SPEED)
    settings.register_profile(LONG, derandomize=False, max_examples=10 * USUAL_EXAMPLES, print_blob=True, **_ANY_SPEED)
    settings.load_profile(USUAL)


def examples(number):
    """Decorates a property that needs another number of examples than the default."""
    return settings(max_examples=number * settings.default.max_examples // USUAL_EXAMPLES)
