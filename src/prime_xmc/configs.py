"""Where version 0.1.0 had `user_message`, which tells errors of bad input from defects; scripts import it here."""

from prime_xmc.command_line.messages import user_message

__all__ = ["user_message"]
