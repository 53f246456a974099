"""What holds for every test."""

from __future__ import annotations

import signal

# Who runs in the background of a shell without job control has SIGINT ignored, and so has all that it starts: what
# Ctrl-C does to our programs could not be seen.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
