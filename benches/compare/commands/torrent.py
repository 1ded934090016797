"""Prints MEGABYTES in lines of 80 bytes, evenly over SECONDS or as fast as they are taken.

How long that took, in seconds, is then in the file REPORT.
"""

import os
import time

from django.core.management.base import BaseCommand

LINES = 625
BLOCK = b"".join(b"%079d\n" % number for number in range(LINES))


class Command(BaseCommand):
    requires_system_checks = []

    def add_arguments(self, parser):
        parser.add_argument("megabytes", type=int)
        parser.add_argument("seconds", type=float)
        parser.add_argument("report")

    def handle(self, *, megabytes, seconds, report, **options):
        blocks = megabytes * 1_000_000 // len(BLOCK)
        begun = time.monotonic()
        for number in range(blocks):
            early = begun + seconds * number / blocks - time.monotonic()
            if early > 0:
                time.sleep(early)
            left = memoryview(BLOCK)
            while left:
                left = left[os.write(1, left) :]
        took = time.monotonic() - begun
        with open(report + ".tmp", "w") as file:
            file.write(repr(took))
        os.replace(report + ".tmp", report)
