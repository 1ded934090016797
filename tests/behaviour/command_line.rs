//! The command line and the state directory: what a user types, what the program answers, where it keeps its state.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::support::own_mounts;
use crate::support::project::{Project, fake_project, system_python};
use crate::support::runner::{BINARY, Runner, copy_binary};
use crate::support::server::{Endpoint, Job, KEY, Server};
use crate::support::state_dir::{MARK, StateDir};
use crate::support::sys::lock_record;

/// For what starts an interpreter or two.
const SOON: Duration = Duration::from_secs(30);
/// For what waits for a poll as well.
const LATER: Duration = Duration::from_secs(60);
/// The user "nobody" of every Linux.
const NOBODY: u32 = 65_534;
/// Where every user finds a python3, even if the developer's own is in a private place.
const SYSTEM_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

#[test]
fn help_and_version_go_to_standard_output() {
    for (args, said) in [
        (
            &["--help"][..],
            &["usage: djangocommand SUBCOMMAND", "  start ", "--version", "78  wrong configuration"][..],
        ),
        (&["-h"], &["usage: djangocommand SUBCOMMAND"]),
        (&["help"], &["usage: djangocommand SUBCOMMAND"]),
        (
            &["start", "--help"],
            &["usage: djangocommand start", "--project DIR", "DJANGOCOMMAND_API_KEY", "SIGTERM"],
        ),
        (&["start", "-v", "1", "-h"], &["usage: djangocommand start"]),
        (&["--version"], &["djangocommand 0."]),
        (&["-V"], &["djangocommand 0."]),
    ] {
        let output = typed(args).output().unwrap();
        let stdout = text(&output.stdout);
        assert!(output.status.success() && output.stderr.is_empty(), "{args:?}: {output:?}");
        assert!(said.iter().all(|part| stdout.contains(part)), "{args:?}: {stdout}");
        assert!(stdout.ends_with('\n') && !stdout.contains("shim"), "role 2 is nobody's business: {stdout}");
    }
}

#[test]
fn a_wrong_command_line_exits_with_2_and_the_usage_on_standard_error() {
    for (args, said) in [
        (&["strat"][..], "unknown subcommand 'strat'; did you mean 'start'?"),
        (&["--frob"], "invalid option '--frob'"),
        (&["start", "--setings", "x"], "invalid option '--setings'; did you mean '--settings'?"),
        (&["start", "--python"], "missing argument for option '--python'"),
        (&["start", "-v", "4"], "--verbosity is '4', but must be 0, 1, 2 or 3"),
        (&["start", "now"], "unexpected argument \"now\""),
    ] {
        let output = typed(args).output().unwrap();
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{args:?}: {output:?}");
        assert!(stderr.starts_with(&format!("djangocommand: {said}\n")), "{args:?}: {stderr}");
        assert!(stderr.contains("usage: djangocommand "), "{args:?}: {stderr}");
    }
}

#[test]
fn a_reader_that_has_gone_away_is_no_failure() {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let output = typed(&["--help"]).stdout(writer).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let line = format!("{BINARY} start --help | head -1");
    let output = Command::new("sh").args(["-c", &line]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(output.stdout.iter().filter(|byte| **byte == b'\n').count(), 1);
}

#[test]
fn a_full_disk_is_said_and_is_no_panic() {
    for args in [&["--help"][..], &["--version"]] {
        let output = typed(args).stdout(full()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(
            text(&output.stderr).starts_with("djangocommand: cannot write to standard output: "),
            "{output:?}"
        );
    }
    // With nowhere left to say it, the exit code still tells.
    let output = typed(&["--help"]).stdout(full()).stderr(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let output = typed(&["strat"]).stderr(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_runner_whose_log_cannot_be_written_runs_on() {
    let (server, project) = (Server::start(), fake_project());
    let state = StateDir::new();
    let mut command = typed(&["start", "-v", "3", "--server-url", &server.url()]);
    command.arg("-C").arg(project.dir()).arg("--python").arg(system_python());
    // The mark lets the state directory end it with all the others.
    command.arg("--state-dir").arg(state.path()).env(MARK, state.path()).env("DJANGOCOMMAND_API_KEY", KEY);
    let mut child = command.stderr(full()).spawn().unwrap();
    let id = server.enqueue(Job::new("echo"));
    assert_eq!(server.completed(&id, LATER).status, "success");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn only_a_terminal_is_coloured_and_not_if_the_user_is_against_it() {
    let project = fake_project();
    let shown = |args: &str, variables: &[(&str, &str)]| {
        // What `script` starts has a terminal of its own.
        let command = format!("stty cols 40; exec {BINARY} {args} -C {}", project.dir().display());
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--command", &command, "/dev/null"]).stdin(Stdio::null());
        script.env_clear().env("PATH", SYSTEM_PATH).env("TERM", "xterm").env("DJANGOCOMMAND_API_KEY", KEY);
        script.env("DJANGOCOMMAND_STATE_DIR", "/nowhere");
        text(&script.envs(variables.iter().copied()).output().unwrap().stdout)
    };
    let python = format!("--python {}", system_python().display());
    let check = format!("check --offline {python}");
    let coloured = shown(&check, &[]);
    assert!(coloured.contains("\x1b[32mok    \x1b[0mproject     '"), "{coloured:?}");
    for (args, variables) in [(&*check, &[("NO_COLOR", "1")][..]), (&check, &[("TERM", "dumb")])] {
        let plain = shown(args, variables);
        assert!(plain.contains("ok    project     '") && !plain.contains('\x1b'), "{plain:?}");
    }
    assert!(
        shown("status", &[]).starts_with("\x1b[33mstopped     \x1b[0mno runner"),
        "{}",
        shown("status", &[])
    );
    let start = shown(&format!("start {python} --server-url nonsense"), &[]);
    assert!(start.contains("DJANGOCOMMAND_SERVER_URL is 'nonsense'"), "{start:?}");
    // A table is cut where the window ends, a paragraph goes on below its column.
    let shown = shown(&format!("commands {python}"), &[]);
    let table: Vec<String> = shown
        .lines()
        .take_while(|line| !line.trim_end().is_empty())
        .map(|line| line.trim_end().replace("\x1b[32m", "").replace("\x1b[0m", ""))
        .collect();
    assert!(table.len() > 10 && table.iter().all(|line| line.chars().count() <= 40), "{table:#?}");
    assert!(table[1].ends_with('…') && shown.contains("\x1b[32myes\x1b[0m"), "{shown}");
    let lines: Vec<&str> = coloured.lines().filter(|line| line.starts_with(&" ".repeat(18))).collect();
    assert!(!lines.is_empty(), "{coloured}");
}

#[test]
fn a_second_start_names_the_first_by_its_pid() {
    let (server, project) = (Server::start(), fake_project());
    let first = Runner::in_project(&project).server(&server).start();
    server.wait_for("a heartbeat", SOON, |state| state.of(Endpoint::Heartbeat).next().map(|_| ()));
    let second = Runner::in_project(&project).server(&server).state_dir(first.state_dir());
    let ended = second.run_to_end(SOON);
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    let said = format!("djangocommand: a runner is already running (PID {})", first.pid());
    assert!(ended.stderr.contains(&said), "{ended:?}");
    assert_eq!(server.state(|state| state.of(Endpoint::Heartbeat).count()), 1);
    assert!(first.stop(SOON).success());
}

#[test]
fn the_state_is_kept_where_the_first_of_the_ways_to_say_so_says() {
    let home = Home::new();
    let at = |name: &str| home.path(name);
    let named = ("DJANGOCOMMAND_STATE_DIR", at("named"));
    let systemd = ("STATE_DIRECTORY", PathBuf::from(format!("{}:/nonexistent", at("systemd").display())));
    let xdg = ("XDG_STATE_HOME", at("xdg"));
    let own_home = ("HOME", at("home"));
    let of_project = |base: PathBuf| home.project_below(base);
    let all = [&named, &systemd, &xdg, &own_home];
    for (option, variables, expected) in [
        (Some(at("option")), &all[..], at("option")),
        (None, &all[..], at("named")),
        (None, &all[1..], at("systemd")),
        (None, &all[2..], of_project(at("xdg"))),
        (None, &all[3..], of_project(at("home/.local/state"))),
        // What is no absolute path does not count there, says the XDG specification.
        (None, &[&("XDG_STATE_HOME", PathBuf::from("xdg")), &own_home], of_project(at("home/.local/state"))),
    ] {
        // It ends at once and says where it has looked, because somebody is there already.
        let lock = home.occupy(&expected);
        let mut command = home.start();
        if let Some(path) = option {
            command.arg("--state-dir").arg(path);
        }
        let output = command.envs(variables.iter().map(|(name, path)| (name, path))).output().unwrap();
        let said = format!("(PID {}) with the state in '{}'", process::id(), expected.display());
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(text(&output.stderr).contains(&said), "{said} is not in {output:?}");
        drop(lock);
    }
    // Some supervisors set no HOME: the password file knows it as well.
    let output = home.typed("status").output().unwrap();
    let expected = home.project_below(home.in_password_file().join(".local/state"));
    assert!(text(&output.stdout).contains(&format!("{}\n", expected.display())), "{output:?}");
}

#[test]
fn a_state_directory_that_others_could_write_is_refused() {
    let (server, project) = (Server::start(), fake_project());
    let shared = TempDir::new().unwrap();
    fs::set_permissions(shared.path(), Permissions::from_mode(0o777)).unwrap();
    let runner = Runner::in_project(&project).server(&server).without_state_dir();
    let ended = runner.env("DJANGOCOMMAND_STATE_DIR", shared.path()).run_to_end(SOON);
    assert_eq!(ended.code(), Some(78), "{ended:?}");
    assert!(ended.stderr.contains("others can write to the state directory"), "{ended:?}");
    server.state(|state| assert!(state.requests.is_empty(), "{}", state.log()));
}

#[test]
fn a_state_directory_on_a_full_or_read_only_disk_is_refused_with_the_reason() {
    let Some(launcher) = own_mounts::launcher() else { return };
    let project = fake_project();
    for (prepare, said) in [
        ("head -c 1M /dev/zero > /mnt/filler", "cannot lock the state directory '/mnt/state': No space left"),
        ("mount -o remount,ro /mnt", "cannot make the state directory '/mnt/state': Read-only file system"),
        (
            "mkdir -m 700 /mnt/state; mount -o remount,ro /mnt",
            "cannot use the state directory '/mnt/state': Read-only file system",
        ),
    ] {
        let script =
            format!("mount -t tmpfs -o size=64k disk /mnt && {{ {prepare}; }} 2>/dev/null; exec \"$@\"");
        let mut command = Command::new(launcher[0]);
        command.args(&launcher[1..]);
        command.args(["sh", "-c", &script, "sh", BINARY, "start", "--state-dir", "/mnt/state"]);
        command.arg("-C").arg(project.dir()).arg("--python").arg(system_python());
        let output = command.env("DJANGOCOMMAND_API_KEY", KEY).stdin(Stdio::null()).output().unwrap();
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(stderr.starts_with(&format!("djangocommand: {said}")), "{stderr}");
        assert!(stderr.contains("name another one with --state-dir"), "{stderr}");
    }
}

#[test]
fn without_settings_the_renamed_services_default_url_is_its_own() {
    for (prefix, url) in [
        ("DJANGOCOMMAND", "https://app.djangocommand.com"),
        ("MANAGECOMMAND", "https://app.managecommand.com"),
    ] {
        let project = fake_project();
        project.settings("del DJANGOCOMMAND_ALLOWED_COMMANDS");
        // Its audit file cannot be read, so that it ends before it could bother the real service.
        let state = StateDir::new();
        fs::create_dir(state.path().join("audit.jsonl")).unwrap();
        let runner = Runner::in_project(&project).state_dir(&state).env(&format!("{prefix}_API_KEY"), KEY);
        let ended = runner.run_to_end(SOON);
        assert_eq!(ended.code(), Some(1), "{ended:?}");
        assert!(ended.stderr.contains(&format!("{prefix}_SERVER_URL = {url} (default)")), "{ended:?}");
    }
}

/// The binary with these arguments and nothing in its environment.
fn typed(args: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(args).env_clear().env("PATH", SYSTEM_PATH).stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn full() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

/// Holds the lock of a state directory as a runner does.
fn occupy(path: &Path) -> File {
    let lock = File::create(path.join("runner.lock")).unwrap();
    lock_record(&lock);
    lock
}

/// A user's home with a project in it. Root's state is in a place of its own, which a test must not touch: where the
/// tests run as root, this user is nobody.
struct Home {
    dir: TempDir,
    project: Project,
    user: Option<u32>,
}

impl Home {
    fn new() -> Self {
        let (dir, project) = (TempDir::new().unwrap(), fake_project());
        let is_root = fs::metadata(dir.path()).unwrap().uid() == 0;
        for path in [dir.path(), project.dir()] {
            fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        }
        // Where it was built may be as private as the developer's Python.
        copy_binary(&dir.path().join("djangocommand"));
        Home { dir, project, user: is_root.then_some(NOBODY) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `start` by this user, who has set nothing but the key. No service is where it is told to look for one.
    fn start(&self) -> Command {
        let mut command = self.typed("start");
        command.args(["--server-url", "http://127.0.0.1:1"]).env("DJANGOCOMMAND_API_KEY", KEY);
        if self.user.is_none() {
            command.arg("--python").arg(system_python());
        }
        command
    }

    /// A subcommand on the project, typed by this user with nothing in the environment.
    fn typed(&self, subcommand: &str) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", "30"]).arg(self.path("djangocommand")).arg(subcommand);
        command.arg("-C").arg(self.project.dir()).env_clear().env("PATH", SYSTEM_PATH).stdin(Stdio::null());
        if let Some(user) = self.user {
            command.uid(user).gid(user).current_dir("/");
        }
        command
    }

    /// The home directory that the password file has for this user.
    fn in_password_file(&self) -> PathBuf {
        let user = self.user.unwrap_or_else(|| fs::metadata(self.dir.path()).unwrap().uid()).to_string();
        let users = fs::read_to_string("/etc/passwd").unwrap();
        let line = users.lines().find(|line| line.split(':').nth(2) == Some(&user)).unwrap();
        PathBuf::from(line.split(':').nth(5).unwrap())
    }

    /// Makes a state directory that belongs to this user and is in use.
    fn occupy(&self, path: &Path) -> File {
        fs::create_dir_all(path).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o700)).unwrap();
        let lock = occupy(path);
        if let Some(user) = self.user {
            chown(path, Some(user), Some(user)).unwrap();
            chown(path.join("runner.lock"), Some(user), Some(user)).unwrap();
        }
        lock
    }

    /// The project's path, below a directory for the state of all projects.
    fn project_below(&self, base: PathBuf) -> PathBuf {
        base.join("djangocommand")
            .join(fs::canonicalize(self.project.dir()).unwrap().strip_prefix("/").unwrap())
            .join(".state")
    }
}
