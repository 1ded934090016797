//! The Django side: which project and which Python are taken, and what becomes of settings and a manage.py of every temper.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::project::{
    Project, django_project, fake_project, fake_project_with_settings, system_python,
};
use crate::support::runner::{BINARY, Ended, Runner, Running};
use crate::support::server::{Endpoint, Job, Server};

/// For what starts an interpreter or two.
const SOON: Duration = Duration::from_secs(30);
/// For what waits for a poll as well.
const LATER: Duration = Duration::from_secs(60);

#[test]
fn the_project_is_found_above_the_directory_that_is_named() {
    let (server, project) = (Server::start(), fake_project());
    fs::create_dir_all(project.dir().join("a/b")).unwrap();
    let root = fs::canonicalize(project.dir()).unwrap();
    // Of two -C the last one counts, as of every option.
    let runner = Runner::in_project(&project).server(&server).arg("-C").arg(root.join("a/b"));
    let (_running, said) = run(runner, &server, Job::new("cwd"));
    assert_eq!(said["cwd"], json!(root));
    assert_eq!(said["argv"][0], "manage.py");
}

#[test]
fn the_project_is_found_above_the_working_directory() {
    let project = fake_project();
    let below = project.dir().join("a/b");
    fs::create_dir_all(&below).unwrap();
    let output = start_in(&below);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "there is no key: {said}");
    let root = fs::canonicalize(project.dir()).unwrap();
    assert!(said.contains(&format!("project '{}'", root.display())), "{said}");
}

#[test]
fn a_directory_without_a_project_is_refused_with_the_ways_to_name_one() {
    let nowhere = tempfile::tempdir().unwrap();
    let output = start_in(nowhere.path());
    let said = String::from_utf8(output.stderr).unwrap();
    let path = fs::canonicalize(nowhere.path()).unwrap();
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains(&format!("no manage.py in '{}'", path.display())), "{said}");
    assert!(said.contains("-C DIR") && said.contains("--settings"), "{said}");
}

#[test]
fn a_settings_module_is_named_by_the_option_or_else_by_the_environment_for_the_commands_too() {
    for (option, variable) in
        [(Some("other"), None), (None, Some("other")), (Some("other"), Some("settings"))]
    {
        let (server, project) = (Server::start(), fake_project());
        project.write("other.py", "from settings import *\nDJANGOCOMMAND_MAX_RETRIES = 7\n");
        let mut runner = Runner::in_project(&project).server(&server);
        if let Some(module) = option {
            runner = runner.arg("--settings").arg(module);
        }
        if let Some(module) = variable {
            runner = runner.env("DJANGO_SETTINGS_MODULE", module);
        }
        let (running, said) = run(runner, &server, Job::new("env"));
        assert_eq!(said["DJANGO_SETTINGS_MODULE"], "other", "{option:?} {variable:?}");
        running.wait_for_log("DJANGOCOMMAND_MAX_RETRIES = 7 (Django settings)", SOON);
    }
}

#[test]
fn a_manage_py_that_overrides_the_option_for_the_settings_is_refused() {
    let (server, project) = (Server::start(), fake_project());
    let manage_py = fs::read_to_string(project.dir().join("manage.py")).unwrap();
    let insists =
        manage_py.replace("setdefault(\"DJANGO_SETTINGS_MODULE\",", "update(DJANGO_SETTINGS_MODULE=");
    assert_ne!(insists, manage_py);
    project.write("manage.py", &insists);
    project.write("other.py", "from settings import *\n");
    let runner = Runner::in_project(&project).server(&server);
    let ended = runner.args(["--settings", "other"]).run_to_end(SOON);
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    let said = complaint(&ended)[0];
    assert!(said.contains("manage.py takes the settings 'settings' in spite of --settings"), "{ended:?}");
    assert_no_request(&server);
}

#[test]
fn a_project_without_manage_py_runs_its_commands_by_python_m_django() {
    for by_option in [true, false] {
        let (server, project) = (Server::start(), django_project());
        project.settings("DJANGOCOMMAND_ALLOWED_COMMANDS = ['takes_options']");
        fs::remove_file(project.dir().join("manage.py")).unwrap();
        let runner = Runner::in_project(&project).server(&server);
        let runner = match by_option {
            true => runner.args(["--settings", "mysite.settings"]),
            false => runner.env("DJANGO_SETTINGS_MODULE", "mysite.settings"),
        };
        let (_running, said) = run(runner, &server, Job::new("takes_options").args("--limit 3 x"));
        assert_eq!(said, json!({"names": ["x"], "limit": 3, "dry_run": false}));
    }
}

#[test]
fn pythons_are_looked_for_in_their_order_and_the_log_says_which_and_why() {
    let project = fake_project();
    // The virtualenv above must not be in the shared temporary directory, so everything moves down a step.
    let root = moved_down(&project);
    let top = fs::canonicalize(project.dir()).unwrap();
    let [active, conda, bin] = ["active", "conda", "bin"].map(|name| top.join(name));
    for venv in [&active, &root.join(".venv"), &top.join(".venv"), &conda] {
        make_venv(venv);
    }
    // A file of the name that cannot be run is not taken for one that can.
    let unusable = top.join("unusable");
    fs::create_dir_all(&unusable).unwrap();
    fs::write(unusable.join("python3"), "").unwrap();
    let search_path = format!("{}:{}", unusable.display(), bin.display());
    fs::create_dir(&bin).unwrap();
    symlink(system_python(), bin.join("python3")).unwrap();
    let of_script = top.join("python-of-script");
    symlink(system_python(), &of_script).unwrap();
    let manage_py = fs::read_to_string(root.join("manage.py")).unwrap();
    fs::write(root.join("manage.py"), format!("#!{}\n{manage_py}", of_script.display())).unwrap();

    let found = |variables: &[(&str, &Path)]| {
        let mut runner = Runner::in_project(&project).arg("-C").arg(&root).env("PATH", &search_path);
        for (name, value) in variables {
            runner = runner.env(name, value);
        }
        // There is no key, so that it ends when it has said what it found.
        let ended = runner.run_to_end(SOON);
        assert_eq!(ended.code(), Some(78), "{ended:?}");
        let line = ended.stderr.lines().find(|line| line.contains(", Python '")).unwrap();
        line.split_once(", Python ").unwrap().1.to_owned()
    };
    let said = |python: PathBuf, why: &str| format!("'{}' ({why})", python.display());
    let in_venv =
        |venv: &Path| said(venv.join("bin/python"), &format!("the virtualenv '{}'", venv.display()));
    let (virtual_env, conda_prefix) = (("VIRTUAL_ENV", active.as_path()), ("CONDA_PREFIX", conda.as_path()));
    assert_eq!(found(&[virtual_env, conda_prefix]), said(active.join("bin/python"), "$VIRTUAL_ENV"));
    assert_eq!(found(&[conda_prefix]), in_venv(&root.join(".venv")));
    fs::remove_dir_all(root.join(".venv")).unwrap();
    assert_eq!(found(&[conda_prefix]), in_venv(&top.join(".venv")));
    fs::remove_dir_all(top.join(".venv")).unwrap();
    assert_eq!(found(&[conda_prefix]), said(conda.join("bin/python"), "$CONDA_PREFIX"));
    assert_eq!(found(&[]), said(of_script, "the first line of manage.py"));
    fs::write(root.join("manage.py"), manage_py).unwrap();
    assert_eq!(found(&[]), said(bin.join("python3"), "python3 on PATH"));
}

#[test]
fn the_python_of_a_virtualenv_stays_a_symbolic_link_for_the_commands_too() {
    let (server, project) = (Server::start(), fake_project());
    let venv = fs::canonicalize(project.dir()).unwrap().join(".venv");
    make_venv(&venv);
    let (_running, said) = run(Runner::in_project(&project).server(&server), &server, Job::new("cwd"));
    assert_eq!(said["executable"], json!(venv.join("bin/python")), "followed, it would leave the virtualenv");
}

#[test]
fn commands_run_with_the_interpreter_that_the_probe_reported() {
    let (server, project) = (Server::start(), fake_project());
    // A version manager's shim: a script that looks for the real interpreter, which takes its time.
    let (shim, calls) = (project.dir().join("shim"), project.dir().join("calls"));
    let script =
        format!("#!/bin/sh\necho called >> {}\nexec {} \"$@\"\n", calls.display(), system_python().display());
    fs::write(&shim, script).unwrap();
    fs::set_permissions(&shim, Permissions::from_mode(0o755)).unwrap();
    let runner = Runner::in_project(&project).server(&server).arg("--python").arg(&shim);
    let (running, said) = run(runner, &server, Job::new("cwd"));
    assert_eq!(said["executable"], json!(system_python()));
    assert_eq!(fs::read_to_string(&calls).unwrap(), "called\n", "once for the probe, never for the command");
    running.wait_for_log(&format!("Python '{}' (--python)", shim.display()), SOON);
}

#[test]
fn a_python_that_cannot_run_the_project_is_named_with_what_is_wrong() {
    let (server, fake, real) = (Server::start(), fake_project(), django_project());
    let plain_file = fake.dir().join("settings.py");
    for (project, python, code, first_line) in [
        (
            &fake,
            Path::new("/no/such/python"),
            78,
            "the Python '/no/such/python' named by --python does not exist",
        ),
        (
            &fake,
            Path::new("no-such-python"),
            78,
            "the Python 'no-such-python' named by --python does not exist",
        ),
        (&fake, &plain_file, 1, "cannot run '"),
        (
            &real,
            &system_python(),
            1,
            "the project does not load: ModuleNotFoundError: No module named 'django'",
        ),
    ] {
        let runner = Runner::in_project(project).server(&server).arg("--python").arg(python);
        let ended = runner.run_to_end(SOON);
        assert_eq!(ended.code(), Some(code), "{ended:?}");
        assert!(complaint(&ended)[0].starts_with(first_line), "{ended:?}");
    }
    assert_no_request(&server);
}

#[test]
fn a_project_that_prints_and_starts_threads_is_understood_all_the_same() {
    let (server, project) = (Server::start(), django_project());
    project.settings(
        "import os, sys\n\
         SECRET_KEY = os.environ['SITE_SECRET']\n\
         print('printed'); os.system('echo by a child'); os.write(1, b'raw\\n{\"a\": 1}\\n')\n\
         os.write(1, b'djangocommand-probe:[]\\n')\n\
         sys.stdout.write('no newline'); sys.stdin.read()\n\
         INSTALLED_APPS[-1] = 'polls.apps.PollsConfig'",
    );
    // Neither the runner nor anything else may wait for this thread.
    project.write(
        "polls/apps.py",
        "import threading, time\nfrom django.apps import AppConfig\n\n\n\
         class PollsConfig(AppConfig):\n    name = 'polls'\n\n\
         \x20   def ready(self):\n        threading.Thread(target=time.sleep, args=[600]).start()\n",
    );
    let running = Runner::in_project(&project).server(&server).env("SITE_SECRET", "s").start();
    let commands = server.wait_for("a sync", SOON, |state| state.commands.clone());
    assert!(commands.as_array().unwrap().iter().any(|command| command["name"] == "migrate"), "{commands}");
    let left = running.state_dir().processes();
    assert_eq!(left, [running.pid()], "the probe is gone with its threads");
}

#[test]
fn a_project_that_does_not_load_is_told_in_its_own_words_last_line_first_before_any_request() {
    let server = Server::start();
    let own_word = |word: &str| format!("import os, sys, threading, time\n{word}");
    for (settings, first_line, is_traceback) in [
        ("raise RuntimeError('no database today')", "RuntimeError: no database today", true),
        ("os.environ['SITE_SECRET']", "KeyError: 'SITE_SECRET'", true),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'", true),
        ("def", "SyntaxError: invalid syntax", true),
        ("print('first this'); raise ValueError('then that')", "ValueError: then that", true),
        ("sys.exit('no configuration for this host')", "no configuration for this host", false),
        ("sys.stderr.write('noise\\n' * 100000); 1 / 0", "ZeroDivisionError: division", true),
        (
            "print('last words', flush=True); os.kill(os.getpid(), 11)",
            "its Python was killed by signal 11",
            false,
        ),
        // Neither a thread nor a process that keeps the output open may hold the end.
        (
            "threading.Thread(target=time.sleep, args=[600]).start(); 1 / 0",
            "ZeroDivisionError: division",
            true,
        ),
        ("os.system('sleep 600 &'); 1 / 0", "ZeroDivisionError: division", true),
    ] {
        let project = fake_project_with_settings(&own_word(settings));
        let ended = Runner::in_project(&project).server(&server).run_to_end(SOON);
        assert_eq!(ended.code(), Some(1), "{ended:?}");
        let said = complaint(&ended);
        assert!(
            said[0].starts_with(&format!("the project does not load: {first_line}")),
            "{settings}: {ended:?}"
        );
        let has_traceback = said.iter().any(|line| line.starts_with("Traceback (most recent call last):"));
        assert_eq!(has_traceback, is_traceback, "{settings}: {ended:?}");
        assert_eq!(has_traceback, said.iter().any(|line| line.contains("settings.py")), "{ended:?}");
        assert!(!settings.contains("first this") || said.contains(&"first this"), "{ended:?}");
    }
    assert_no_request(&server);
}

#[test]
fn a_project_that_exits_without_a_word_is_told_so() {
    let server = Server::start();
    let project = fake_project_with_settings("import sys\nsys.exit(3)");
    let ended = Runner::in_project(&project).server(&server).run_to_end(SOON);
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    assert_eq!(complaint(&ended)[0], "the project's Python ended without a word");
    assert_no_request(&server);
}

#[test]
fn a_manage_py_that_swallows_exceptions_does_not_hide_why_the_settings_fail() {
    let server = Server::start();
    for swallow in ["pass", "print('oops')", "sys.exit('Something went wrong.')"] {
        let project = fake_project_with_settings("raise RuntimeError('no database today')");
        project.write(
            "manage.py",
            &format!(
                "import os, sys\nos.environ.setdefault('DJANGO_SETTINGS_MODULE', 'settings')\n\
                 from django.core.management import execute_from_command_line\n\
                 try:\n    execute_from_command_line(sys.argv)\nexcept Exception:\n    {swallow}\n"
            ),
        );
        let ended = Runner::in_project(&project).server(&server).run_to_end(SOON);
        assert_eq!(ended.code(), Some(1), "{ended:?}");
        let expected = match swallow.contains("went wrong") {
            // It has decided what its users are told.
            true => "the project does not load: Something went wrong.",
            false => "the project does not load: RuntimeError: no database today",
        };
        assert_eq!(complaint(&ended)[0], expected, "{ended:?}");
    }
    assert_no_request(&server);
}

#[test]
fn a_manage_py_of_ones_own_is_followed() {
    const ENTRY: &str = "from django.core.management import execute_from_command_line as execute\n";
    for manage_py in [
        // Loads a .env file, as with python-dotenv.
        "for line in open(os.path.join(os.path.dirname(os.path.abspath(__file__)), '.env')):\n    \
         os.environ.setdefault(*line.strip().split('='))\nexecute(sys.argv)\n",
        "os.environ['PROOF'] = 'yes'\ntry:\n    execute(sys.argv)\nexcept BaseException:\n    pass\n",
        "os.environ['PROOF'] = 'yes'\nfrom django.core.management import ManagementUtility\n\
         ManagementUtility(sys.argv).execute()\n",
        // Goes elsewhere, where an import path relative to the working directory would miss the project.
        "os.environ['PROOF'] = 'yes'\nos.chdir('/')\nexecute(sys.argv)\n",
        // Finds the settings by the directory that it adds.
        "sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), 'src'))\n\
         os.environ['DJANGO_SETTINGS_MODULE'] = 'elsewhere'\nexecute(sys.argv)\n",
    ] {
        let (server, project) = (Server::start(), fake_project());
        let head = "import os, sys\nos.environ.setdefault('DJANGO_SETTINGS_MODULE', 'settings')\n";
        project.write("manage.py", &format!("{head}{ENTRY}{manage_py}"));
        project.write(".env", "PROOF=yes\n");
        fs::create_dir(project.dir().join("src")).unwrap();
        project.write("src/elsewhere.py", "import os\nos.environ['PROOF'] = 'yes'\nfrom settings import *\n");
        project.settings("PROOF = os.environ['PROOF']");
        let (_running, said) = run(Runner::in_project(&project).server(&server), &server, Job::new("env"));
        assert_eq!(said["PROOF"], "yes", "{manage_py}");
    }
}

/// Starts the runner, and reads what one command printed as JSON.
fn run(runner: Runner<'_>, server: &Server, job: Job) -> (Running, Value) {
    let id = server.enqueue(job);
    let running = runner.start();
    let end = server.completed(&id, LATER);
    let printed = server.state(|state| state.execution(&id).stdout());
    assert_eq!(end.status, "success", "{printed}");
    (running, serde_json::from_str(&printed).unwrap())
}

/// `djangocommand start` with nothing but a working directory; it must end by itself.
fn start_in(directory: &Path) -> Output {
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", "30", BINARY, "start"]).current_dir(directory).env_clear();
    let path = format!("{}:/usr/bin:/bin", system_python().parent().unwrap().display());
    command.env("PATH", path).env("HOME", directory).output().unwrap()
}

/// The lines of the final error: what comes after the log.
fn complaint(ended: &Ended) -> Vec<&str> {
    let (_, text) =
        ended.stderr.split_once("djangocommand: ").expect("an error is told in the program's name");
    text.lines().collect()
}

fn assert_no_request(server: &Server) {
    server.state(|state| {
        assert!(state.requests.is_empty(), "{}", state.log());
        assert_eq!(state.of(Endpoint::Heartbeat).count(), 0);
    });
}

/// Moves a project's files into a directory of its own below; that directory.
fn moved_down(project: &Project) -> PathBuf {
    let files: Vec<PathBuf> =
        fs::read_dir(project.dir()).unwrap().map(|entry| entry.unwrap().path()).collect();
    let below = fs::canonicalize(project.dir()).unwrap().join("site");
    fs::create_dir(&below).unwrap();
    for path in files {
        fs::rename(&path, below.join(path.file_name().unwrap())).unwrap();
    }
    below
}

/// A virtualenv as `python3 -m venv` lays it out, as far as the interpreter looks at it, without the second that takes.
fn make_venv(path: &Path) {
    let python = system_python();
    fs::create_dir_all(path.join("bin")).unwrap();
    symlink(&python, path.join("bin/python")).unwrap();
    fs::write(path.join("pyvenv.cfg"), format!("home = {}\n", python.parent().unwrap().display())).unwrap();
}
