//! The command line: one table of subcommands and options, from which the parser and every help text come.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;

use crate::log::Level;
use crate::near;

/// What the user asked for.
#[derive(Debug)]
pub enum Command {
    Start(Options),
    /// Role 2, started by the runner itself: the directory of the execution to look after.
    Shim(PathBuf),
    /// Text for standard output, and nothing else to do.
    Print(String),
}

/// The options of the subcommands that work on a project.
#[derive(Debug)]
pub struct Options {
    pub project: Option<PathBuf>,
    pub settings: Option<String>,
    pub python: Option<PathBuf>,
    pub state_dir: Option<PathBuf>,
    pub server_url: Option<String>,
    pub level: Level,
}

struct Opt {
    short: Option<char>,
    long: &'static str,
    /// The value's name in help texts; `None` for a flag.
    value: Option<&'static str>,
    help: &'static str,
}

struct Subcommand {
    name: &'static str,
    help: &'static str,
    options: &'static [Opt],
}

/// The name of role 2, which no help text mentions.
pub const SHIM: &str = "shim";

const SUBCOMMANDS: &[Subcommand] = &[Subcommand {
    name: "start",
    help: "Run in the foreground until SIGTERM or Ctrl+C.",
    options: &[
        Opt {
            short: Some('C'),
            long: "project",
            value: Some("DIR"),
            help: "The project, instead of the working directory; manage.py is looked for there and above.",
        },
        Opt {
            short: None,
            long: "settings",
            value: Some("MODULE"),
            help: "The settings module (DJANGO_SETTINGS_MODULE), for the commands too.",
        },
        Opt {
            short: None,
            long: "python",
            value: Some("PATH"),
            help: "The project's Python. Else: $VIRTUAL_ENV, a virtualenv beside manage.py or above it, \
                   $CONDA_PREFIX, manage.py's first line, python3.",
        },
        Opt {
            short: None,
            long: "state-dir",
            value: Some("DIR"),
            help: "Where to keep state. Else: $DJANGOCOMMAND_STATE_DIR, $STATE_DIRECTORY, \
                   /var/lib/djangocommand/PROJECT for root, $XDG_STATE_HOME or ~/.local/state, then \
                   djangocommand/PROJECT.",
        },
        Opt {
            short: None,
            long: "server-url",
            value: Some("URL"),
            help: "The service, instead of DJANGOCOMMAND_SERVER_URL.",
        },
        Opt {
            short: Some('v'),
            long: "verbosity",
            value: Some("0..3"),
            help: "How much is logged: 0 errors, 1 warnings, 2 what happens (the default), 3 everything.",
        },
        Opt { short: Some('q'), long: "quiet", value: None, help: "The same as -v 0." },
    ],
}];

const HELP: Opt = Opt { short: Some('h'), long: "help", value: None, help: "Show this help." };
const VERSION: Opt = Opt { short: Some('V'), long: "version", value: None, help: "Show the version." };

/// Reads the command line.
///
/// # Errors
/// What is wrong with it, with the usage line: exit code 2.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
    let mut parser = lexopt::Parser::from_args(args);
    match parser.next().map_err(|e| usage_error(&e.to_string(), None))? {
        None => Err(usage_error("no subcommand given", None)),
        Some(lexopt::Arg::Short('h') | lexopt::Arg::Long("help")) => Ok(Command::Print(overview())),
        Some(lexopt::Arg::Short('V') | lexopt::Arg::Long("version")) => {
            Ok(Command::Print(format!("djangocommand {}\n", env!("CARGO_PKG_VERSION"))))
        }
        Some(lexopt::Arg::Value(name)) => subcommand(&name.to_string_lossy(), parser),
        Some(option) => Err(usage_error(&option.unexpected().to_string(), None)),
    }
}

fn subcommand(name: &str, mut parser: lexopt::Parser) -> Result<Command, String> {
    if name == SHIM {
        let directory = parser.value().map_err(|e| usage_error(&e.to_string(), None))?;
        return Ok(Command::Shim(directory.into()));
    }
    if name == "help" {
        return Ok(Command::Print(overview()));
    }
    let Some(sub) = SUBCOMMANDS.iter().find(|sub| sub.name == name) else {
        let names = SUBCOMMANDS.iter().map(|sub| sub.name).chain(["help"]);
        let hint = near::nearest(name, names).map_or_else(String::new, |n| format!("; did you mean '{n}'?"));
        return Err(usage_error(
            &format!("unknown subcommand '{}'{hint}", crate::log::printable(name)),
            None,
        ));
    };
    let mut options = Options {
        project: None,
        settings: None,
        python: None,
        state_dir: None,
        server_url: None,
        level: Level::Info,
    };
    loop {
        // An argument borrows the parser, so the option is looked up before its value is asked for.
        let opt = match parser.next().map_err(|e| usage_error(&e.to_string(), Some(sub)))? {
            None => return Ok(Command::Start(options)),
            Some(lexopt::Arg::Short('h') | lexopt::Arg::Long("help")) => {
                return Ok(Command::Print(details(sub)));
            }
            Some(arg) => find(sub, arg)?,
        };
        let value = match opt.value {
            Some(_) => parser.value().map_err(|e| usage_error(&e.to_string(), Some(sub)))?,
            None => OsString::new(),
        };
        options.set(opt, value).map_err(|e| usage_error(&e, Some(sub)))?;
    }
}

fn find(sub: &'static Subcommand, arg: lexopt::Arg<'_>) -> Result<&'static Opt, String> {
    let found = match arg {
        lexopt::Arg::Short(short) => sub.options.iter().find(|opt| opt.short == Some(short)),
        lexopt::Arg::Long(long) => sub.options.iter().find(|opt| opt.long == long),
        lexopt::Arg::Value(_) => None,
    };
    let hint = match arg {
        lexopt::Arg::Long(long) => near::nearest(long, sub.options.iter().map(|opt| opt.long)),
        _ => None,
    };
    let hint = hint.map_or_else(String::new, |name| format!("; did you mean '--{name}'?"));
    found.ok_or_else(|| usage_error(&format!("{}{hint}", arg.unexpected()), Some(sub)))
}

impl Options {
    fn set(&mut self, opt: &Opt, value: OsString) -> Result<(), String> {
        let text = |value: OsString| {
            value
                .into_string()
                .map_err(|v| format!("the value of --{} is no UTF-8: {}", opt.long, v.display()))
        };
        match opt.long {
            "project" => self.project = Some(value.into()),
            "settings" => self.settings = Some(text(value)?),
            "python" => self.python = Some(value.into()),
            "state-dir" => self.state_dir = Some(value.into()),
            "server-url" => self.server_url = Some(text(value)?),
            "quiet" => self.level = Level::Error,
            "verbosity" => {
                let number = text(value)?;
                self.level = Level::from_number(&number)
                    .ok_or_else(|| format!("--verbosity is '{number}', but must be 0, 1, 2 or 3"))?;
            }
            _ => return Err(format!("--{} is in the table, but nothing reads it", opt.long)),
        }
        Ok(())
    }
}

fn usage_error(message: &str, sub: Option<&Subcommand>) -> String {
    let name = sub.map_or(String::new(), |sub| format!(" {}", sub.name));
    let usage = sub.map_or_else(|| "djangocommand SUBCOMMAND".to_owned(), usage);
    format!("{message}\nusage: {usage}\n'djangocommand{name} --help' says more")
}

fn usage(sub: &Subcommand) -> String {
    format!("djangocommand {} [OPTIONS]", sub.name)
}

fn overview() -> String {
    let mut text = String::from(
        "Runs the Django management commands that the DjangoCommand service asks for and this host allows.\n\n\
         usage: djangocommand SUBCOMMAND [OPTIONS]\n\nSubcommands:\n",
    );
    for sub in SUBCOMMANDS {
        let _ = writeln!(text, "  {:<8}{}", sub.name, sub.help);
    }
    text.push_str("\nOptions:\n");
    describe(&mut text, [&HELP, &VERSION]);
    text.push_str(
        "\nExit codes: 0 done, 1 failed, 2 wrong usage, 78 wrong configuration (do not restart).\n\
         'djangocommand SUBCOMMAND --help' says more.\n",
    );
    text
}

fn details(sub: &Subcommand) -> String {
    let mut text = format!("{}\n\nusage: {}\n\nOptions:\n", sub.help, usage(sub));
    describe(&mut text, sub.options.iter().chain([&HELP]));
    text.push_str(
        "\nThe API key is read from DJANGOCOMMAND_API_KEY in the project's Django settings or the environment; there \
         is\nno option for it, because options can be seen by every user of the host. Each setting can be overridden \
         by\nan environment variable of its name.\n\
         \nSIGTERM or Ctrl+C: take nothing new, let what runs end, report it, exit. A second one cancels what runs.\n",
    );
    text
}

/// One paragraph an option, its help wrapped to 80 columns.
fn describe<'a>(text: &mut String, options: impl IntoIterator<Item = &'a Opt>) {
    const INDENT: usize = 26;
    const WIDTH: usize = 80;
    for opt in options {
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

    #[test]
    fn every_option_of_the_table_is_read_and_shown_in_help() {
        for sub in SUBCOMMANDS {
            let Ok(Command::Print(help)) = parse_words(&format!("{} --help", sub.name)) else {
                panic!("no help")
            };
            assert!(help.lines().all(|line| line.chars().count() <= 110), "{help}");
            for opt in sub.options {
                let value = if opt.long == "verbosity" { "3" } else { "x" };
                let value = if opt.value.is_some() { value } else { "" };
                let parsed = parse_words(&format!("{} --{} {value}", sub.name, opt.long));
                assert!(parsed.is_ok(), "{}: {parsed:?}", opt.long);
                assert!(help.contains(&format!("--{}", opt.long)), "{help}");
            }
        }
    }

    #[test]
    fn values_arrive_where_they_belong() {
        let line = "start -C /srv/app --settings a.b --python=/p --state-dir /s --server-url u -v3";
        let Ok(Command::Start(options)) = parse_words(line) else { panic!("it starts") };
        assert_eq!(options.project.unwrap().to_str(), Some("/srv/app"));
        assert_eq!(options.python.unwrap().to_str(), Some("/p"));
        assert_eq!(options.state_dir.unwrap().to_str(), Some("/s"));
        assert_eq!((options.settings.unwrap().as_str(), options.server_url.unwrap().as_str()), ("a.b", "u"));
        assert_eq!(options.level, Level::Debug);
    }

    #[test]
    fn a_wrong_command_line_is_named_with_the_near_word_and_the_usage() {
        for (line, said) in [
            ("strat", "unknown subcommand 'strat'; did you mean 'start'?\nusage: djangocommand SUBCOMMAND\n"),
            ("", "no subcommand given"),
            ("--frob", "invalid option '--frob'"),
            (
                "start --setings x",
                "invalid option '--setings'; did you mean '--settings'?\nusage: djangocommand start",
            ),
            ("start --python", "missing argument for option '--python'"),
            ("start --quiet=1", "unexpected argument for option '--quiet'"),
            ("start -v 7", "--verbosity is '7', but must be 0, 1, 2 or 3"),
            ("start now", "unexpected argument \"now\""),
        ] {
            let error = parse_words(line).unwrap_err();
            assert!(error.starts_with(said), "{error}");
        }
    }
}
