"""As much of Django as a runner asks for, to start in 20 ms."""

VERSION = (5, 2, 0, "final", 0)
__version__ = "5.2"


def get_version():
    return __version__


def setup():
    from django.conf import settings

    settings.INSTALLED_APPS
