"""Hooks for PyInstaller, which finds this folder by the entry point ``pyinstaller40``; nothing else imports it."""

from __future__ import annotations

__all__ = ["hook_folders"]


def hook_folders() -> list[str]:
    """The folders with the hooks."""
    return list(__path__)
