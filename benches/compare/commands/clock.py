"""Prints COUNT lines, one each SECONDS, each with the time at which it was printed."""

import time

from django.core.management.base import BaseCommand


class Command(BaseCommand):
    requires_system_checks = []

    def add_arguments(self, parser):
        parser.add_argument("count", type=int)
        parser.add_argument("seconds", type=float)

    def handle(self, *, count, seconds, **options):
        for _ in range(count):
            print(repr(time.time()), flush=True)
            time.sleep(seconds)
