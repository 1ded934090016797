//! What the host lets the service run: commands, argument lists, nothing else.
//!
//! A request goes in, an [`Approved`] or a [`Rejection`] comes out, and only an `Approved` can become a process. The
//! list that the dashboard is told of comes from the same rules, so that it cannot promise what would be refused.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::execution::{Request, quoted, words};

/// What runs in allowlist mode when the project sets no list of its own (`protocol.md`, Settings).
pub const DEFAULT_ALLOWED: &[&str] = &[
    "migrate",
    "showmigrations",
    "dbbackup",
    "createcachetable",
    "collectstatic",
    "findstatic",
    "clearsessions",
    "check",
    "diffsettings",
    "inspectdb",
    "sendtestemail",
    "sqlmigrate",
    "sqlsequencereset",
    "dumpdata",
    "compilemessages",
    "test",
    "show_urls",
    "validate_templates",
    "list_signals",
    "notes",
    "show_template_tags",
    "graph_models",
    "pipchecker",
    "clear_cache",
    "health_check",
    "silk_clear_request_log",
    "fixtree",
    "publish_scheduled",
    "rebuild_references_index",
    "search_garbage_collect",
    "update_index",
    "rebuild_index",
    "clear_index",
];

/// What does not run in blocklist mode when the project sets no list of its own (`protocol.md`, Settings).
pub const DEFAULT_DISALLOWED: &[&str] = &[
    "flush",
    "sqlflush",
    "reset_db",
    "dbrestore",
    "loaddata",
    "shell",
    "shell_plus",
    "dbshell",
    "runserver",
    "runserver_plus",
    "testserver",
    "createsuperuser",
    "changepassword",
    "makemigrations",
    "squashmigrations",
    "drop_test_database",
    "delete_squashed_migrations",
    "clean_pyc",
];

/// The runner's own commands, under both names of the service: never listed, never run.
const OWN_COMMANDS: [&str; 2] = ["djangocommand", "managecommand"];

/// Options of all Django commands by which an argument list chooses the code that runs.
pub const CODE_OPTIONS: [&str; 2] = ["--settings", "--pythonpath"];
/// Those of single ones: they import a module of that name.
const CODE_OPTIONS_OF: [(&str, &str); 3] =
    [("diffsettings", "--default"), ("test", "--testrunner"), ("test", "--top-level-directory")];

/// `MAX_ARG_STRLEN` of Linux: the longest single argument that exec takes, its NUL included.
const ARGUMENT_MAX: usize = 128 * 1024;

/// Which commands may run, in one of the two modes.
#[derive(Debug, Clone, PartialEq)]
pub enum Mode {
    Allowlist(BTreeSet<String>),
    Blocklist(BTreeSet<String>),
}

/// One argument list that a bound command may run with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BoundArgs {
    /// As the project wrote it; the dashboard shows and sends it.
    pub args: String,
    pub label: String,
    /// `args` split into words: what is compared.
    #[serde(skip)]
    pub words: Vec<String>,
}

impl BoundArgs {
    /// # Errors
    /// `args` cannot be split into words.
    pub fn new(args: &str, label: Option<&str>) -> Result<Self, String> {
        let words = words::split(args).map_err(|why| format!("{}: {why}", quoted(args)))?;
        let default = if args.is_empty() { "(no arguments)" } else { args };
        Ok(Self { args: args.to_owned(), label: label.unwrap_or(default).to_owned(), words })
    }
}

/// The host's rules, as its settings give them.
#[derive(Debug, Clone)]
pub struct Policy {
    /// `DJANGOCOMMAND_` or `MANAGECOMMAND_`: messages name settings in full.
    pub prefix: &'static str,
    pub mode: Mode,
    pub bound: BTreeMap<String, Vec<BoundArgs>>,
    pub metadata_only: BTreeSet<String>,
    /// Whether arguments may choose settings and import path, and with them the code that runs.
    pub allows_settings_override: bool,
}

/// What a command's own argparse parser says of its options, as far as policy asks.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Parser {
    /// Its options that look like an abbreviation of one of [`CODE_OPTIONS`]: written out they are no abbreviation.
    #[serde(default)]
    pub own_options: BTreeSet<String>,
    /// The characters by which an argument names a file that has more arguments.
    #[serde(default)]
    pub file_prefixes: String,
    /// Its options and operands that seem to take a file or code: `-o/--output`. For people; nothing is refused by it.
    #[serde(default)]
    pub chosen: Vec<String>,
}

/// A request that may become a process. Nothing but [`Policy::approve`] makes one.
#[derive(Debug)]
pub struct Approved {
    command: String,
    args: Vec<String>,
    timeout: Option<Duration>,
    metadata_only: bool,
}

impl Approved {
    pub fn command(&self) -> &str {
        &self.command
    }

    pub fn args(&self) -> &[String] {
        &self.args
    }

    pub fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    pub fn metadata_only(&self) -> bool {
        self.metadata_only
    }
}

/// Why a command is not run, and what would change that.
#[derive(Debug, PartialEq)]
pub struct Rejection {
    pub reason: String,
    pub remedy: String,
}

impl Rejection {
    fn new(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { reason: reason.into(), remedy: remedy.into() }
    }

    /// A request that is wrong in itself, whatever the policy.
    pub fn malformed(reason: String) -> Self {
        Self::new(reason, "Correct it in the dashboard and run the command again.")
    }

    /// What the dashboard shows in place of the command's output.
    pub fn text(&self, command: &str) -> String {
        format!("Refused to run {}: {}.\n{}\n", quoted(command), self.reason, self.remedy)
    }
}

impl Policy {
    /// Whether a command of this name may run at all.
    ///
    /// # Errors
    /// The rule that forbids it.
    pub fn admits(&self, command: &str) -> Result<(), Rejection> {
        let prefix = self.prefix;
        if !is_module_name(command) {
            let reason = "its name is not one that a Python module can have".to_owned();
            return Err(Rejection::malformed(reason));
        }
        if OWN_COMMANDS.contains(&command) {
            let remedy = "No setting allows it: control the runner on the server itself.";
            return Err(Rejection::new("it is the runner's own command", remedy));
        }
        match &self.mode {
            Mode::Allowlist(allowed) if !allowed.contains(command) => Err(Rejection::new(
                format!("it is not in {prefix}ALLOWED_COMMANDS"),
                format!(
                    "To allow it, add it to {prefix}ALLOWED_COMMANDS in the project's Django settings, where \
                     \"@default\" stands for the default list, for example:\n\n    \
                     {prefix}ALLOWED_COMMANDS = [\"@default\", {command:?}]"
                ),
            )),
            Mode::Blocklist(blocked) if blocked.contains(command) => Err(Rejection::new(
                format!("it is in {prefix}DISALLOWED_COMMANDS"),
                format!(
                    "To allow it, take it out of {prefix}DISALLOWED_COMMANDS in the project's Django settings \
                     (its default is the default blocklist)."
                ),
            )),
            _ => Ok(()),
        }
    }

    /// The rule by which a command may run.
    pub fn rule(&self) -> String {
        match &self.mode {
            Mode::Allowlist(_) => format!("it is in {}ALLOWED_COMMANDS", self.prefix),
            Mode::Blocklist(_) => format!("it is not in {}DISALLOWED_COMMANDS", self.prefix),
        }
    }

    /// Decides on a request, given the commands that the project has, and what is known of their parsers.
    ///
    /// # Errors
    /// The rule that forbids it, to be reported as the execution's result.
    pub fn approve(
        &self,
        request: Request,
        found: &BTreeSet<String>,
        parsers: &BTreeMap<String, Parser>,
    ) -> Result<Approved, Rejection> {
        let Request { command, args, timeout, metadata_only } = request;
        self.admits(&command)?;
        if !found.contains(&command) {
            let remedy = "Install the app that brings it, or restart the runner if the command is new.";
            return Err(Rejection::new("the project has no command of that name", remedy));
        }
        self.check_arguments(&command, &args, parsers.get(&command))?;
        let metadata_only = metadata_only || self.metadata_only.contains(&command);
        Ok(Approved { command, args, timeout, metadata_only })
    }

    fn check_arguments(
        &self,
        command: &str,
        args: &[String],
        parser: Option<&Parser>,
    ) -> Result<(), Rejection> {
        if args.iter().any(|arg| arg.contains('\0')) {
            return Err(Rejection::malformed(
                "an argument holds a NUL, which no process can be given".into(),
            ));
        }
        if args.iter().any(|arg| arg.len() >= ARGUMENT_MAX) {
            let reason = format!("an argument is longer than the {ARGUMENT_MAX} bytes that the kernel takes");
            return Err(Rejection::malformed(reason));
        }
        let Some(choices) = self.bound.get(command) else { return self.check_options(command, args, parser) };
        if choices.iter().any(|choice| choice.words == args) {
            return Ok(());
        }
        let setting = format!("{}BOUND_COMMANDS", self.prefix);
        let list: Vec<String> =
            choices.iter().map(|choice| format!("    {}", choice.label_and_args())).collect();
        Err(Rejection::new(
            format!("{setting} binds it to certain arguments, and these are not among them"),
            format!("It may run with:\n{}\nTo allow others, add them to {setting}.", list.join("\n")),
        ))
    }
}

/// The options by which this command lets arguments choose the code that runs.
fn code_options(command: &str) -> impl Iterator<Item = &'static str> {
    let of_this = CODE_OPTIONS_OF.iter().filter(move |(name, _)| *name == command).map(|(_, option)| *option);
    CODE_OPTIONS.into_iter().chain(of_this)
}

impl Policy {
    /// Whether an option, as a parser names it (`-o/--output`), is refused whatever its value.
    pub fn refuses_option(&self, command: &str, option: &str) -> bool {
        !self.allows_settings_override
            && code_options(command).any(|code| option.split('/').any(|name| name == code))
    }

    /// What an operator has bound a command to is the host's own word; all else must not choose the code that runs.
    fn check_options(
        &self,
        command: &str,
        args: &[String],
        parser: Option<&Parser>,
    ) -> Result<(), Rejection> {
        let unknown = Parser::default();
        let code_options: Vec<&str> = code_options(command).collect();
        let chooses = |arg: &&String| parser.unwrap_or(&unknown).chooses_code(arg, &code_options);
        let Some(arg) = args.iter().find(chooses).filter(|_| !self.allows_settings_override) else {
            return Ok(());
        };
        let setting = format!("{}ALLOW_SETTINGS_OVERRIDE", self.prefix);
        Err(Rejection::new(
            format!(
                "the argument {} may choose what code runs, as --settings and --pythonpath do",
                quoted(arg)
            ),
            format!("To allow such arguments, set {setting} = True in the project's Django settings."),
        ))
    }
}

impl Parser {
    /// Whether argparse would take the argument for one of `code_options`, in any position: also behind `--`, because a
    /// parser may hand what is there to another. An abbreviation is taken if no option is written just so.
    fn chooses_code(&self, arg: &str, code_options: &[&str]) -> bool {
        let name = arg.split_once('=').map_or(arg, |(name, _)| name);
        let is_abbreviation = name.len() > 2 && code_options.iter().any(|option| option.starts_with(name));
        let is_own = self.own_options.contains(name) && !code_options.contains(&name);
        is_abbreviation && !is_own || arg.starts_with(|c| self.file_prefixes.contains(c))
    }
}

/// Letters, digits and underscores; hyphens too, which the name of a module's file may have.
fn is_module_name(name: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    !name.is_empty() && !name.starts_with('-') && name.chars().all(is_part)
}

impl BoundArgs {
    /// For people.
    pub fn label_and_args(&self) -> String {
        if self.label == self.args || self.args.is_empty() {
            self.label.clone()
        } else {
            format!("{} ({})", self.args, self.label)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    fn policy(mode: Mode) -> Policy {
        Policy {
            prefix: "DJANGOCOMMAND_",
            mode,
            bound: BTreeMap::new(),
            metadata_only: set(&["export"]),
            allows_settings_override: false,
        }
    }

    fn request(command: &str, args: &[&str]) -> Request {
        let args = args.iter().map(|a| (*a).to_owned()).collect();
        Request { command: command.into(), args, timeout: None, metadata_only: false }
    }

    fn reason(policy: &Policy, request: Request) -> String {
        let found =
            set(&["check", "flush", "export", "diffsettings", "djangocommand", "managecommand", "report"]);
        let own_options = set(&["--set", "--settings"]);
        let parsers = BTreeMap::from([(
            "report".to_owned(),
            Parser { own_options, file_prefixes: "@".to_owned(), chosen: vec![] },
        )]);
        policy.approve(request, &found, &parsers).err().map_or_else(String::new, |rejection| rejection.reason)
    }

    #[test]
    fn an_allowlist_lets_only_its_own_commands_run() {
        let policy = policy(Mode::Allowlist(set(&["check", "gone"])));
        assert_eq!(reason(&policy, request("check", &["--deploy"])), "");
        assert_eq!(reason(&policy, request("flush", &[])), "it is not in DJANGOCOMMAND_ALLOWED_COMMANDS");
        assert_eq!(reason(&policy, request("gone", &[])), "the project has no command of that name");
        let text = policy.admits("flush").unwrap_err().text("flush");
        assert!(text.contains("    DJANGOCOMMAND_ALLOWED_COMMANDS = [\"@default\", \"flush\"]\n"), "{text}");
    }

    #[test]
    fn a_blocklist_lets_all_others_run_that_the_project_has() {
        let policy = policy(Mode::Blocklist(set(&["flush"])));
        assert_eq!(reason(&policy, request("check", &[])), "");
        assert_eq!(reason(&policy, request("flush", &[])), "it is in DJANGOCOMMAND_DISALLOWED_COMMANDS");
        assert_eq!(reason(&policy, request("nothing", &[])), "the project has no command of that name");
        for no_name in ["--version", "-c", "", "a b", "a.b", "../check", "check\n", "check\0", "a/b"] {
            assert_eq!(
                reason(&policy, request(no_name, &[])),
                "its name is not one that a Python module can have"
            );
        }
    }

    #[test]
    fn the_runners_own_commands_never_run() {
        for own in OWN_COMMANDS {
            for mode in [Mode::Allowlist(set(&[own])), Mode::Blocklist(set(&[]))] {
                assert_eq!(reason(&policy(mode), request(own, &[])), "it is the runner's own command");
            }
        }
    }

    #[test]
    fn a_bound_command_runs_only_with_one_of_its_argument_lists() {
        let mut policy = policy(Mode::Allowlist(set(&["report"])));
        let choices = ["", "--month 'last one'"].map(|args| BoundArgs::new(args, None).unwrap());
        policy.bound.insert("report".into(), choices.to_vec());
        assert_eq!(reason(&policy, request("report", &[])), "");
        assert_eq!(reason(&policy, request("report", &["--month", "last one"])), "");
        for args in [&["--month"][..], &["--month", "last", "one"], &["--month 'last one'"], &[""]] {
            assert!(
                reason(&policy, request("report", args)).starts_with("DJANGOCOMMAND_BOUND_COMMANDS binds")
            );
        }
        assert_eq!(choices[0].label, "(no arguments)");
    }

    #[test]
    fn arguments_that_choose_what_code_runs_are_rejected_in_every_form_that_argparse_takes() {
        let mut policy = policy(Mode::Allowlist(set(&["check", "report", "diffsettings"])));
        let is_rejected = |policy: &Policy, command, args: &[&str]| {
            reason(policy, request(command, args)).contains("may choose what code runs")
        };
        for arg in [
            "--settings",
            "--settings=x",
            "--setting=x",
            "--s",
            "--se=x",
            "--pythonpath",
            "--pythonpath=/tmp",
            "--python",
            "--p=/tmp",
        ] {
            assert!(is_rejected(&policy, "check", &["--deploy", arg, "x"]), "{arg}");
            assert!(is_rejected(&policy, "check", &["--", arg]), "{arg}");
        }
        for arg in [
            "--",
            "-s",
            "settings",
            "--settings-x",
            "--pythonpaths",
            "--deploy",
            "@file",
            "-",
            "x=--settings",
        ] {
            assert!(!is_rejected(&policy, "check", &[arg]), "{arg}");
        }
        assert!(is_rejected(&policy, "diffsettings", &["--default=prod"]));
        assert!(!is_rejected(&policy, "diffsettings", &["--all"]));
        // `report` has an option `--set`, and reads arguments from files.
        for (arg, rejected) in
            [("--set", false), ("--set=x", false), ("--sett", true), ("--settings", true), ("@file", true)]
        {
            assert_eq!(is_rejected(&policy, "report", &[arg]), rejected, "{arg}");
        }
        policy.bound.insert("check".into(), vec![BoundArgs::new("--settings=mine", None).unwrap()]);
        assert_eq!(reason(&policy, request("check", &["--settings=mine"])), "");
        policy.bound.clear();
        policy.allows_settings_override = true;
        assert_eq!(reason(&policy, request("check", &["--settings=mine"])), "");
    }

    #[test]
    fn what_exec_would_not_take_is_rejected_before() {
        let policy = policy(Mode::Blocklist(set(&[])));
        assert!(reason(&policy, request("check", &["a\0b"])).contains("NUL"));
        assert!(reason(&policy, request("check", &[&"x".repeat(ARGUMENT_MAX)])).contains("131072 bytes"));
        assert_eq!(reason(&policy, request("check", &[&"x".repeat(ARGUMENT_MAX - 1)])), "");
    }

    #[test]
    fn the_projects_metadata_only_commands_run_so_without_being_asked() {
        let policy = policy(Mode::Blocklist(set(&[])));
        let found = set(&["export", "check"]);
        let metadata_only = |command| {
            policy.approve(request(command, &[]), &found, &BTreeMap::new()).unwrap().metadata_only()
        };
        assert!(metadata_only("export") && !metadata_only("check"));
    }
}
