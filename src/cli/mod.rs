//! The command line: from words to what the user asked for.
//!
//! One table says which subcommands and options there are; the parser here and every text about them come from it.

mod completions;
mod help;
mod man;
mod markdown;
mod table;

use std::ffi::OsString;
use std::mem::take;
use std::path::PathBuf;
use std::time::Duration;

use crate::log::{Format, Level};
use crate::near;
pub use table::SHIM;
use table::{DEFAULT_SUBCOMMAND, DOCUMENTS, FORCE, GROUPS, Operand, Opt, SUBCOMMANDS, Subcommand};

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
    Check {
        load: Load,
        /// Without any network.
        offline: bool,
        json: bool,
    },
    Commands {
        load: Load,
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

/// A project to be loaded, and for which service.
#[derive(Debug, Default)]
pub struct Load {
    pub place: Place,
    pub python: Option<PathBuf>,
    pub server_url: Option<String>,
}

/// A runner to be started.
#[derive(Debug)]
pub struct Start {
    pub load: Load,
    pub level: Level,
    /// `None`: what fits the place that standard error goes to.
    pub log_format: Option<Format>,
    /// Whether changed project files make it load the project again.
    pub watches_files: bool,
    /// How long what runs may go on once the runner is told to stop; `None`: until it ends.
    pub drain: Option<Duration>,
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
                return Ok(Command::Print(sub.map_or_else(help::overview, help::details)));
            }
            Some(lexopt::Arg::Short('V') | lexopt::Arg::Long("version")) if sub.is_none() => {
                return Ok(Command::Print(format!("djangocommand {}\n", env!("CARGO_PKG_VERSION"))));
            }
            Some(lexopt::Arg::Value(name)) if sub.is_none() => {
                match name.to_string_lossy().as_ref() {
                    SHIM => return shim(&mut parser),
                    "help" => return help_about(&mut parser),
                    name => sub = Some(find_subcommand(name)?),
                }
                continue;
            }
            Some(lexopt::Arg::Value(word))
                if operand.is_none() && sub.is_some_and(|sub| sub.operand.is_some()) =>
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

/// `help`, or `help SUBCOMMAND`.
fn help_about(parser: &mut lexopt::Parser) -> Result<Command, String> {
    match parser.next().map_err(|e| usage_error(&e.to_string(), None))? {
        Some(lexopt::Arg::Value(name)) if name != "help" => {
            find_subcommand(&name.to_string_lossy()).map(|sub| Command::Print(help::details(sub)))
        }
        _ => Ok(Command::Print(help::overview())),
    }
}

fn find_subcommand(name: &str) -> Result<&'static Subcommand, String> {
    SUBCOMMANDS.iter().find(|sub| sub.name == name).ok_or_else(|| {
        let names = SUBCOMMANDS.iter().map(|sub| sub.name).chain(["help"]);
        let hint = near::hint(name, names, "");
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
        lexopt::Arg::Long(long) => {
            near::hint(long, known().filter(|opt| opt.is_shown()).map(|opt| opt.long), "--")
        }
        _ => String::new(),
    };
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
    offline: bool,
}

fn command(
    sub: &'static Subcommand,
    given: Vec<(&'static Opt, OsString)>,
    operand: Option<OsString>,
) -> Result<Command, String> {
    let mut values = Values {
        start: Start {
            load: Load::default(),
            level: Level::Info,
            log_format: None,
            watches_files: true,
            drain: None,
            mode: Mode::Foreground,
            replace: None,
            to_pass_on: Vec::new(),
        },
        timeout: None,
        force: false,
        json: false,
        lines: 20,
        follow: false,
        offline: false,
    };
    for (opt, value) in given {
        if !sub.options().any(|own| own.long == opt.long) {
            return Err(format!("--{} is no option of '{}'", opt.long, sub.name));
        }
        if GROUPS.iter().flat_map(|group| group.options).any(|passed| passed.long == opt.long) {
            values.start.to_pass_on.push(format!("--{}", opt.long).into());
            values.start.to_pass_on.extend(opt.value.map(|_| value.clone()));
        }
        values.set(opt, value)?;
    }
    let operand = match &sub.operand {
        Some(Operand { value, is_required: true }) if operand.is_none() => {
            return Err(format!("{} is missing", value.name));
        }
        // Nothing that an operand names is other than UTF-8.
        _ => operand.map(|word| word.to_string_lossy().into_owned()),
    };
    let Values { mut start, timeout, force, json, lines, follow, offline } = values;
    let load = &mut start.load;
    Ok(match sub.name {
        "stop" => Command::Stop { place: take(&mut load.place), timeout, force },
        "restart" => {
            start.replace = Some(if force { Replace::Force } else { Replace::HandOver });
            Command::Start(start)
        }
        "reload" => Command::Reload(take(&mut load.place)),
        "status" => Command::Status { place: take(&mut load.place), json },
        "check" => Command::Check { load: take(load), offline, json },
        "commands" => Command::Commands { load: take(load), json },
        "ensure" => Command::Ensure(start),
        "logs" => Command::Logs { place: take(&mut load.place), lines, follow },
        "history" => Command::History { place: take(&mut load.place), json, count: lines, command: operand },
        "generate" => Command::Print(document(&operand.unwrap_or_default())?),
        _ => Command::Start(start),
    })
}

fn document(name: &str) -> Result<String, String> {
    Ok(match name {
        "man" => man::page(),
        "bash" => completions::bash(),
        "zsh" => completions::zsh(),
        "fish" => completions::fish(),
        "systemd" => unit(),
        "markdown" => markdown::reference(),
        other => {
            let hint = near::hint(other, DOCUMENTS.iter().copied(), "");
            let other = crate::log::printable(other);
            return Err(format!("DOCUMENT is '{other}', but must be one of {}{hint}", DOCUMENTS.join(", ")));
        }
    })
}

/// The unit of a runner under systemd, for this binary.
fn unit() -> String {
    const UNIT: &str = include_str!("djangocommand@.service");
    const INSTALLED: &str = "/usr/local/bin/djangocommand";
    let binary = std::env::current_exe().unwrap_or_else(|_| PathBuf::from(INSTALLED));
    let name = binary.to_string_lossy().replace('%', "%%");
    UNIT.replace(INSTALLED, &if name.contains(' ') { format!("\"{name}\"") } else { name })
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
            "project" => start.load.place.project = Some(value.into()),
            "settings" => start.load.place.settings = Some(text(value)?),
            "state-dir" => start.load.place.state_dir = Some(value.into()),
            "python" => start.load.python = Some(value.into()),
            "server-url" => start.load.server_url = Some(text(value)?),
            "no-reload" => start.watches_files = false,
            "drain" => {
                start.drain = Some(choice(opt, &text(value)?, "a number of seconds up to 86400", seconds)?)
            }
            "offline" => self.offline = true,
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
    let usage = sub.map_or_else(|| "djangocommand SUBCOMMAND".to_owned(), Subcommand::usage);
    format!("{message}\nusage: {usage}\n'djangocommand{name} --help' says more")
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
                    "verbosity" | "timeout" | "lines" | "drain" => "3",
                    "log-format" => "plain",
                    "replace" => "force",
                    _ => "x",
                };
                let parsed = parse_words(&format!("{} --{} {value}", sub.name, opt.long));
                assert!(parsed.is_ok(), "{}: {parsed:?}", opt.long);
                let before = parse_words(&format!("--{} {value} {}", opt.long, sub.name));
                assert!(before.is_ok(), "before the subcommand: {before:?}");
                assert_eq!(help.contains(&format!("--{}", opt.long)), opt.is_shown(), "{help}");
            }
        }
    }

    #[test]
    fn every_document_has_every_subcommand_and_option_of_the_table() {
        for name in DOCUMENTS.iter().filter(|name| **name != "systemd") {
            let Ok(Command::Print(text)) = parse_words(&format!("generate {name}")) else { panic!("{name}") };
            // roff shows a hyphen that is written so; completions of fish name an option without its dashes.
            let text = text.replace("\\-", "-").replace(" -l ", " --");
            for sub in SUBCOMMANDS {
                assert!(text.contains(sub.name), "{name} lacks {}", sub.name);
                for opt in sub.shown_options() {
                    let long = format!("--{}", opt.long);
                    let has = text.match_indices(&long).any(|(at, _)| {
                        !text[at + long.len()..].starts_with(|c: char| c.is_ascii_alphanumeric() || c == '-')
                    });
                    // The help of each subcommand is not in the reference's tables.
                    assert!(has || opt.long == "help", "{name} lacks {long}");
                }
            }
            assert!(
                !text.contains("--replace") && !text.contains("--detached"),
                "{name} tells what is hidden"
            );
        }
    }

    #[test]
    fn values_arrive_where_they_belong() {
        let start = start("start -C /srv/app --settings a.b --python=/p --state-dir /s --server-url u -v3");
        assert_eq!(start.load.place.project.unwrap().to_str(), Some("/srv/app"));
        assert_eq!(start.load.python.unwrap().to_str(), Some("/p"));
        assert_eq!(start.load.place.state_dir.unwrap().to_str(), Some("/s"));
        assert_eq!(start.load.place.settings.as_deref(), Some("a.b"));
        assert_eq!(start.load.server_url.as_deref(), Some("u"));
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
        assert!(matches!(
            parse_words("check --offline"),
            Ok(Command::Check { offline: true, json: false, .. })
        ));
        assert!(matches!(parse_words("commands --json"), Ok(Command::Commands { json: true, .. })));
        let Ok(Command::Print(help)) = parse_words("help stop") else { panic!("help") };
        assert!(help.contains("djangocommand stop [OPTIONS]"), "{help}");
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
            ("generate", "DOCUMENT is missing\nusage: djangocommand generate [OPTIONS] DOCUMENT"),
            (
                "generate basch",
                "DOCUMENT is 'basch', but must be one of man, bash, zsh, fish, systemd, markdown; did you mean 'bash'?",
            ),
            ("help strat", "unknown subcommand 'strat'; did you mean 'start'?"),
            ("start --drain soon", "--drain is 'soon', but must be a number of seconds up to 86400"),
            ("check --offlin", "invalid option '--offlin'; did you mean '--offline'?"),
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
