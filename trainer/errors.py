"""The house's errors, which `tokenization`, the package below, defines for both."""

from tokenization.errors import InfrastructureError, Problems, RewarmError, UserError, nearest

__all__ = ["InfrastructureError", "Problems", "RewarmError", "UserError", "nearest"]
