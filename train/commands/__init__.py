from ..steps import add_command

__all__ = ["add_command"]
