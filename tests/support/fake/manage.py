#!/usr/bin/env python3
"""The fake project's manage.py: what `startproject` writes, over the fake Django beside it."""

import os
import sys


def main():
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
