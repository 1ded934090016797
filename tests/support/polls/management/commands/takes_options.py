"""Shows what became of its arguments."""

import json

from django.core.management.base import BaseCommand


class Command(BaseCommand):
    help = "Prints its options as a JSON object."

    def add_arguments(self, parser):
        parser.add_argument("names", nargs="*")
        parser.add_argument("--limit", type=int, default=10, help="how many (default: %(default)s)")
        parser.add_argument("--dry-run", action="store_true")

    def handle(self, *args, names, limit, dry_run, **options):
        self.stdout.write(json.dumps({"names": names, "limit": limit, "dry_run": dry_run}))
