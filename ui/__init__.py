"""The browser's face of the explorer: state, loaders, charts, panels. No torch in this process."""

from ui.frame import Frame, boot, show_message

__all__ = ["Frame", "boot", "show_message"]
