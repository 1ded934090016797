//! The command line: one table of subcommands and options, from which the parser and every help text come.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use crate::log::{Format, Level};
use crate::near;

/// What the user asked for.
#[derive(Debug)]
pub enum Command {
    Start(Start),
    Stop {
        place: Place,
        timeout: Option<Duration>,
        force: bool,
    },
    Reload(Place),
    Status {
        place: Place,
        json: bool,
    },
    Ensure(Start),
    Logs {
        place: Place,
        lines: usize,
        follow: bool,
    },
    History {
        place: Place,
        json: bool,
        /// How many executions, the last ones.
        count: usize,
        command: Option<String>,
    },
    /// Role 2, started by the runner itself: the directory of the execution to look after.
    Shim(PathBuf),
    /// Text for standard output, and nothing else to do.
    Print(String),
}

/// Which project, and where its runner keeps its state.
#[derive(Debug, Default)]
pub struct Place {
    pub project: Option<PathBuf>,
    pub settings: Option<String>,
    pub state_dir: Option<PathBuf>,
}

/// A runner to be started.
#[derive(Debug)]
pub struct Start {
    pub place: Place,
    pub python: Option<PathBuf>,
    pub server_url: Option<String>,
    pub level: Level,
    /// `None`: what fits the place that standard error goes to.
    pub log_format: Option<Format>,
    /// Whether changed project files make it load the project again.
    pub watches_files: bool,
    pub mode: Mode,
    /// What becomes of a runner that is there already; `None`: it stays, and there is no second one.
    pub replace: Option<Replace>,
    /// The same options once more, for the detached runner that this process starts.
    pub to_pass_on: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Foreground,
    /// Everything that waits is done, and then it ends.
    Once,
    /// Starts a detached runner and says how that went.
    Detach,
    /// Is that runner.
    Detached,
}

/// How a runner makes way for the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    /// What runs goes on under the next one.
    HandOver,
    /// The same, but only if its loop does not turn.
    Hanging,
    /// What runs is cancelled first.
    Force,
}

struct Opt {
    short: Option<char>,
    long: &'static str,
    /// The value's name in help texts; `None` for a flag.
    value: Option<&'static str>,
    /// `HIDDEN` for what this program says to itself.
    help: &'static str,
}

const HIDDEN: &str = "";

struct Subcommand {
    name: &'static str,
    help: &'static str,
    options: &'static [&'static [Opt]],
    /// What `--help` says behind the options.
    notes: &'static str,
}

const fn flag(short: Option<char>, long: &'static str, help: &'static str) -> Opt {
    Opt { short, long, value: None, help }
}

const fn valued(short: Option<char>, long: &'static str, value: &'static str, help: &'static str) -> Opt {
    Opt { short, long, value: Some(value), help }
}

/// The name of role 2, which no help text mentions.
pub const SHIM: &str = "shim";

const PLACE: &[Opt] = &[
    valued(
        Some('C'),
        "project",
        "DIR",
        "The project, instead of the working directory; manage.py is looked for there and above.",
    ),
    valued(
        None,
        "settings",
        "MODULE",
        "The settings module, instead of DJANGO_SETTINGS_MODULE; without a manage.py it is what makes the project.",
    ),
    valued(
        None,
        "state-dir",
        "DIR",
        "Where state is kept. Else: $DJANGOCOMMAND_STATE_DIR, $STATE_DIRECTORY, \
         /var/lib/djangocommand/PROJECT for root, $XDG_STATE_HOME or ~/.local/state, then djangocommand/PROJECT.",
    ),
];

const RUN: &[Opt] = &[
    valued(
        None,
        "python",
        "PATH",
        "The project's Python. Else: $VIRTUAL_ENV, a virtualenv beside manage.py or above it, $CONDA_PREFIX, \
         manage.py's first line, python3.",
    ),
    valued(None, "server-url", "URL", "The service, instead of DJANGOCOMMAND_SERVER_URL."),
    flag(None, "no-reload", "Do not load the project again when its files change; SIGHUP still does."),
    valued(
        Some('v'),
        "verbosity",
        "0..3",
        "How much is logged: 0 errors, 1 warnings, 2 what happens (the default), 3 everything.",
    ),
    flag(Some('q'), "quiet", "The same as -v 0."),
    valued(
        None,
        "log-format",
        "FORMAT",
        "time: each line with the local time (the default); plain: without (the default under the systemd journal).",
    ),
];

const DETACH: Opt =
    flag(Some('d'), "detach", "Run in the background, with a log file in the state directory.");
const FORCE: &str = "force";

const SUBCOMMANDS: &[Subcommand] = &[
    Subcommand {
        name: "start",
        help: "Run: in the foreground until SIGTERM or Ctrl+C, or detached.",
        options: &[
            PLACE,
            RUN,
            &[
                DETACH,
                flag(
                    None,
                    "once",
                    "Do everything that waits, report it, exit; for cron without a resident process.",
                ),
                flag(None, "detached", HIDDEN),
                valued(None, "replace", "HOW", HIDDEN),
            ],
        ],
        notes: "The API key is read from DJANGOCOMMAND_API_KEY in the project's Django settings or the environment; there \
                is\nno option for it, because options can be seen by every user of the host. Each setting can be \
                overridden by\nan environment variable of its name.\n\
                \nSIGTERM or Ctrl+C: take nothing new, let what runs end, report it, exit. A second one cancels what \
                runs.\nSIGHUP: load the project again. SIGUSR1: exit, what runs goes on under the next runner. SIGUSR2: \
                cancel what\nruns, report it, exit.\n\
                \nWith --once, exit code 0 says that all it took is delivered, 1 that something waits for the next \
                round.\n",
    },
    Subcommand {
        name: "stop",
        help: "End the runner when what runs has ended.",
        options: &[
            PLACE,
            &[
                valued(None, "timeout", "SECS", "How long to wait for its end: 10 s, with --force 30 s."),
                flag(
                    None,
                    FORCE,
                    "Cancel what runs (SIGTERM, after 5 s SIGKILL), and leave no process behind.",
                ),
            ],
        ],
        notes: "Exit code 0: no runner is running any more. 1: it still waits for what runs, and ends by itself after \
                that.\n",
    },
    Subcommand {
        name: "restart",
        help: "Replace the runner by a new one; what runs goes on undisturbed.",
        options: &[PLACE, RUN, &[DETACH, flag(None, FORCE, "Cancel what runs before the old runner ends.")]],
        notes: "The new runner checks everything first: if the project or the configuration is broken, the old one \
                stays.\nWithout a runner it is the same as start. Under systemd, let systemctl restart it.\n",
    },
    Subcommand {
        name: "reload",
        help: "Let the runner load settings and commands again.",
        options: &[PLACE],
        notes: "Exit code 0: the runner goes by the new ones. 1: they are broken, and it goes on with the old ones.\n",
    },
    Subcommand {
        name: "status",
        help: "Show what the runner does and what waits (also without a subcommand).",
        options: &[PLACE, &[flag(None, "json", "For programs; the keys are described in the README.")]],
        notes: "Exit code 0: running. 1: not running, but executions are left. 3: not running. 4: cannot be told.\n",
    },
    Subcommand {
        name: "ensure",
        help: "Start a detached runner unless a healthy one is there; for cron.",
        options: &[PLACE, RUN],
        notes: "Silent when there is nothing to do. A runner whose loop has not turned for 5 minutes is replaced.\n\
                \n* * * * * djangocommand -C /srv/app ensure\n",
    },
    Subcommand {
        name: "logs",
        help: "Show the log of the detached runner.",
        options: &[
            PLACE,
            &[
                valued(Some('n'), "lines", "N", "How many lines from its end: 20 by default."),
                flag(Some('f'), "follow", "Go on with what is written from now on, until Ctrl+C."),
            ],
        ],
        notes: "",
    },
    Subcommand {
        name: HISTORY,
        help: "Show what was run and refused on this host, and how it ended.",
        options: &[
            PLACE,
            &[
                valued(Some('n'), "lines", "N", "How many executions, the last ones: 20 by default."),
                flag(
                    None,
                    "json",
                    "The record's own lines, one JSON object each; the keys are described in the README.",
                ),
            ],
        ],
        notes: "With COMMAND, only the executions of that command. It reads audit.jsonl in the state directory, whether \
                a\nrunner runs or not.\n\nExit code 0: shown. 1: there is none, or it cannot be read.\n",
    },
];

/// The one subcommand that takes a word which is no option: the name of a management command.
const HISTORY: &str = "history";

const HELP: Opt = flag(Some('h'), "help", "Show this help.");
const VERSION: Opt = flag(Some('V'), "version", "Show the version.");
/// What is meant without a subcommand, as with the Python runner.
const DEFAULT_SUBCOMMAND: &str = "status";

impl Subcommand {
    fn options(&self) -> impl Iterator<Item = &'static Opt> + Clone {
        self.options.iter().flat_map(|group| group.iter())
    }
}

/// Reads the command line. Options may also stand before the subcommand.
///
/// # Errors
/// What is wrong with it, with the usage line: exit code 2.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
    let mut parser = lexopt::Parser::from_args(args);
    let mut sub: Option<&'static Subcommand> = None;
    let mut given: Vec<(&'static Opt, OsString)> = Vec::new();
    let mut operand: Option<OsString> = None;
    loop {
        // An argument borrows the parser, so the option is looked up before its value is asked for.
        let opt = match parser.next().map_err(|e| usage_error(&e.to_string(), sub))? {
            None => break,
            Some(lexopt::Arg::Short('h') | lexopt::Arg::Long("help")) => {
                return Ok(Command::Print(sub.map_or_else(overview, details)));
            }
            Some(lexopt::Arg::Short('V') | lexopt::Arg::Long("version")) if sub.is_none() => {
                return Ok(Command::Print(format!("djangocommand {}\n", env!("CARGO_PKG_VERSION"))));
            }
            Some(lexopt::Arg::Value(name)) if sub.is_none() => {
                match name.to_string_lossy().as_ref() {
                    SHIM => return shim(&mut parser),
                    "help" => return Ok(Command::Print(overview())),
                    name => sub = Some(find_subcommand(name)?),
                }
                continue;
            }
            Some(lexopt::Arg::Value(word))
                if operand.is_none() && sub.is_some_and(|sub| sub.name == HISTORY) =>
            {
                operand = Some(word);
                continue;
            }
            Some(arg) => find_option(sub, arg)?,
        };
        let value = match opt.value {
            Some(_) => parser.value().map_err(|e| usage_error(&e.to_string(), sub))?,
            None => OsString::new(),
        };
        given.push((opt, value));
    }
    let sub = sub.map_or_else(|| find_subcommand(DEFAULT_SUBCOMMAND), Ok)?;
    command(sub, given, operand).map_err(|why| usage_error(&why, Some(sub)))
}

fn shim(parser: &mut lexopt::Parser) -> Result<Command, String> {
    let directory = parser.value().map_err(|e| usage_error(&e.to_string(), None))?;
    Ok(Command::Shim(directory.into()))
}

fn find_subcommand(name: &str) -> Result<&'static Subcommand, String> {
    SUBCOMMANDS.iter().find(|sub| sub.name == name).ok_or_else(|| {
        let names = SUBCOMMANDS.iter().map(|sub| sub.name).chain(["help"]);
        let hint = near::nearest(name, names).map_or_else(String::new, |n| format!("; did you mean '{n}'?"));
        usage_error(&format!("unknown subcommand '{}'{hint}", crate::log::printable(name)), None)
    })
}

/// Before the subcommand is known, any subcommand's option may be meant.
fn find_option(sub: Option<&'static Subcommand>, arg: lexopt::Arg<'_>) -> Result<&'static Opt, String> {
    let known = || {
        SUBCOMMANDS.iter().filter(|s| sub.is_none_or(|sub| sub.name == s.name)).flat_map(Subcommand::options)
    };
    let found = match arg {
        lexopt::Arg::Short(short) => known().find(|opt| opt.short == Some(short)),
        lexopt::Arg::Long(long) => known().find(|opt| opt.long == long),
        lexopt::Arg::Value(_) => None,
    };
    let hint = match arg {
        lexopt::Arg::Long(long) => near::nearest(long, known().filter(|o| o.help != HIDDEN).map(|o| o.long)),
        _ => None,
    };
    let hint = hint.map_or_else(String::new, |name| format!("; did you mean '--{name}'?"));
    found.ok_or_else(|| usage_error(&format!("{}{hint}", arg.unexpected()), sub))
}

/// The values of all options, whichever subcommand they belong to.
struct Values {
    start: Start,
    timeout: Option<Duration>,
    force: bool,
    json: bool,
    lines: usize,
    follow: bool,
}

fn command(
    sub: &'static Subcommand,
    given: Vec<(&'static Opt, OsString)>,
    operand: Option<OsString>,
) -> Result<Command, String> {
    let mut values = Values {
        start: Start {
            place: Place::default(),
            python: None,
            server_url: None,
            level: Level::Info,
            log_format: None,
            watches_files: true,
            mode: Mode::Foreground,
            replace: None,
            to_pass_on: Vec::new(),
        },
        timeout: None,
        force: false,
        json: false,
        lines: 20,
        follow: false,
    };
    for (opt, value) in given {
        if !sub.options().any(|own| own.long == opt.long) {
            return Err(format!("--{} is no option of '{}'", opt.long, sub.name));
        }
        if PLACE.iter().chain(RUN).any(|passed| passed.long == opt.long) {
            values.start.to_pass_on.push(format!("--{}", opt.long).into());
            values.start.to_pass_on.extend(opt.value.map(|_| value.clone()));
        }
        values.set(opt, value)?;
    }
    let Values { mut start, timeout, force, json, lines, follow } = values;
    Ok(match sub.name {
        "stop" => Command::Stop { place: start.place, timeout, force },
        "restart" => {
            start.replace = Some(if force { Replace::Force } else { Replace::HandOver });
            Command::Start(start)
        }
        "reload" => Command::Reload(start.place),
        "status" => Command::Status { place: start.place, json },
        "ensure" => Command::Ensure(start),
        "logs" => Command::Logs { place: start.place, lines, follow },
        HISTORY => Command::History {
            place: start.place,
            json,
            count: lines,
            // No command has a name that is no UTF-8.
            command: operand.map(|word| word.to_string_lossy().into_owned()),
        },
        _ => Command::Start(start),
    })
}

impl Values {
    fn set(&mut self, opt: &Opt, value: OsString) -> Result<(), String> {
        let text = |value: OsString| {
            value
                .into_string()
                .map_err(|v| format!("the value of --{} is no UTF-8: {}", opt.long, v.display()))
        };
        let start = &mut self.start;
        match opt.long {
            "project" => start.place.project = Some(value.into()),
            "settings" => start.place.settings = Some(text(value)?),
            "state-dir" => start.place.state_dir = Some(value.into()),
            "python" => start.python = Some(value.into()),
            "server-url" => start.server_url = Some(text(value)?),
            "no-reload" => start.watches_files = false,
            "quiet" => start.level = Level::Error,
            "verbosity" => start.level = choice(opt, &text(value)?, "0, 1, 2 or 3", Level::from_number)?,
            "log-format" => start.log_format = Some(choice(opt, &text(value)?, "time or plain", log_format)?),
            "detach" => set_mode(start, Mode::Detach)?,
            "once" => set_mode(start, Mode::Once)?,
            "detached" => set_mode(start, Mode::Detached)?,
            "replace" => {
                start.replace =
                    Some(choice(opt, &text(value)?, "hand-over, hanging or force", Replace::from_word)?)
            }
            FORCE => self.force = true,
            "json" => self.json = true,
            "follow" => self.follow = true,
            "lines" => self.lines = choice(opt, &text(value)?, "a whole number", |n| n.parse().ok())?,
            "timeout" => {
                self.timeout = Some(choice(opt, &text(value)?, "a number of seconds up to 86400", seconds)?)
            }
            _ => return Err(format!("--{} is in the table, but nothing reads it", opt.long)),
        }
        Ok(())
    }
}

fn choice<T>(opt: &Opt, text: &str, rule: &str, read: impl Fn(&str) -> Option<T>) -> Result<T, String> {
    read(text)
        .ok_or_else(|| format!("--{} is '{}', but must be {rule}", opt.long, crate::log::printable(text)))
}

fn log_format(word: &str) -> Option<Format> {
    match word {
        "time" => Some(Format::Stamped),
        "plain" => Some(Format::Plain),
        _ => None,
    }
}

fn seconds(number: &str) -> Option<Duration> {
    number.parse().ok().filter(|n| (0.0..=86_400.0).contains(n)).map(Duration::from_secs_f64)
}

fn set_mode(start: &mut Start, mode: Mode) -> Result<(), String> {
    if start.mode != Mode::Foreground && start.mode != mode {
        return Err("--detach and --once exclude each other".to_owned());
    }
    start.mode = mode;
    Ok(())
}

impl Replace {
    /// The value of the hidden option, by which a detached runner is told how to begin.
    pub fn word(self) -> &'static str {
        match self {
            Self::HandOver => "hand-over",
            Self::Hanging => "hanging",
            Self::Force => "force",
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        [Self::HandOver, Self::Hanging, Self::Force].into_iter().find(|how| how.word() == word)
    }
}

fn usage_error(message: &str, sub: Option<&Subcommand>) -> String {
    let name = sub.map_or(String::new(), |sub| format!(" {}", sub.name));
    let usage = sub.map_or_else(|| "djangocommand SUBCOMMAND".to_owned(), usage);
    format!("{message}\nusage: {usage}\n'djangocommand{name} --help' says more")
}

fn usage(sub: &Subcommand) -> String {
    let operand = if sub.name == HISTORY { " [COMMAND]" } else { "" };
    format!("djangocommand {} [OPTIONS]{operand}", sub.name)
}

fn overview() -> String {
    let mut text = String::from(
        "Runs the Django management commands that the DjangoCommand service asks for and this host allows.\n\n\
         usage: djangocommand SUBCOMMAND [OPTIONS]\n\nSubcommands:\n",
    );
    for sub in SUBCOMMANDS {
        let _ = writeln!(text, "  {:<9}{}", sub.name, sub.help);
    }
    text.push_str("\nOptions:\n");
    describe(&mut text, [&HELP, &VERSION]);
    text.push_str(
        "\nExit codes: 0 done, 1 failed, 2 wrong usage, 78 wrong configuration (do not restart); those of status are \
         its own.\n'djangocommand SUBCOMMAND --help' says more.\n",
    );
    text
}

fn details(sub: &Subcommand) -> String {
    let mut text = format!("{}\n\nusage: {}\n\nOptions:\n", sub.help, usage(sub));
    describe(&mut text, sub.options().chain([&HELP]));
    if !sub.notes.is_empty() {
        let _ = write!(text, "\n{}", sub.notes);
    }
    text
}

/// One paragraph an option, its help wrapped to 80 columns.
fn describe<'a>(text: &mut String, options: impl IntoIterator<Item = &'a Opt>) {
    const INDENT: usize = 26;
    const WIDTH: usize = 80;
    for opt in options.into_iter().filter(|opt| opt.help != HIDDEN) {
        let short = opt.short.map_or("    ".to_owned(), |short| format!("-{short}, "));
        let value = opt.value.map_or(String::new(), |value| format!(" {value}"));
        let _ = write!(text, "  {:<w$}", format!("{short}--{}{value}", opt.long), w = INDENT - 2);
        let mut column = INDENT;
        for word in opt.help.split(' ') {
            if column + 1 + word.len() > WIDTH {
                let _ = write!(text, "\n{:INDENT$}", "");
                column = INDENT;
            }
            if column > INDENT {
                text.push(' ');
            }
            text.push_str(word);
            column += word.len() + 1;
        }
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(line: &str) -> Result<Command, String> {
        parse(line.split(' ').filter(|w| !w.is_empty()).map(OsString::from))
    }

    fn start(line: &str) -> Start {
        match parse_words(line) {
            Ok(Command::Start(start)) => start,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_option_of_the_table_is_read_and_shown_in_help() {
        for sub in SUBCOMMANDS {
            let Ok(Command::Print(help)) = parse_words(&format!("{} --help", sub.name)) else {
                panic!("no help")
            };
            assert!(help.lines().all(|line| line.chars().count() <= 110), "{help}");
            for opt in sub.options() {
                let value = match opt.long {
                    _ if opt.value.is_none() => "",
                    "verbosity" | "timeout" | "lines" => "3",
                    "log-format" => "plain",
                    "replace" => "force",
                    _ => "x",
                };
                let parsed = parse_words(&format!("{} --{} {value}", sub.name, opt.long));
                assert!(parsed.is_ok(), "{}: {parsed:?}", opt.long);
                let before = parse_words(&format!("--{} {value} {}", opt.long, sub.name));
                assert!(before.is_ok(), "before the subcommand: {before:?}");
                assert_eq!(help.contains(&format!("--{}", opt.long)), opt.help != HIDDEN, "{help}");
            }
        }
    }

    #[test]
    fn values_arrive_where_they_belong() {
        let start = start("start -C /srv/app --settings a.b --python=/p --state-dir /s --server-url u -v3");
        assert_eq!(start.place.project.unwrap().to_str(), Some("/srv/app"));
        assert_eq!(start.python.unwrap().to_str(), Some("/p"));
        assert_eq!(start.place.state_dir.unwrap().to_str(), Some("/s"));
        assert_eq!(start.place.settings.as_deref(), Some("a.b"));
        assert_eq!(start.server_url.as_deref(), Some("u"));
        assert_eq!(start.level, Level::Debug);
        let stop = parse_words("stop --timeout 2.5 --force");
        assert!(
            matches!(stop, Ok(Command::Stop { timeout: Some(t), force: true, .. }) if t.as_millis() == 2500)
        );
        assert!(matches!(parse_words("logs -fn 7"), Ok(Command::Logs { lines: 7, follow: true, .. })));
        assert!(matches!(parse_words("status --json"), Ok(Command::Status { json: true, .. })));
        let history = parse_words("history -n 3 send_invoices --json");
        assert!(
            matches!(history, Ok(Command::History { json: true, count: 3, command: Some(c), .. }) if c == "send_invoices")
        );
        assert!(matches!(parse_words("history"), Ok(Command::History { count: 20, command: None, .. })));
    }

    #[test]
    fn what_a_detached_runner_is_told_is_what_start_was_told() {
        let told = start("-C /srv/app start -d -v3 --no-reload").to_pass_on;
        assert_eq!(told, ["--project", "/srv/app", "--verbosity", "3", "--no-reload"]);
        let again = start(&format!("start {}", told.join(std::ffi::OsStr::new(" ")).to_str().unwrap()));
        assert_eq!(again.to_pass_on, told);
        assert!(!again.watches_files && again.level == Level::Debug);
    }

    #[test]
    fn restart_replaces_and_start_does_not() {
        assert_eq!(start("restart").replace, Some(Replace::HandOver));
        assert_eq!(start("restart --force -d").replace, Some(Replace::Force));
        assert_eq!(start("start").replace, None);
        assert_eq!(start("start --replace hand-over --detached").replace, Some(Replace::HandOver));
    }

    #[test]
    fn without_a_subcommand_it_is_status() {
        assert!(matches!(parse_words(""), Ok(Command::Status { json: false, .. })));
        let Ok(Command::Status { place, json: true }) = parse_words("-C /srv/app --json") else {
            panic!("status")
        };
        assert_eq!(place.project.unwrap().to_str(), Some("/srv/app"));
    }

    #[test]
    fn a_wrong_command_line_is_named_with_the_near_word_and_the_usage() {
        for (line, said) in [
            ("strat", "unknown subcommand 'strat'; did you mean 'start'?\nusage: djangocommand SUBCOMMAND\n"),
            ("--frob", "invalid option '--frob'"),
            (
                "start --setings x",
                "invalid option '--setings'; did you mean '--settings'?\nusage: djangocommand start",
            ),
            ("start --python", "missing argument for option '--python'"),
            ("start --quiet=1", "unexpected argument for option '--quiet'"),
            ("start -v 7", "--verbosity is '7', but must be 0, 1, 2 or 3"),
            ("start now", "unexpected argument \"now\""),
            (
                "history one two",
                "unexpected argument \"two\"\nusage: djangocommand history [OPTIONS] [COMMAND]",
            ),
            ("start -d --once", "--detach and --once exclude each other"),
            ("status --force", "invalid option '--force'"),
            ("--force status", "--force is no option of 'status'\nusage: djangocommand status"),
            ("stop --timeout -1", "--timeout is '-1', but must be a number of seconds"),
        ] {
            let error = parse_words(line).unwrap_err();
            assert!(error.starts_with(said), "{error}");
        }
    }
}
