"""Settings that are imported when somebody first looks."""

import importlib
import os

from django.core.exceptions import ImproperlyConfigured


class Settings:
    _module = None

    @property
    def configured(self):
        return self._module is not None

    def _load(self):
        if self._module is None:
            name = os.environ.get("DJANGO_SETTINGS_MODULE")
            if not name:
                raise ImproperlyConfigured("DJANGO_SETTINGS_MODULE is not set")
            self._module = importlib.import_module(name)
        return self._module

    def __getattr__(self, name):
        module = self._load()
        if name.isupper() and hasattr(module, name):
            return getattr(module, name)
        raise AttributeError("'Settings' object has no attribute %r" % name)

    def __dir__(self):
        return [name for name in dir(self._load()) if name.isupper()]


settings = Settings()
