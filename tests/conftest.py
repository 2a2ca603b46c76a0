"""What all tests share."""

from hypothesis import settings

# A deadline measures the machine and not the code: on a busy one it fails at random.
settings.register_profile("rewarm", deadline=None)
settings.load_profile("rewarm")
