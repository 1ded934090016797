//! The table of subcommands and options: parser, help texts, man page, completions and the README's reference are all
//! made of it.
//!
//! A paragraph that begins with a space is an example, and stands as it is.

/// One option.
pub struct Opt {
    pub short: Option<char>,
    pub long: &'static str,
    /// `None` for a flag.
    pub value: Option<Value>,
    /// `HIDDEN` for what this program says to itself.
    pub help: &'static str,
}

/// What an option or operand takes.
#[derive(Clone, Copy)]
pub struct Value {
    pub name: &'static str,
    pub kind: Kind,
}

/// What a value can be, which is what a shell completes.
#[derive(Clone, Copy)]
pub enum Kind {
    Directory,
    File,
    OneOf(&'static [&'static str]),
    /// Nothing that a shell could know.
    Other,
}

pub struct Subcommand {
    pub name: &'static str,
    pub help: &'static str,
    /// What may stand behind the options.
    pub operand: Option<Operand>,
    /// Options that it shares with others.
    pub groups: &'static [&'static Group],
    /// Those that are its own.
    pub options: &'static [Opt],
    /// Paragraphs about what else is to be known.
    pub notes: &'static [&'static str],
    /// Exit codes that mean something else here than everywhere.
    pub exits: &'static [(u8, &'static str)],
}

/// Options that several subcommands have.
pub struct Group {
    pub title: &'static str,
    pub options: &'static [Opt],
}

pub struct Operand {
    pub value: Value,
    pub is_required: bool,
}

impl Opt {
    pub fn is_shown(&self) -> bool {
        self.help != HIDDEN
    }
}

impl Subcommand {
    pub fn options(&self) -> impl Iterator<Item = &'static Opt> + Clone {
        self.groups.iter().flat_map(|group| group.options).chain(self.options)
    }

    /// All that help texts speak of.
    pub fn shown_options(&self) -> impl Iterator<Item = &'static Opt> + Clone {
        self.options().filter(|opt| opt.is_shown()).chain([&HELP])
    }

    /// `djangocommand history [OPTIONS] [COMMAND]`.
    pub fn usage(&self) -> String {
        let operand = match &self.operand {
            None => String::new(),
            Some(Operand { value, is_required: true }) => format!(" {}", value.name),
            Some(Operand { value, is_required: false }) => format!(" [{}]", value.name),
        };
        format!("djangocommand {} [OPTIONS]{operand}", self.name)
    }
}

/// The help of an option that help texts leave out.
pub const HIDDEN: &str = "";
/// The name of role 2, which no help text mentions.
pub const SHIM: &str = "shim";
/// What is meant without a subcommand, as with the Python runner.
pub const DEFAULT_SUBCOMMAND: &str = "status";
/// What `generate` makes.
pub const DOCUMENTS: &[&str] = &["man", "bash", "zsh", "fish", "systemd", "markdown"];

pub const ABOUT: &str =
    "Runs the Django management commands that the DjangoCommand service asks for and this host allows.";

/// The exit codes that mean the same everywhere. 78 is `EX_CONFIG` of sysexits.h.
pub const EXITS: &[(u8, &str)] = &[
    (0, "done"),
    (1, "failed: the project does not load, another runner is running"),
    (2, "wrong usage"),
    (78, "wrong configuration: restarting will not help"),
];

pub const SIGNALS: &[(&str, &str)] = &[
    (
        "SIGTERM, SIGINT, SIGQUIT",
        "Take nothing new, let what runs end (with --drain, for so long), report it, exit with 0 (with --once 1, because the \
         round is not over); at once if nothing runs.",
    ),
    (
        "another SIGTERM or SIGINT later, SIGUSR2",
        "Cancel what runs (SIGTERM, after 5 s SIGKILL, to all its processes), report it, exit with 0.",
    ),
    (
        "SIGUSR1",
        "Exit, at once unless something is just about to begin; what runs goes on under the next runner.",
    ),
    ("SIGHUP", "Load the project again; when its terminal was closed: as SIGQUIT."),
];

pub const HELP: Opt = flag(Some('h'), "help", "Show this help.");
pub const VERSION: Opt = flag(Some('V'), "version", "Show the version.");
pub const FORCE: &str = "force";

const fn flag(short: Option<char>, long: &'static str, help: &'static str) -> Opt {
    Opt { short, long, value: None, help }
}

const fn valued(
    short: Option<char>,
    long: &'static str,
    name: &'static str,
    kind: Kind,
    help: &'static str,
) -> Opt {
    Opt { short, long, value: Some(Value { name, kind }), help }
}

/// Which project, and where its runner keeps its state.
pub const PLACE: Group = Group { title: "Options that choose the project", options: PLACE_OPTIONS };
/// How the project is loaded, and for which service.
pub const LOAD: Group = Group { title: "Options that say how it is loaded", options: LOAD_OPTIONS };
/// How a runner runs.
pub const RUN: Group = Group { title: "Options of a runner", options: RUN_OPTIONS };
pub const GROUPS: [&Group; 3] = [&PLACE, &LOAD, &RUN];

const PLACE_OPTIONS: &[Opt] = &[
    valued(
        Some('C'),
        "project",
        "DIR",
        Kind::Directory,
        "The project, instead of the working directory; manage.py is looked for there and above.",
    ),
    valued(
        None,
        "settings",
        "MODULE",
        Kind::Other,
        "The settings module, instead of DJANGO_SETTINGS_MODULE; without a manage.py it is what makes the project.",
    ),
    valued(
        None,
        "state-dir",
        "DIR",
        Kind::Directory,
        "Where state is kept. Else: $DJANGOCOMMAND_STATE_DIR, $STATE_DIRECTORY, /var/lib/djangocommand/PROJECT/.state for root \
         and for whom it belongs to, $XDG_STATE_HOME or ~/.local/state, then djangocommand/PROJECT/.state.",
    ),
];

const LOAD_OPTIONS: &[Opt] = &[
    valued(
        None,
        "python",
        "PATH",
        Kind::File,
        "The project's Python. Else: $VIRTUAL_ENV, a virtualenv beside manage.py or above it, $CONDA_PREFIX, \
         manage.py's first line, python3.",
    ),
    valued(None, "server-url", "URL", Kind::Other, "The service, instead of DJANGOCOMMAND_SERVER_URL."),
];

const RUN_OPTIONS: &[Opt] = &[
    valued(
        None,
        "drain",
        "SECS",
        Kind::Other,
        "How long what runs may go on once the runner is told to stop, before it is cancelled. Else: until it ends.",
    ),
    flag(None, "no-reload", "Do not load the project again when its files change; SIGHUP still does."),
    valued(
        Some('v'),
        "verbosity",
        "0..3",
        Kind::OneOf(&["0", "1", "2", "3"]),
        "How much is logged: 0 errors, 1 warnings, 2 what happens (the default), 3 everything.",
    ),
    flag(Some('q'), "quiet", "The same as -v 0."),
    valued(
        None,
        "log-format",
        "FORMAT",
        Kind::OneOf(&["time", "plain"]),
        "time: each line with the local time (the default); plain: without (the default under the systemd journal).",
    ),
];

const DETACH: Opt =
    flag(Some('d'), "detach", "Run in the background, with a log file in the state directory.");
const JSON: Opt = flag(None, "json", "For programs; the keys are described in the README.");

pub const SUBCOMMANDS: &[Subcommand] = &[
    Subcommand {
        name: "start",
        help: "Run: in the foreground until SIGTERM or Ctrl+C, or detached.",
        operand: None,
        groups: &[&PLACE, &LOAD, &RUN],
        options: &[
            DETACH,
            flag(
                None,
                "once",
                "Do everything that waits, report it, exit; for cron without a resident process.",
            ),
            flag(None, "detached", HIDDEN),
            valued(None, "replace", "HOW", Kind::Other, HIDDEN),
        ],
        notes: &[
            "The API key is read from DJANGOCOMMAND_API_KEY in the project's Django settings or the environment, or from \
             the file that DJANGOCOMMAND_API_KEY_FILE names; there is no option for it, because options can be seen by \
             every user of the host. Each setting can be overridden by an environment variable of its name.",
            "SIGTERM or Ctrl+C: take nothing new, let what runs end, report it, exit. A second one cancels what runs. \
             SIGHUP: load the project again. SIGUSR1: exit, what runs goes on under the next runner. SIGUSR2: cancel \
             what runs, report it, exit.",
        ],
        exits: &[
            (
                0,
                "it was told to end; with -d: the runner has its lock and a good configuration; with --once: all that it took is delivered",
            ),
            (1, "failed; with --once: something waits for the next round"),
        ],
    },
    Subcommand {
        name: "stop",
        help: "End the runner when what runs has ended.",
        operand: None,
        groups: &[&PLACE],
        options: &[
            valued(
                None,
                "timeout",
                "SECS",
                Kind::Other,
                "How long to wait for its end: 10 s, with --force 30 s.",
            ),
            flag(None, FORCE, "Cancel what runs (SIGTERM, after 5 s SIGKILL), and leave no process behind."),
        ],
        notes: &["What a command that has ended has left in the background may live on."],
        exits: &[
            (0, "no runner is running any more"),
            (1, "it still waits for what runs, and ends by itself after that"),
        ],
    },
    Subcommand {
        name: "restart",
        help: "Replace the runner by a new one; what runs goes on undisturbed.",
        operand: None,
        groups: &[&PLACE, &LOAD, &RUN],
        options: &[DETACH, flag(None, FORCE, "Cancel what runs before the old runner ends.")],
        notes: &[
            "The new runner checks everything first: if the project or the configuration is broken, the old one stays. \
                  Without a runner it is the same as start. Under systemd, let systemctl restart it.",
        ],
        exits: &[],
    },
    Subcommand {
        name: "reload",
        help: "Let the runner load settings and commands again.",
        operand: None,
        groups: &[&PLACE],
        options: &[],
        notes: &[],
        exits: &[
            (0, "the runner goes by the new ones"),
            (1, "they are broken, and it goes on with the old ones"),
        ],
    },
    Subcommand {
        name: "status",
        help: "Show what the runner does and what waits (also without a subcommand).",
        operand: None,
        groups: &[&PLACE],
        options: &[JSON],
        notes: &[],
        exits: &[
            (0, "running"),
            (1, "not running, but executions are left"),
            (3, "not running"),
            (4, "cannot be told"),
        ],
    },
    Subcommand {
        name: "check",
        help: "Look for what keeps a runner from working: project, settings, network, key, policy.",
        operand: None,
        groups: &[&PLACE, &LOAD],
        options: &[
            flag(None, "offline", "Leave the network out, and the heartbeat that tries the key."),
            JSON,
        ],
        notes: &[
            "Each line is ok, warn or fail, and says what to do. It takes less than 15 s, whatever hangs, and changes \
                  nothing on this host but for the bytecode that Python keeps. Run it as the user and with the environment of the runner.",
        ],
        exits: &[(0, "nothing fails"), (1, "something does")],
    },
    Subcommand {
        name: "commands",
        help: "Show the project's commands: which may run, by which rule, and how.",
        operand: None,
        groups: &[&PLACE, &LOAD],
        options: &[JSON],
        notes: &["The dashboard lists those that may run."],
        exits: &[],
    },
    Subcommand {
        name: "ensure",
        help: "Start a detached runner unless a healthy one is there; for cron.",
        operand: None,
        groups: &[&PLACE, &LOAD, &RUN],
        options: &[],
        notes: &[
            "Silent when there is nothing to do. A runner whose loop has not turned for 5 minutes is replaced.",
            "    * * * * * djangocommand -C /srv/app ensure",
        ],
        exits: &[(0, "there is one")],
    },
    Subcommand {
        name: "logs",
        help: "Show the log of the detached runner.",
        operand: None,
        groups: &[&PLACE],
        options: &[
            valued(Some('n'), "lines", "N", Kind::Other, "How many lines from its end: 20 by default."),
            flag(Some('f'), "follow", "Go on with what is written from now on, until Ctrl+C."),
        ],
        notes: &[],
        exits: &[(1, "there is none, or it cannot be read")],
    },
    Subcommand {
        name: "history",
        help: "Show what was run and refused on this host, and how it ended.",
        operand: Some(Operand { value: Value { name: "COMMAND", kind: Kind::Other }, is_required: false }),
        groups: &[&PLACE],
        options: &[
            valued(
                Some('n'),
                "lines",
                "N",
                Kind::Other,
                "How many executions, the last ones: 20 by default.",
            ),
            flag(
                None,
                "json",
                "The record's own lines, one JSON object each; the keys are described in the README.",
            ),
        ],
        notes: &[
            "With COMMAND, only the executions of that command. It reads audit.jsonl in the state directory, whether a \
                  runner runs or not.",
        ],
        exits: &[(1, "there is none, or it cannot be read")],
    },
    Subcommand {
        name: "generate",
        help: "Print the man page, a shell's completions, a systemd unit, or the reference in Markdown.",
        operand: Some(Operand {
            value: Value { name: "DOCUMENT", kind: Kind::OneOf(DOCUMENTS) },
            is_required: true,
        }),
        groups: &[],
        options: &[],
        notes: &[
            "DOCUMENT is man, bash, zsh, fish, systemd or markdown. make install puts them in place; for a binary that came \
             alone:",
            "    djangocommand generate bash > ~/.local/share/bash-completion/completions/djangocommand",
            "    djangocommand generate fish > ~/.config/fish/completions/djangocommand.fish",
            "    djangocommand generate man > ~/.local/share/man/man1/djangocommand.1",
            "    djangocommand generate systemd > /etc/systemd/system/djangocommand@.service",
        ],
        exits: &[],
    },
];
