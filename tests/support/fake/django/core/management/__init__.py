"""Finds and runs the functions of the project's `commands` module, through the same doors as Django's."""

import argparse
import functools
import os
import sys

import django
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured


class Command:
    def __init__(self, function):
        self.function = function
        self.help = function.__doc__ or ""

    def create_parser(self, prog_name, subcommand, **kwargs):
        prog = "%s %s" % (os.path.basename(prog_name), subcommand)
        parser = argparse.ArgumentParser(prog=prog, description=self.help, **kwargs)
        parser.add_argument("args", nargs="*")
        return parser

    def run_from_argv(self, argv):
        # Without settings no command runs, whatever execute() made of their error.
        settings.INSTALLED_APPS
        self.function(*argv[2:])


@functools.lru_cache(maxsize=None)
def get_commands():
    import commands

    return {name: "fake" for name in commands.names()}


def load_command_class(app_name, name):
    import commands

    return Command(getattr(commands, name))


class ManagementUtility:
    def __init__(self, argv=None):
        self.argv = argv or sys.argv[:]
        self.prog_name = os.path.basename(self.argv[0])
        self.settings_exception = None

    def fetch_command(self, subcommand):
        app_name = get_commands().get(subcommand)
        if app_name is None:
            sys.stderr.write("Unknown command: %r\nType '%s help' for usage.\n" % (subcommand, self.prog_name))
            sys.exit(1)
        return load_command_class(app_name, subcommand)

    def execute(self):
        subcommand = self.argv[1] if len(self.argv) > 1 else "help"
        try:
            settings.INSTALLED_APPS
        except (ImproperlyConfigured, ImportError) as exception:
            self.settings_exception = exception
        if settings.configured:
            django.setup()
        self.fetch_command(subcommand).run_from_argv(self.argv)


def execute_from_command_line(argv=None):
    ManagementUtility(argv).execute()
