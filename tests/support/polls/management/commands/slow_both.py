"""Prints on both streams over some time."""

import time

from django.core.management.base import BaseCommand


class Command(BaseCommand):
    help = "Prints COUNT lines on each stream, a pair each SECONDS."

    def add_arguments(self, parser):
        parser.add_argument("count", type=int)
        parser.add_argument("seconds", type=float)

    def handle(self, *args, count, seconds, **options):
        for number in range(1, count + 1):
            self.stdout.write(f"out {number}")
            self.stderr.write(f"err {number}")
            time.sleep(seconds)
