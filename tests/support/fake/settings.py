"""Settings of the fake project. Tests append to them."""

import os

import commands

BASE_DIR = os.path.dirname(os.path.abspath(__file__))
DEBUG = False
INSTALLED_APPS = ()
DJANGOCOMMAND_ALLOWED_COMMANDS = tuple(commands.names())
