"""Ends as Django's commands do when they cannot go on."""

from django.core.management.base import BaseCommand, CommandError


class Command(BaseCommand):
    help = "Fails, as an umlaut (ä), a symbol (→) and an emoji (🦄) in its help look on."

    def handle(self, *args, **options):
        raise CommandError("this never works")
