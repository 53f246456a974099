"""``import aiolog.auto``: set up logging by the environment alone.

The variables are those of :func:`aiolog.setup`. In a module that children import as well (``spawn``, ``forkserver``),
or as ``python -c 'import aiolog.auto, app'``, it needs no change to the application. A second import does nothing.
"""

from __future__ import annotations

from aiolog.configure import setup

setup()
