# Runs inside the project's own Python and tells the runner what the project is: settings, commands, help texts.
#
# manage.py is run as the user would run it, with one change: instead of fetching the subcommand's class, Django is
# given a stub, which is called when the settings are loaded and the apps are ready. So nothing of Django's start-up
# or of manage.py's own logic (dotenv files, sys.path edits) is repeated here.
#
# Answers are JSON lines behind a mark, on the descriptor that standard output was; standard output itself becomes
# standard error, so that a project that prints cannot spoil them. The syntax stays valid for Python 2, so that a
# wrong interpreter fails with "No module named django" and not with a syntax error.
import gc
import hashlib
import json
import os
import platform
import re
import runpy
import sys
import traceback

try:
    from urllib.parse import unquote
except ImportError:
    pass  # Python 2, which fails below with a better message.

# What is loaded here stays until the end: to look for garbage meanwhile would be a tenth of the time.
gc.disable()

MARK = b"djangocommand-probe:"
PREFIXES = ("DJANGOCOMMAND_", "MANAGECOMMAND_")
# Directories below a project whose code comes from a package manager.
FOREIGN = ("site-packages", "dist-packages", "node_modules")
FILES_MAX = 10000
# Values that are shorter are in ordinary words too.
SECRET_MIN = 8
MASKED = "********"
# Words in the name of an option that takes a file, or code.
TELLING = {"file", "files", "filename", "path", "paths", "dir", "directory", "folder", "output", "outfile", "fixture",
           "module", "class", "script", "code", "command", "callable"}
# Help texts must not depend on the terminal that the runner happens to be started from.
COLUMNS = "80"

answers = os.dup(1)
os.dup2(2, 1)
control = os.fdopen(os.dup(0), "rb")
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)


def answer(value):
    data = MARK + json.dumps(value).encode("ascii") + b"\n"
    while data:
        data = data[os.write(answers, data):]


def plain(value):
    """The value as JSON has it; lazy texts, paths and the like become their text."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    if isinstance(value, dict):
        return dict((str(k), plain(v)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(v) for v in value), key=str)
    return str(value)


def ascii_only(text):
    """Lone surrogates, which a file name may hold, are no text for the runner's log."""
    return text.encode("ascii", "backslashreplace").decode("ascii")


def secrets_of(settings, names):
    """The values of settings (in dictionaries too) and variables whose names end so, and passwords in URLs, longest first."""
    found = set()

    def collect(name, value, depth):
        is_secret = name.upper().endswith(names)
        if isinstance(value, dict):
            if depth:
                for key, inner in list(value.items()):
                    collect(name if is_secret else str(key), inner, depth - 1)
        elif isinstance(value, (list, tuple, set, frozenset)):
            if depth:
                for inner in list(value):
                    collect(name, inner, depth - 1)
        elif isinstance(value, bytes):
            if is_secret:
                found.update((value.decode("utf-8", "replace"), repr(value)[2:-1]))
        elif value is not None and not isinstance(value, (bool, float)) and (is_secret or isinstance(value, str)):
            text = str(value)
            if is_secret:
                found.update(forms_of(text))
            if "://" in text:
                for password in url_passwords(text):
                    found.update(forms_of(password))

    for name in dir(settings):
        try:
            collect(name, getattr(settings, name), 20)
        except Exception:
            continue  # One that cannot be read is not printed either.
    for name, value in os.environ.items():
        collect(name, value, 1)
    return sorted((text for text in found if len(text) >= SECRET_MIN), key=lambda text: (-len(text), text))


def escaped(text):
    return any("\udc80" <= c <= "\udcff" for c in text) and not any("\ud800" <= c < "\udc80" for c in text)


def forms_of(text):
    """A value and what Python makes of it. What is no text in the environment is printed with replacement characters."""
    shown = [text, repr(text)[1:-1], ascii(text)[1:-1], text.replace("'", "\\'")]
    # A lone surrogate stands for a byte of the environment, and else for nothing that could be printed.
    return [t.encode("utf-8", "surrogateescape" if escaped(t) else "replace").decode("utf-8", "replace") for t in shown]


def url_passwords(text):
    """The password of each URL in a text, as it is written and decoded. A user's name may hold colons and an @ too."""
    for behind in re.findall(r"://([^/?#\s]*)@", text):
        for password in set((behind.partition(":")[2], behind.rpartition(":")[2])):
            yield password
            yield unquote(password)


def without(secrets, text):
    for secret in secrets:
        for line in secret.splitlines():
            is_armour = line.startswith("-----") and line.endswith("-----")
            if len(line) >= SECRET_MIN and not is_armour:
                text = text.replace(line, MASKED)
    return text


def help_of(parser, secrets):
    """The help text. A secret that is broken over its lines is only found where it is not, so that it is written out
    without any break if there might be one: whatever the breaks, without spaces it is the same text."""
    narrow = parser.format_help()
    joined = "".join(narrow.split())
    lines = [line for secret in secrets for line in secret.splitlines()]
    if not any("".join(line.split()) in joined for line in lines if len(line) >= SECRET_MIN):
        return narrow
    os.environ["COLUMNS"] = "1000000"
    wide = parser.format_help()
    os.environ["COLUMNS"] = COLUMNS
    return narrow if without(secrets, wide) == wide else without(secrets, wide)


def label_of(app):
    """The app of a command: `get_commands` has its name, or a command that was made already."""
    return app if isinstance(app, str) else getattr(app, "__name__", str(app))


def chosen_by(parser, code_options):
    """Its options and operands by which somebody chooses a file or code, as far as their names show it."""
    for action in parser._actions:
        if action.nargs == 0 or action.choices is not None or set(action.option_strings) & set(code_options):
            continue
        names = action.option_strings + [action.dest] + [m for m in (action.metavar,) if isinstance(m, str)]
        words = set(re.split("[^a-z]+", " ".join(names).lower()))
        kind = getattr(action.type, "__name__", type(action.type).__name__)
        if words & TELLING or kind in ("FileType", "Path", "open"):
            yield "/".join(action.option_strings) or str(action.metavar or action.dest)


def describe_parser(parser, code_options):
    """What a policy on arguments has to know of a command's options, and what people should know of them."""
    described = {}
    own = [o for o in parser._option_string_actions if any(code.startswith(o) for code in code_options)]
    if set(own) - set(code_options):
        described["own_options"] = own
    if parser.fromfile_prefix_chars:
        described["file_prefixes"] = parser.fromfile_prefix_chars
    chosen = list(chosen_by(parser, code_options))
    if chosen:
        described["chosen"] = chosen
    return described


def describe(name, app, bound_args, code_options, secrets, parsers, broken):
    from django.core.management import load_command_class

    described = {"name": name, "app_label": app if isinstance(app, str) else "", "help_text": ""}
    try:
        command = load_command_class(app, name)
        described["app_label"] = label_of(app)
        try:
            # Until it is known better: an argument of this kind may name a file with more of them.
            parsers[name] = {"file_prefixes": "@"}
            parser = command.create_parser("manage.py", name)
            about = describe_parser(parser, code_options)
            if about:
                parsers[name] = about
            else:
                del parsers[name]
            described["help_text"] = help_of(parser, secrets)
        except BaseException:
            described["help_text"] = without(secrets, str(getattr(command, "help", "") or ""))
    except BaseException as error:  # A command whose import exits must not end the probe either.
        broken.append("%s: %s" % (name, traceback.format_exception_only(type(error), error)[-1].strip()))
    if bound_args:
        described["bound_args"] = bound_args
    return described


def is_own(directory, root, known):
    """Whether what lies in a directory is the project's own code, and not that of a virtualenv below its root."""
    if directory not in known:
        above, name = os.path.split(directory)
        known[directory] = directory == root or (
            name not in FOREIGN
            and not os.path.exists(os.path.join(directory, "pyvenv.cfg"))
            and is_own(above, root, known)
        )
    return known[directory]


def is_text(path):
    try:
        return b"\0" not in path.encode("utf-8")
    except UnicodeError:
        return False


def loaded_files():
    for module in list(sys.modules.values()):
        try:
            # Not by getattr: a module that is loaded on first use would be loaded by it.
            path = object.__getattribute__(module, "__dict__").get("__file__")
        except Exception:
            continue
        if isinstance(path, str):
            yield path


def command_files(commands):
    """Where apps have their commands: a directory or file that is missing may come, and one that is broken may be
    mended."""
    from django.apps import apps

    homes = dict((c.name, os.path.join(c.path, "management", "commands")) for c in apps.get_app_configs())
    files = [os.path.join(homes[app], name + ".py")
             for name, app in commands.items() if isinstance(app, str) and app in homes]
    return list(homes.values()) + files


def project_files(root, real_root, commands):
    """The project's own files that its settings, apps and commands come from, by their names below `root`."""
    below, really_below = os.path.join(root, ""), os.path.join(real_root, "")
    paths = [os.path.join(root, "manage.py"), os.path.join(root, ".env")]
    try:
        paths += command_files(commands)
    except Exception:
        pass  # Without them a new command shows when something else changes.
    paths.extend(loaded_files())
    files, known = set(), {}
    for path in paths:
        # A relative name comes from a relative import path, which began at the root.
        if not os.path.isabs(path):
            path = os.path.join(root, path)
        if path.startswith(really_below):
            # A project that resolves symbolic links must be watched where the link will lead next.
            path = below + path[len(really_below):]
        path = os.path.normpath(path) if "/." in path else path
        if path.startswith(below) and is_text(path) and is_own(os.path.dirname(path), root, known):
            files.add(path)
    return sorted(files)[:FILES_MAX]


def work(wanted_settings, root, real_root):
    """Answers the two questions, with the project loaded, and ends the process."""
    taken = os.environ.get("DJANGO_SETTINGS_MODULE")
    if wanted_settings and taken != wanted_settings:
        # The commands would go the same way, and the option would do nothing without a word.
        raise SystemExit("manage.py takes the settings '%s' in spite of --settings: it may only set a default for "
                         "DJANGO_SETTINGS_MODULE" % (taken,))

    import django
    from django.conf import settings
    from django.core.management import get_commands

    commands = get_commands()
    answer({
        "python": sys.executable or "",
        "python_version": platform.python_version(),
        "django_version": django.get_version(),
        "settings": dict((n, plain(getattr(settings, n))) for n in dir(settings) if n.startswith(PREFIXES)),
        "commands": [(name, label_of(app)) for name, app in commands.items()],
        "debug": bool(getattr(settings, "DEBUG", False)),
    })
    line = control.readline()
    if line:
        os.environ["COLUMNS"] = COLUMNS
        os.environ["PYTHON_COLORS"] = "0"
        wanted = json.loads(line.decode("utf-8"))
        names, code_options = wanted["secret_names"], wanted["code_options"]
        secrets = [] if names is None else secrets_of(settings, tuple(names)) + wanted["secrets"]
        broken, parsers = [], {}
        described = [describe(w["name"], commands[w["name"]], w.get("bound_args"), code_options, secrets, parsers, broken)
                     for w in wanted["commands"]]
        by_name = sorted(described, key=lambda command: command["name"])
        canonical = json.dumps(by_name, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(canonical.encode("ascii")).hexdigest()
        answer({
            "commands": described,
            "hash": "sha256:" + digest,
            "broken": [ascii_only(b) for b in broken],
            "parsers": parsers,
            "secrets": secrets,
            "files": project_files(root, real_root, commands),
        })
    # Threads that the project has started must not hold the exit.
    leave(0)


def leave(status):
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass
    os._exit(status)


def main(manage_py, root, wanted_settings):
    import django.core.management as management

    real_root = os.path.realpath(root)

    class Stub(object):
        def __init__(self, utility):
            self.utility = utility

        def run_from_argv(self, argv):
            error = getattr(self.utility, "settings_exception", None)
            if error is not None:
                raise error
            work(wanted_settings, root, real_root)

    management.ManagementUtility.fetch_command = lambda self, subcommand: Stub(self)
    sys.argv = ["manage.py", "djangocommand", "start"]
    # With PYTHONSAFEPATH the first entry is not the script's directory, so it is inserted, not replaced.
    sys.path.insert(0, root)
    if manage_py:
        runpy.run_path(manage_py, run_name="__main__")
        if not os.environ.get("DJANGO_SETTINGS_MODULE"):
            raise SystemExit("manage.py ended without starting Django: set DJANGO_SETTINGS_MODULE, or pass --settings")
        # It swallowed an exception, or does not go through Django's own entry point.
        import django

        django.setup()
        work(wanted_settings, root, real_root)
    management.ManagementUtility(sys.argv).execute()


try:
    main(*[part.decode("utf-8") for part in control.readline().rstrip(b"\n").split(b"\0")])
except SystemExit as stop:
    if stop.code is not None and not isinstance(stop.code, int):
        sys.stderr.write("%s\n" % (stop.code,))
    leave(1)
except BaseException:
    traceback.print_exc()
    leave(1)
