"""The one exception that settings raise."""


class ImproperlyConfigured(Exception):
    pass
