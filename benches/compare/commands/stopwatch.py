# Stands before what manage.py does: how long that took until the interpreter's end, in seconds, is then in the file
# `took` beside it.
import atexit
import os
import time

begun = time.monotonic()


def write(took=os.path.join(os.path.dirname(os.path.abspath(__file__)), "took")):
    with open(took + ".tmp", "w") as file:
        file.write(repr(time.monotonic() - begun))
    os.replace(took + ".tmp", took)


atexit.register(write)
