"""One line for each framework: gunicorn, Celery, Django, structlog, loguru.

Each module here is for one of them, and imports none but that one, when it is used.
"""
