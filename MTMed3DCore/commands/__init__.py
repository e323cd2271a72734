"""The commands of ``mtmed3d``, one module each, with ``add_parser(subparsers)`` and a function that runs it."""
